"""Where one subject may stand: in its location mask, or in a box or mask that the user gave."""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from customcontrast.layout_channels import covered

Box = tuple[float, float, float, float]
MAX_MASK_SIDE = 4096  # px


@dataclass(frozen=True, eq=False)
class Placement:
    """Where one subject may appear. A box or mask replaces its location mask from step 1 on.

    location: False = the subject is not masked by its location map.
    box: (x0, y0, x1, y1), x to the right and y down, x1 and y1 exclusive. All four at most 1: fractions of the
        picture's width and height. Otherwise pixels of the picture. Cells of the latent grid that it covers in part are
        masked in part.
    mask: (H, W) of any size, stretched over the picture: bool, uint8 (0 … 255) or float (0 … 1). Soft values stay soft;
        stored as uint8.
    Raises ValueError naming what is wrong.
    """

    location: bool = True  # False: this subject is not masked by its location map
    box: Box | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.location, bool):
            raise ValueError(f"Placement: location={self.location!r} must be True or False.")
        if self.box is not None and self.mask is not None:
            raise ValueError("Placement: got a box and a mask; draw one of them.")
        if self.drawn and not self.location:
            raise ValueError("Placement: location=False lets the subject be anywhere; leave out the box or mask.")
        if self.box is not None:
            object.__setattr__(self, "box", _checked_box(self.box))
        if self.mask is not None:
            object.__setattr__(self, "mask", _checked_mask(self.mask))

    @property
    def drawn(self) -> bool:
        """Whether there is a box or a mask."""
        return self.box is not None or self.mask is not None

    def in_fractions(self, height: int, width: int) -> Box | None:
        """The box as fractions of a picture of height × width px. Raises ValueError if it does not lie inside."""
        if self.box is None or max(self.box) <= 1:
            return self.box
        x0, y0, x1, y1 = self.box
        if x1 > width or y1 > height:
            raise ValueError(
                f"Placement: box={self.box} is in pixels and reaches out of the picture of {width} × {height} px; "
                "give fractions of its width and height (all four at most 1), or pixels inside it."
            )
        return x0 / width, y0 / height, x1 / width, y1 / height

    def layout(self, grid: tuple[int, int], height: int, width: int) -> Tensor | None:
        """The box or mask as a soft mask (h, w) in [0, 1] on `grid`, for a picture of height × width px; else None."""
        if self.mask is not None:
            down, across = (_area_weights(n, cells) for n, cells in zip(self.mask.shape, grid, strict=True))
            return (down @ torch.from_numpy(self.mask.astype(np.float64) / 255) @ across.T).clamp(0, 1).float()
        box = self.in_fractions(height, width)
        if box is None:
            return None
        x0, y0, x1, y1 = box
        low, high = torch.tensor([[y0, x0], [y1, x1]], dtype=torch.float64)
        down, across = (covered(low[i], high[i], grid[i]).float() for i in (0, 1))
        return down[:, None] * across

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON (the mask as a base64 PNG, lossless); `from_dict` reads them back."""
        mask = None
        if self.mask is not None:
            buffer = io.BytesIO()
            Image.fromarray(self.mask).save(buffer, "PNG")
            mask = base64.b64encode(buffer.getvalue()).decode("ascii")
        return {"location": self.location, "box": None if self.box is None else list(self.box), "mask": mask}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Placement:
        """Rebuild from `to_dict`; every value is checked. Raises ValueError with one sentence."""
        mask = values.get("mask")
        box = values.get("box")
        return cls(bool(values.get("location", True)), box, None if mask is None else _read_mask(mask))


def _checked_box(box: Any) -> Box:
    try:
        x0, y0, x1, y1 = (float(value) for value in box)
    except (TypeError, ValueError):
        raise ValueError(f"Placement: box={box!r} must be four numbers (x0, y0, x1, y1).") from None
    if not (0 <= x0 < x1 and 0 <= y0 < y1 and max(x1, y1) < float("inf")):
        raise ValueError(f"Placement: box={box!r} must have 0 <= x0 < x1 and 0 <= y0 < y1.")
    return x0, y0, x1, y1


def _checked_mask(mask: Any) -> np.ndarray:
    array = np.asarray(mask)
    if array.ndim != 2 or not array.size or max(array.shape) > MAX_MASK_SIDE:
        raise ValueError(
            f"Placement: mask has shape {array.shape}; it must be (H, W), sides of 1 to {MAX_MASK_SIDE} px."
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype != np.bool_ and array.dtype.kind != "f":
        raise ValueError(f"Placement: mask is {array.dtype}; it must be bool, uint8 (0 to 255) or float (0 to 1).")
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise ValueError("Placement: mask has values outside 0 to 1; scale it, or give it as uint8.")
    return np.round(array.astype(np.float32) * 255).astype(np.uint8)


def _read_mask(text: Any) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as picture:
            if max(picture.size) > MAX_MASK_SIDE:
                raise ValueError(f"Placement: mask has sides {picture.size}; at most {MAX_MASK_SIDE} px are taken.")
            return np.asarray(picture.convert("L"))
    except (TypeError, binascii.Error, UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError("Placement: mask cannot be read; it must be a PNG in base64.") from None


def _area_weights(n: int, cells: int) -> Tensor:
    """What part of each of `cells` equal parts of a line each of its n pixels takes: (cells, n), rows sum to 1."""
    edges = torch.arange(n + 1, dtype=torch.float64) * (cells / n)
    left = torch.arange(cells, dtype=torch.float64)[:, None]
    upto = (edges - left).clamp(0, 1)
    return upto[:, 1:] - upto[:, :-1]
