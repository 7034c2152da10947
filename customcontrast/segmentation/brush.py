"""Strokes of a brush: their checks, and the mask under them.

A stroke is a path and a radius rather than pixels, so that it is small, exact, and can be undone. What is painted is
final: later strokes lie over earlier ones, and no method decides these pixels again. A later click of the opposite
label undoes the part of a stroke that it falls on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from PIL import Image

from customcontrast.errors import SegmentationError
from customcontrast.segmentation.result import Segmentation

MAX_PATH = 4096  # places on the path of one stroke
MAX_STROKES = 200  # on one picture
NOTHING_PAINTED = "nothing is left of the subject: paint over it with “Add”."


@dataclass(frozen=True)
class Stroke:
    """One stroke of the brush, as `check_stroke` returns it."""

    path: tuple[tuple[float, float], ...]  # (x, y) in pixels of the picture; may run over its border
    radius: float  # px, at least 0.5
    label: int  # 1: this belongs to the subject, 0: it does not
    after: int = 0  # how many clicks came before it


def check_stroke(path: Any, radius: Any, label: int, size: tuple[int, int], after: int = 0) -> Stroke:
    """Check a stroke on a picture of `size`; any values may come. Raises SegmentationError.

    path: places (x, y) and radius in px; label: 1 = subject, 0 = not; after: how many clicks came before it.
    """
    try:
        places = tuple((float(x), float(y)) for x, y in path)
        radius = float(radius)
    except (TypeError, ValueError, OverflowError):
        raise SegmentationError("stroke: a stroke must be a list of places (x, y) and a radius in pixels.") from None
    if not 1 <= len(places) <= MAX_PATH:
        raise SegmentationError(f"stroke: the stroke has {len(places)} places; paint with 1 to {MAX_PATH:,} of them.")
    if not all(math.isfinite(value) and abs(value) < 1e6 for place in places for value in place):
        raise SegmentationError("stroke: a place of the stroke is far outside the picture; paint on the picture.")
    if not 0.5 <= radius <= max(size):
        raise SegmentationError(f"stroke: the brush's radius is {radius:g} px; it must be 0.5 to {max(size)} px.")
    if label not in (0, 1):
        raise SegmentationError("stroke: choose “Add” or “Remove” before you paint.")
    return Stroke(places, radius, int(label), after)


def covered(stroke: Stroke, size: tuple[int, int]) -> np.ndarray:
    """The pixels under a stroke on a picture of `size`: (height, width) bool, with round ends and corners."""
    canvas = np.zeros((size[1], size[0]), np.uint8)
    places = np.round(np.array(stroke.path)).astype(np.int32)
    cv2.polylines(canvas, [places.reshape(-1, 1, 2)], False, 1, max(1, round(2 * stroke.radius)))
    for x, y in places:  # a single dab has no line, and corners of a line are not round
        cv2.circle(canvas, (int(x), int(y)), int(stroke.radius), 1, -1)
    return canvas > 0


def without_refuted(area: np.ndarray, stroke: Stroke, clicks: Sequence[tuple[float, float, int]]) -> np.ndarray:
    """The pixels of a stroke (h, w) bool without the connected parts that a later click of the other label hits."""
    height, width = area.shape
    against = [(int(x), int(y)) for x, y, label in clicks[stroke.after :] if label == 1 - stroke.label]
    against = [(x, y) for x, y in against if 0 <= x < width and 0 <= y < height and area[y, x]]
    if not against:
        return area
    _, parts = cv2.connectedComponents(area.astype(np.uint8))
    return area & ~np.isin(parts, [parts[y, x] for x, y in against])


def paint(mask: np.ndarray, strokes: Sequence[Stroke], clicks: Sequence[tuple[float, float, int]] = ()) -> np.ndarray:
    """A mask (h, w) bool with strokes painted over it, in their order.

    clicks: all clicks on the picture, with any labels; see `without_refuted`.
    """
    mask = mask.copy()
    for stroke in strokes:
        area = covered(stroke, (mask.shape[1], mask.shape[0]))
        mask[without_refuted(area, stroke, clicks)] = bool(stroke.label)
    return mask


def painted(
    known: Segmentation | Image.Image, strokes: Sequence[Stroke], clicks: Sequence[tuple[float, float, int]] = ()
) -> Segmentation:
    """The segmentation after strokes of the brush.

    known: a segmentation, or a picture that has none yet. clicks: see `paint`. Returns `known` itself where the strokes
    change nothing. Raises SegmentationError where no pixel of the subject is left.
    """
    if isinstance(known, Segmentation):
        if not strokes:
            return known
        mask = paint(known.mask, strokes, clicks)
        if np.array_equal(mask, known.mask):
            return known
    else:
        mask = paint(np.zeros((known.height, known.width), bool), strokes, clicks)
    if not mask.any():
        raise SegmentationError(NOTHING_PAINTED)
    if isinstance(known, Segmentation):
        return replace(known, mask=mask, score=1.0, method="drawn")
    return Segmentation(known, mask, 1.0, "drawn")
