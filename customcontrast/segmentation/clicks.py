"""Clicks and boxes: their checks, and a box as a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from customcontrast.errors import SegmentationError

Click = tuple[float, float, int]  # (x, y, label) in pixels; label 1: subject, 0: not the subject
Points = Sequence[Click]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


def check_points(points: Points, size: tuple[int, int]) -> list[Click]:
    """Clicks on a picture of `size`, checked. Raises SegmentationError for one outside it or with another label."""
    checked = []
    if not isinstance(points, list | tuple):
        raise SegmentationError(f"points: got {points!r}; give a list of (x, y, label), one for each click.")
    for point in points:
        try:
            x, y, label = (float(value) for value in point)
        except (TypeError, ValueError):
            raise SegmentationError(f"points: got {point!r}; give (x, y, label) for each click.") from None
        if not (0 <= x < size[0] and 0 <= y < size[1]):
            raise SegmentationError(
                f"points: the click at ({x:g}, {y:g}) is outside the picture of {size[0]} x {size[1]} "
                "pixels; click on the picture."
            )
        if label not in (0, 1):
            raise SegmentationError(f"points: got the label {label:g}; give 1 on the subject or 0 beside it.")
        checked.append((x, y, int(label)))
    return checked


def check_box(box: Box | None, size: tuple[int, int]) -> Box | None:
    """The part of a box that lies on a picture of `size`. Raises SegmentationError where that is under 4 x 4 px."""
    if box is None:
        return None
    try:
        x0, y0, x1, y1 = (float(value) for value in box)
    except (TypeError, ValueError):
        raise SegmentationError(f"box: got {box!r}; give (x0, y0, x1, y1) in pixels.") from None
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise SegmentationError(f"box: got {box!r}; give (x0, y0, x1, y1) in pixels.")
    x0, x1 = sorted((min(max(x0, 0), size[0]), min(max(x1, 0), size[0])))
    y0, y1 = sorted((min(max(y0, 0), size[1]), min(max(y1, 0), size[1])))
    if x1 - x0 < 4 or y1 - y0 < 4:
        raise SegmentationError("box: the box holds fewer than 4 x 4 pixels; draw it around the whole subject.")
    return x0, y0, x1, y1


def box_mask(box: Box, size: tuple[int, int], at: tuple[int, int]) -> np.ndarray:
    """A box on a picture of `size` as a mask (h, w) bool of the size `at` (width, height)."""
    rows, columns = np.mgrid[: at[1], : at[0]] + 0.5
    x, y = columns * size[0] / at[0], rows * size[1] / at[1]
    return (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])
