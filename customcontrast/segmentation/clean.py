"""From probabilities to a mask with a smooth border and without specks."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

WORK_SIDE = 512  # longer side at which masks are cleaned, px
PART = 0.3  # a separate part stays when it has this share of the heaviest part's weight
HOLE = 0.01  # holes up to this share of the mask's area are filled; larger ones are real (handles, wheels)


def work_size(size: tuple[int, int], side: int = WORK_SIDE) -> tuple[int, int]:
    """A size (width, height) reduced to `side` px on its longer side; a smaller one as it is."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (h, w) resized to float32 (height, width) of `size`: bilinear, antialiased where it shrinks."""
    picture = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


def main_parts(mask: np.ndarray, weight: np.ndarray, share: float = PART) -> np.ndarray:
    """The heaviest connected part of a mask (h, w) bool, and those of at least `share` of its weight (h, w)."""
    count, labels, _, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    heavy = np.bincount(labels.ravel(), (weight * mask).ravel(), count)
    keep = np.flatnonzero(heavy[1:] >= share * heavy[1:].max()) + 1
    return np.isin(labels, keep)


def fill_holes(mask: np.ndarray, share: float = HOLE) -> np.ndarray:
    """A mask (h, w) bool with the holes filled that are smaller than `share` of its area."""
    outside = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
    small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] <= share * mask.sum())
    small = small[small != 0]  # label 0 is the mask itself
    small = small[small != labels[0, 0]]
    return mask | np.isin(labels, small)[1:-1, 1:-1]


def clean(probability: np.ndarray, size: tuple[int, int], share: float = PART) -> np.ndarray:
    """The mask of a probability map: its main parts without holes and specks, with a smooth border.

    probability: (h, w) in 0..1 at work size. share: see `main_parts`; a part weighs by its pixels close to 1, where
    both passes of U²-Net agree. Returns (height, width) bool of `size` px.
    """
    weight = np.clip(4 * probability - 3, 0.01, 1)
    mask = fill_holes(main_parts(probability > 0.5, weight, share))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel) > 0
    mask = main_parts(opened, weight, share) if opened.any() else mask
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(mask.shape) / 500, borderType=cv2.BORDER_REPLICATE)
    return resize(soft, size) > 0.5
