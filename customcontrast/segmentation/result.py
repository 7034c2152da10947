"""A segmentation: the picture, the subject's mask on it, and the pictures that model and page make of the two."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from customcontrast.errors import SegmentationError
from customcontrast.images.loading import Source, load_picture, load_with_alpha


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A subject segmented in a picture. Raises SegmentationError for a mask of another shape, or an empty one."""

    image: Image.Image  # RGB, W x H
    mask: np.ndarray  # (H, W) bool, True on the subject; never empty
    score: float = 1.0  # 0..1: how decided the method was; 1 where a person drew the mask
    method: str = "drawn"  # "u2net", "sam", "grabcut", "alpha" or "drawn"

    def __post_init__(self) -> None:
        expected = (self.image.height, self.image.width)
        if self.mask.shape != expected or self.mask.dtype != bool:
            raise SegmentationError(
                f"mask: got {self.mask.dtype} of shape {self.mask.shape}; "
                f"give bool of the picture's (H, W) = {expected}."
            )
        if not self.mask.any():
            raise SegmentationError("mask: no pixel is marked; mark the subject.")

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) in pixels around the subject, x1 and y1 exclusive."""
        columns, rows = np.flatnonzero(self.mask.any(0)), np.flatnonzero(self.mask.any(1))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @property
    def area(self) -> float:
        """The subject's share of the picture, 0..1."""
        return float(self.mask.mean())

    @property
    def cutout(self) -> Image.Image:
        """The whole picture as RGBA: transparent outside the subject, with a border a pixel soft."""
        picture = self.image.convert("RGBA")
        picture.putalpha(self._alpha())
        return picture

    @property
    def mask_image(self) -> Image.Image:
        """The mask as a picture, white (255) on black, one channel, of the picture's size."""
        return Image.fromarray(np.where(self.mask, 255, 0).astype(np.uint8))

    def on_plain(
        self, color: tuple[int, int, int] = (255, 255, 255), margin: float = 0.1, size: int | None = None
    ) -> Image.Image:
        """The segmented subject R on a plain ground, centred in a square, RGB.

        Args:
            color: the ground, RGB 0..255.
            margin: free border on each side of the subject's longer side, as a share of that side.
            size: side of the result in px; None = the picture's own scale.
        """
        x0, y0, x1, y1 = self.box
        side = max(1, round(max(x1 - x0, y1 - y0) * (1 + 2 * margin)))
        square = Image.new("RGB", (side, side), color)
        corner = ((side - (x1 - x0)) // 2, (side - (y1 - y0)) // 2)
        square.paste(self.image.crop((x0, y0, x1, y1)), corner, self._alpha().crop((x0, y0, x1, y1)))
        return square if size is None else square.resize((size, size), Image.Resampling.LANCZOS)

    def _alpha(self) -> Image.Image:
        """The mask as a soft alpha, L: at most the mask itself, so that no ground shines through."""
        solid = self.mask.astype(np.float32)
        sigma = max(self.mask.shape) / 1000
        soft = cv2.GaussianBlur(solid, (0, 0), max(sigma, 0.3), borderType=cv2.BORDER_REPLICATE)
        return Image.fromarray((np.minimum(soft, solid) * 255 + 0.5).astype(np.uint8))


def from_mask(image: Source, mask: Image.Image | np.ndarray, score: float = 1.0) -> Segmentation:
    """Make a Segmentation of a picture and a drawn mask.

    Args:
        image: the picture, anything `load_picture` takes.
        mask: of any size (it is stretched to the picture's): an array (H, W) bool or numbers, marked above
            half of its range (0..1 or 0..255); or a picture, whose transparency counts where it has some
            (the layer of a drawing tool), else its brightness.
        score: what to report as certainty.

    Raises:
        PictureError, SegmentationError: one sentence.
    """
    picture = load_picture(image)
    if isinstance(mask, np.ndarray) and mask.ndim == 2:
        top = 255.0 if mask.dtype != bool and mask.size and mask.max() > 1 else 1.0
        values = mask.astype(np.float32) / top
    else:
        drawn, alpha = load_with_alpha(mask, "mask")
        values = np.asarray(drawn.convert("L"), np.float32) / 255 if alpha is None else alpha.astype(np.float32)
    if values.size == 0 or not values.max() > 0.5:
        raise SegmentationError("mask: nothing is drawn on it; paint over the subject.")
    if values.shape != (picture.height, picture.width):
        values = np.asarray(Image.fromarray(values).resize(picture.size, Image.Resampling.BILINEAR))
    if not (values > 0.5).any():
        raise SegmentationError("mask: what is drawn is too thin to see on the picture; paint over the subject.")
    return Segmentation(picture, values > 0.5, score, "drawn")
