"""Clicks and boxes without SAM: a first guess from what is known, then GrabCut (Rother et al. 2004).

A click means a place and what looks connected to it. Connection is the cost of the cheapest path over the picture,
where crossing an edge of colour is expensive (a geodesic distance). Pixels of which the first guess is certain, and
which no click reaches, are fixed: GrabCut decides the rest alone, so that one click cannot upset a mask that was right
elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from customcontrast.segmentation.clean import work_size
from customcontrast.segmentation.clicks import Points

PATH_SIDE = 160  # longer side of the grid on which paths are measured, px
REACH = 0.3  # a click acts on pixels within this path cost; crossing a plain picture costs 1
SURE = 0.08  # and is certain within this one
EDGE = 0.02  # path cost of a step over a typical strong edge of the picture
UNSURE = 0.35  # a prior within this distance of 0.5 leaves the decision to GrabCut
CLICK = 0.012  # radius of the certain disc around a click, share of the longer side
ROUNDS = 3  # GrabCut iterations


def path_cost(colors: np.ndarray, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Cost of the cheapest path from the nearest of `points` to every pixel: (h, w) float32; inf without points.

    A step costs its length (the longer side is 1) and the square of the colour difference, measured against
    the picture's own strong edges (their 95th percentile), so that dim pictures have edges too.

    Args:
        colors: (h, w, 3) float.
        points: (x, y) in pixels of `colors`.
    """
    from scipy.sparse import coo_matrix  # slow to import, and a page without clicks does not need it
    from scipy.sparse.csgraph import dijkstra

    height, width = colors.shape[:2]
    if not points:
        return np.full((height, width), np.inf, np.float32)
    index = np.arange(height * width).reshape(height, width)
    steps = []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = (slice(0, height - dy), slice(max(0, -dx), width - max(0, dx)))
        there = (slice(dy, height), slice(max(0, dx), width + min(0, dx)))
        difference = np.linalg.norm(colors[here] - colors[there], axis=-1) / np.hypot(dx, dy)
        steps.append((index[here], index[there], difference, np.hypot(dx, dy)))
    strong = max(float(np.percentile(np.concatenate([s[2].ravel() for s in steps]), 95)), 1e-3)
    step_costs = [length * (1 / max(height, width) + EDGE * (d / strong) ** 2) for *_, d, length in steps]
    rows, columns, costs = (
        np.concatenate([x.ravel() for x in xs])
        for xs in zip(
            *((here, there, cost) for (here, there, *_), cost in zip(steps, step_costs, strict=True)), strict=True
        )
    )
    graph = coo_matrix((costs, (rows, columns)), shape=(index.size,) * 2).tocsr()
    starts = {min(int(y), height - 1) * width + min(int(x), width - 1) for x, y in points}
    cost = dijkstra(graph, directed=False, indices=sorted(starts), min_only=True, limit=3.0)
    return cost.reshape(height, width).astype(np.float32)


def first_guess(colors: np.ndarray, prior: np.ndarray | None, points: Points) -> tuple[np.ndarray, np.ndarray]:
    """A prior corrected by clicks, and where the clicks are certain.

    Args:
        colors: (h, w, 3) uint8.
        prior: (h, w) in 0..1, or None: then the guess is what lies nearer to the subject's clicks than to the
            others and to the picture's border.
        points: clicks in pixels of `colors`.

    Returns:
        guess: (h, w) in 0..1.
        settled: (h, w) int8: 1 and -1 where the clicks leave no doubt (subject, not the subject), 0 where they
            do not act, 2 where the guess follows them but GrabCut may decide otherwise.
    """
    height, width = colors.shape[:2]
    if not points and prior is not None:
        return prior, np.where(np.abs(prior - 0.5) < UNSURE, 2, 0).astype(np.int8)
    grid = work_size((width, height), PATH_SIDE)
    coarse = cv2.resize(colors, grid, interpolation=cv2.INTER_AREA).astype(np.float32)
    scale = grid[0] / width, grid[1] / height
    yes = [(x * scale[0], y * scale[1]) for x, y, label in points if label]
    no = [(x * scale[0], y * scale[1]) for x, y, label in points if not label]

    def cost_of(clicks: Sequence[tuple[float, float]]) -> np.ndarray:
        return cv2.resize(np.minimum(path_cost(coarse, clicks), 9), (width, height))

    to_yes, to_no = cost_of(yes), cost_of(no)
    if prior is None:
        frame = [(x, y) for x in range(grid[0]) for y in (0, grid[1] - 1)]
        frame += [(x, y) for y in range(grid[1]) for x in (0, grid[0] - 1)]
        to_no = np.minimum(to_no, cost_of(frame) + REACH / 4)
        return (to_yes < to_no).astype(np.float32), np.full((height, width), 2, np.int8)
    beside = [
        (x, y) for x, y, label in points if label and prior[min(int(y), height - 1), min(int(x), width - 1)] < 0.5
    ]
    to_beside = cost_of([(x * scale[0], y * scale[1]) for x, y in beside])
    to_subject = (to_beside < REACH) & (to_beside <= to_no) & (prior < 0.5)
    to_ground = (to_no < REACH) & (to_no < to_yes)
    guess = np.where(to_ground, 0.0, np.where(to_subject, 1.0, prior)).astype(np.float32)
    settled = np.where(to_subject | to_ground | (np.abs(prior - 0.5) < UNSURE), 2, 0)
    settled[to_subject & (to_beside < SURE)] = 1
    settled[to_ground & (to_no < SURE)] = -1
    return guess, settled.astype(np.int8)


def grabcut(
    colors: np.ndarray,
    guess: np.ndarray,
    settled: np.ndarray,
    points: Points,
    inside: np.ndarray | None = None,
) -> np.ndarray:
    """The mask (h, w) bool that GrabCut makes of a first guess.

    Args:
        colors: (h, w, 3) uint8 RGB.
        guess: (h, w) in 0..1.
        settled: (h, w) what the clicks settle, as `first_guess` gives it.
        points: clicks in pixels of `colors`.
        inside: (h, w) bool, outside of which nothing is subject (a box), or None.
    """
    height, width = guess.shape
    mask = np.where(guess > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    band = max(1, round(max(height, width) * 0.02))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * band + 1,) * 2)
    core = cv2.erode((guess > 0.5).astype(np.uint8), kernel, borderValue=1) > 0
    far = cv2.dilate((guess > 0.5).astype(np.uint8), kernel) == 0
    mask[(core & (settled == 0)) | (settled == 1)] = cv2.GC_FGD
    mask[(far & (settled == 0)) | (settled == -1)] = cv2.GC_BGD
    if inside is not None:
        mask[~inside] = cv2.GC_BGD
    radius = max(1, round(CLICK * max(height, width)))
    for x, y, label in points:
        cv2.circle(mask, (int(x), int(y)), radius, cv2.GC_FGD if label else cv2.GC_BGD, -1)
    subject = (mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)
    if not subject.any() or subject.all():
        return subject
    models = np.zeros((1, 65)), np.zeros((1, 65))
    try:
        cv2.setRNGSeed(0)
        cv2.grabCut(colors, mask, None, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few colours on one side for its five-part model: the guess stands
        return subject
    return (mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)
