"""Cut-outs: a visitor's pictures, the corrections to them, and the subject they lead to."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from customcontrast.errors import RequestError, SegmentationError
from customcontrast.images.cropping import Box, widened
from customcontrast.images.loading import MIN_SIDE, load_with_alpha
from customcontrast.segmentation import Segmentation, Segmenter, Stroke, painted
from customcontrast.segmentation.segmenter import NOTHING_FOUND, chosen_checkpoint
from customcontrast.ui.service.models import IMPORTS
from customcontrast.ui.service.phrases import sentence

MAX_SIDE = 768  # px; a reference picture is reduced to this on entry, so that recipes stay small and exact
MAX_POINTS = 64  # clicks on one picture
CROP_MARGIN = 0.08  # free border of a crop around the subject, as a share of its sides
ADD, REMOVE, BOX = 1, 0, 2  # what a click says; two BOX clicks are the corners of a box
Point = tuple[int, int, int]  # x, y in pixels of the picture, and one of the above


@dataclasses.dataclass(frozen=True, eq=False)
class CutOut:
    """A reference picture, the clicks and brush strokes on it so far, and the subject they lead to."""

    picture: Image.Image  # RGB, longer side at most MAX_SIDE
    auto: Segmentation | None = None  # what was found without clicks
    points: tuple[Point, ...] = ()
    current: Segmentation | None = None  # the subject with the clicks and strokes
    trouble: str = ""  # a sentence, when there is no subject yet
    strokes: tuple[Stroke, ...] = ()
    clicked: Segmentation | None = None  # the subject with the clicks alone, where there are strokes
    whole: CutOut | None = None  # as it was before it was cropped

    @classmethod
    def of(cls, found: Segmentation) -> CutOut:
        """A cut-out that is complete already, such as a recipe's."""
        return cls(found.image, found, (), found)

    @property
    def mask(self) -> np.ndarray | None:
        """(H, W) bool, or None while there is no subject."""
        return self.current.mask if self.current else None

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """The last box that was clicked: (x0, y0, x1, y1)."""
        corners = [(x, y) for x, y, label in self.points if label == BOX]
        if len(corners) < 2:
            return None
        (xa, ya), (xb, yb) = corners[len(corners) // 2 * 2 - 2 : len(corners) // 2 * 2]
        return min(xa, xb), min(ya, yb), max(xa, xb) + 1, max(ya, yb) + 1


class CutOuts:
    """Makes and corrects cut-outs, with one segmenter for all visitors; safe to call from several threads."""

    def __init__(self, sam_checkpoint: str | None = None, device: str | None = None) -> None:
        self._sam_checkpoint, self._device = sam_checkpoint, device
        self._segmenter: Segmenter | None = None
        self._lock = threading.Lock()

    def open(self, source: str | Path | Image.Image | bytes) -> CutOut:
        """Open a reference picture and find its subject; where none stands out, `trouble` says so.

        Raises:
            PictureError: the picture cannot be read.
        """
        picture, alpha = load_with_alpha(source, max_side=MAX_SIDE)
        if alpha is not None:
            return CutOut.of(Segmentation(picture, alpha, 1.0, "alpha"))
        try:
            with self._lock:
                found = self._get_segmenter().auto(picture)
        except SegmentationError as error:
            return CutOut(picture, trouble=sentence(error))
        return CutOut.of(found)

    def clicked(self, cut: CutOut, points: Sequence[Point]) -> CutOut:
        """`cut` with these clicks instead of its own; with none, it is as it was found. Its strokes lie over them.

        Where the clicks leave nothing, the last subject stays and `trouble` says so.
        """
        clicks = [point for point in points if point[2] != BOX]
        new = dataclasses.replace(cut, points=tuple(points), clicked=cut.auto)
        if not clicks and new.box is None:
            return self.painted(new, cut.strokes)
        try:
            with self._lock:
                found = self._get_segmenter().refine(cut.auto or cut.picture, clicks, new.box)
        except SegmentationError as error:
            return dataclasses.replace(new, clicked=cut.clicked or cut.auto, trouble=sentence(error))
        return self.painted(dataclasses.replace(new, clicked=found), cut.strokes)

    def painted(self, cut: CutOut, strokes: Sequence[Stroke]) -> CutOut:
        """`cut` with these strokes over what its clicks show; where they leave nothing, the last subject stays."""
        known = cut.clicked or cut.auto
        if known is None and not strokes:
            trouble = sentence(SegmentationError(NOTHING_FOUND))
            return dataclasses.replace(cut, strokes=(), current=None, trouble=trouble)
        try:
            current = painted(known or cut.picture, strokes, cut.points)
        except SegmentationError as error:
            return dataclasses.replace(cut, trouble=sentence(error))
        return dataclasses.replace(cut, strokes=tuple(strokes), current=current, trouble="")

    def undone(self, cut: CutOut) -> CutOut:
        """`cut` without its last click, stroke or crop, whichever came later."""
        if cut.whole is not None and not cut.points and not cut.strokes:
            return cut.whole
        if cut.strokes and cut.strokes[-1].after >= len(cut.points):
            return self.painted(cut, cut.strokes[:-1])
        return self.clicked(cut, cut.points[:-1])

    def as_found(self, cut: CutOut) -> CutOut:
        """`cut` without any click, stroke or crop."""
        while cut.whole is not None:
            cut = cut.whole
        return self.painted(dataclasses.replace(cut, points=(), strokes=(), clicked=cut.auto), ())

    def cropped(self, cut: CutOut, box: Box) -> CutOut:
        """The part of the picture inside `box` as a picture of its own, with what of the subject lies there.

        box: (x0, y0, x1, y1) in px of the picture, x1 and y1 exclusive. Where nothing of the subject lies there, it is
        looked for anew. Raises RequestError for a box that is too small.
        """
        x0, y0, x1, y1 = box
        if min(x1 - x0, y1 - y0) < MIN_SIDE:
            raise RequestError(f"The crop is too small: take a box of at least {MIN_SIDE} x {MIN_SIDE} pixels.")
        if (x0, y0, x1, y1) == (0, 0, *cut.picture.size):
            return cut
        part = cut.picture.crop(box)
        if cut.current is not None and (mask := cut.current.mask[y0:y1, x0:x1]).any():
            found = Segmentation(part, mask.copy(), cut.current.score, cut.current.method)
            return dataclasses.replace(CutOut.of(found), whole=cut)
        return dataclasses.replace(self.open(part), whole=cut)

    def segmented(self, image: str | None, points: Any = None) -> Segmentation:
        """The subject of a picture file, with a client's corrections. Raises PictureError, RequestError."""
        if not image:
            raise RequestError("There is no picture: send one.")
        cut = self.clicked(self.open(image), points_from(points))
        if cut.current is None or cut.trouble:
            raise RequestError(cut.trouble)
        return cut.current

    def _get_segmenter(self) -> Segmenter:
        if self._segmenter is None:
            heavy = chosen_checkpoint(self._sam_checkpoint)  # segment-anything imports torch
            with IMPORTS if heavy else contextlib.nullcontext():
                self._segmenter = Segmenter(sam_checkpoint=self._sam_checkpoint, device=self._device)
        return self._segmenter


def around(found: Segmentation) -> Box:
    """The box of a subject with a little of its surroundings, inside the picture."""
    return widened(found.box, CROP_MARGIN, found.image.size)


def points_from(values: Any) -> list[Point]:
    """Check clicks sent by a client: [[x, y, label], …] → tuples. Raises RequestError."""
    try:
        if not isinstance(values, list | tuple | None):
            raise TypeError
        points = [_point(value) for value in values or ()]
    except (TypeError, ValueError, OverflowError):
        raise RequestError("`points` must be a list of [x, y, label] with label 1 to add and 0 to remove.") from None
    if len(points) > MAX_POINTS or any(label not in (ADD, REMOVE) for *_, label in points):
        raise RequestError(f"`points` takes at most {MAX_POINTS} points, each with label 1 or 0.")
    return points


def _point(value: Any) -> Point:
    """[x, y, label] → whole pixels and the label. Raises TypeError, ValueError, OverflowError."""
    if not isinstance(value, list | tuple) or any(isinstance(number, bool) for number in value):
        raise TypeError
    x, y, label = (float(number) for number in value)
    if not label.is_integer():
        raise ValueError
    return int(x), int(y), int(label)
