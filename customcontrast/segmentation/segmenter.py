"""Picture -> mask of its subject: automatically, then corrected by clicks and boxes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from customcontrast.errors import SegmentationError
from customcontrast.images.loading import Source, load_picture, load_with_alpha
from customcontrast.segmentation.clean import clean, resize, work_size
from customcontrast.segmentation.clicks import Box, Click, Points, box_mask, check_box, check_points
from customcontrast.segmentation.grabcut import first_guess, grabcut
from customcontrast.segmentation.result import Segmentation
from customcontrast.segmentation.u2net import U2Net, simplified
from customcontrast.segmentation.windows import look_around, look_into

if TYPE_CHECKING:
    from customcontrast.segmentation.sam import SamClicks

SAM_VARIABLE = "CUSTOMCONTRAST_SAM_CHECKPOINT"
MIN_SCORE = 0.4  # less decided maps show textures and clouds rather than a subject
MIN_AREA, MAX_AREA = 0.002, 0.97  # a subject's share of the picture
DETAIL = 0.12  # a click means the whole where what lies under it alone is a smaller share of it
CUT_SIDE = 320  # GrabCut works at this longer side, px

NOTHING_FOUND = "no subject stands out in this picture; click on the subject, or draw a box around it."
NOTHING_LEFT = "these clicks leave nothing of the subject; click on the subject, or start again."


def chosen_checkpoint(given: str | Path | None) -> str | Path | None:
    """SAM's checkpoint: the one given, else the environment's (CUSTOMCONTRAST_SAM_CHECKPOINT), else none."""
    return given or os.environ.get(SAM_VARIABLE) or None


class Segmenter:
    """Finds the subject of a picture, and corrects it by clicks and boxes.

    One object serves any number of threads and visitors: it holds models and caches, no state of a visitor.
    """

    def __init__(
        self,
        sam_checkpoint: str | Path | None = None,
        sam_type: str = "vit_b",
        device: str | None = None,
        threads: int = 2,
    ) -> None:
        """Load U²-Net-p, and SAM if there is a checkpoint of it.

        Args:
            sam_checkpoint: a SAM state dict (.safetensors); None looks into the environment
                (CUSTOMCONTRAST_SAM_CHECKPOINT), and without one clicks are answered by GrabCut.
            sam_type: its size, "vit_b", "vit_l" or "vit_h".
            device: where SAM runs; None = a GPU where there is one.
            threads: CPU threads of U²-Net-p.

        Raises:
            SegmentationError: the checkpoint is named but is not there.
        """
        checkpoint = chosen_checkpoint(sam_checkpoint)
        if checkpoint and not Path(checkpoint).is_file():
            raise SegmentationError(f"sam_checkpoint: there is no file '{checkpoint}'; check the path.")
        self._net = U2Net(threads)
        self._sam: SamClicks | None = None
        if checkpoint:
            from customcontrast.segmentation.sam import SamClicks  # segment-anything only where it is used

            self._sam = SamClicks(checkpoint, sam_type, device)

    @property
    def click_method(self) -> str:
        """What answers clicks: "sam" or "grabcut"."""
        return "sam" if self._sam else "grabcut"

    def auto(self, image: Source) -> Segmentation:
        """Segment the subject of a picture; its own transparency is the mask, else U²-Net-p finds the salient object.

        Args:
            image: a path, bytes, a PIL picture or an array, see `images.loading.load_picture`.

        Raises:
            PictureError: the picture cannot be read.
            SegmentationError: nothing stands out.
        """
        picture, alpha = load_with_alpha(image)
        if alpha is not None:
            return Segmentation(picture, alpha, 1.0, "alpha")
        probability = self._net.probability(picture)
        score = decidedness(probability)
        if score < MIN_SCORE:
            probability = self._net.probability(simplified(picture), looks=1)
            score = decidedness(probability)
        mask = clean(resize(probability, work_size(picture.size)), picture.size)
        if score < MIN_SCORE or not MIN_AREA < mask.mean() < MAX_AREA:
            raise SegmentationError(NOTHING_FOUND)
        return Segmentation(picture, mask, score, "u2net")

    def refine(self, seg: Segmentation | Source, points: Points = (), box: Box | None = None) -> Segmentation:
        """Correct a segmentation by clicks and a box.

        Args:
            seg: the automatic segmentation, or a picture in which none was found.
            points: all clicks so far, (x, y, label) in pixels of `seg.image`; label 1 on it, 0 beside it.
            box: (x0, y0, x1, y1) around the subject, in the same pixels.

        Returns:
            A new segmentation with method "sam" or "grabcut"; `seg` itself without clicks and box.

        Raises:
            SegmentationError: a click outside the picture, an empty box, or nothing left of the subject.
        """
        known = None
        if isinstance(seg, Segmentation):
            known, picture = seg, seg.image
        else:
            picture = load_picture(seg)
        points, box = check_points(points, picture.size), check_box(box, picture.size)
        if not points and box is None:
            if known is None:
                raise SegmentationError(NOTHING_FOUND)
            return known
        if self._sam:
            return self._refine_sam(self._sam, picture, known, points, box)
        return self._refine_grabcut(picture, known, points, box)

    def _refine_sam(
        self, sam: SamClicks, picture: Image.Image, known: Segmentation | None, points: list[Click], box: Box | None
    ) -> Segmentation:
        if box is None and known is not None and not any(label for *_, label in points):
            box = known.box  # only "not this": from the subject as it was
        mask, score = sam.predict(picture, points, box)
        if not mask.any():
            raise SegmentationError(NOTHING_LEFT)
        return Segmentation(picture, clean(mask.astype(np.float32), picture.size, share=0.05), score, "sam")

    def _refine_grabcut(
        self, picture: Image.Image, known: Segmentation | None, points: list[Click], box: Box | None
    ) -> Segmentation:
        size = work_size(picture.size, CUT_SIDE)
        prior = self._prior(picture, known, points, box, size)
        scale = size[0] / picture.width, size[1] / picture.height
        at_work = [(x * scale[0], y * scale[1], label) for x, y, label in points]
        colors = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
        guess, certain = first_guess(colors, prior, at_work)
        inside = box_mask(box, picture.size, size) if box is not None else None
        mask = clean(grabcut(colors, guess, certain, at_work, inside).astype(np.float32), picture.size, 0.05)
        if not mask.any():
            raise SegmentationError(NOTHING_LEFT)
        return Segmentation(picture, mask, overlap(resize(mask, size) > 0.5, guess > 0.5), "grabcut")

    def _prior(
        self,
        picture: Image.Image,
        known: Segmentation | None,
        points: list[Click],
        box: Box | None,
        size: tuple[int, int],
    ) -> np.ndarray | None:
        """What is known before the clicks cut: map (h, w) of `size` in 0..1, or None where nothing is."""
        before = resize(known.mask, size) if known else None
        if box is not None:
            return self._prior_in_box(picture, before, box, size)
        yes = [(x, y) for x, y, label in points if label]
        no = [(x, y) for x, y, label in points if not label]
        if not yes:
            if before is None:
                raise SegmentationError(NOTHING_FOUND)
            return before
        seen = look_around(self._net, picture, yes, size)
        if known is None or before is None or seen is None:
            return seen if before is None else before
        under = [known.mask[int(y), int(x)] for x, y in yes]
        shared = np.minimum(seen, before).sum() / max(float(seen.sum()), 1e-6)
        part = np.minimum(seen, before)
        if all(under):  # a part of what was found, unless it is a detail or holds what a click excludes
            at = [(int(x * size[0] / picture.width), int(y * size[1] / picture.height)) for x, y in no]
            unwanted = any(part[y, x] > 0.5 for x, y in at)
            return before if unwanted or part.sum() < DETAIL * before.sum() else part
        if not any(under) and shared < 0.1:
            return seen  # something else altogether
        return np.maximum(seen, before)

    def _prior_in_box(
        self, picture: Image.Image, before: np.ndarray | None, box: Box, size: tuple[int, int]
    ) -> np.ndarray:
        """A second look at the box alone, unless it contradicts a first one that reaches into the box."""
        seen = look_into(self._net, picture, box, size)
        if before is None:
            return seen
        inside = box_mask(box, picture.size, size)
        before = before * inside
        disagree = np.minimum(seen, before).sum() < 0.5 * seen.sum()
        return before if disagree and before.sum() > 0.1 * inside.sum() else seen


def decidedness(probability: np.ndarray) -> float:
    """Score in 0..1 of a probability map: its mean inside the mask, times the share of it that is above 0.7."""
    mask = probability > 0.5
    if not mask.any():
        return 0.0
    settled = (probability > 0.7).sum() / (probability > 0.3).sum()
    return float(probability[mask].mean() * settled)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks (h, w) bool, 0..1."""
    return float((first & second).sum() / max(1, (first | second).sum()))
