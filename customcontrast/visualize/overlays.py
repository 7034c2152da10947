"""Attention and location maps as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from customcontrast.visualize.drawing import (
    INK,
    PAPER,
    SOFT,
    SUBJECT_COLORS,
    as_map,
    enlarge,
    fit,
    font,
    frame,
    label,
    shorten,
    stretch,
)

STRIP_WIDTH = 1200  # px, of a location strip
GAP = 10  # px between the cells of a figure
BRIGHTEST = 0.85  # of a colour map's range in an overlay: its palest end would wash the picture out
TILE = 192  # px, side of one word's tile


def heat_map(map: np.ndarray, size: tuple[int, int] | None = None, cmap: str = "magma") -> Image.Image:
    """A map as a picture in one of matplotlib's colour maps, from its least to its largest value.

    Args:
        map: (h, w), any range.
        size: (width, height) in px; None = one pixel a value.
        cmap: a matplotlib colour map, "gray" for the paper's look.
    """
    values = stretch(as_map(map))
    if size is not None:
        values = enlarge(values, size)
    return Image.fromarray(_colored(values, cmap))


def overlay(
    image: Image.Image,
    map: np.ndarray,
    strength: float = 0.85,
    cmap: str = "magma",
    value_range: tuple[float, float] | None = None,
) -> Image.Image:
    """A map over a picture: coloured where the map is high, dimmed and grey elsewhere.

    Args:
        image: the generated picture; the result has its size.
        map: (h, w), any range.
        strength: 0..1, how far the dim parts go to the map's dark end.
        cmap: a matplotlib colour map.
        value_range: (low, high) of the map's colours, so that several overlays compare; None = min–max.
    """
    low, high = value_range or (None, None)
    values = enlarge(stretch(as_map(map), low, high), image.size)[..., None]
    pixels = np.asarray(image.convert("RGB"), np.float32)
    gray = pixels.mean(axis=-1, keepdims=True)
    colors = _colored(BRIGHTEST * values[..., 0], cmap).astype(np.float32)
    ground = gray * (1 - 0.6 * strength)  # dim and colourless: only the map speaks in colour
    lit = 0.3 * pixels + 0.85 * colors * (0.4 + 0.6 * gray / 255)  # light and shade stay readable inside it
    amount = np.clip(strength * np.clip(values * 1.8, 0, 1) ** 0.8, 0, 1)
    return Image.fromarray((ground * (1 - amount) + lit * amount).clip(0, 255).astype(np.uint8))


def strip_steps(total: int, count: int = 6) -> tuple[int, ...]:
    """The denoising steps that a strip shows, evenly spaced.

    total: T, steps of the run. Returns `count` steps from 1, all of them where there are fewer: (1, 10, 20, 30, 40, 50)
    of 50, (1, 4, 8, 12, 16, 20) of 20.
    """
    if total <= count:
        return tuple(range(1, total + 1))
    return (1, *(max(k + 1, round(total * k / (count - 1))) for k in range(1, count)))


def location_strip(
    reference: Image.Image,
    masks: np.ndarray,
    output: Image.Image,
    steps: Sequence[int] | None = None,
    width: int = STRIP_WIDTH,
    labels: tuple[str, str] = ("Input", "Output"),
) -> Image.Image:
    """The paper's figure of the location masks: reference, soft grey masks over the steps, generated picture.

    Args:
        reference: the subject's reference picture.
        masks: (T, h, w) in 0..1, M_t of every step; white is the subject.
        output: the generated picture; its shape is the cells'.
        steps: which steps to show, from 1; None = `strip_steps(T)`.
        width: of the figure in px.
        labels: under the first and the last picture.

    Raises:
        ValueError: no masks, or a step that does not exist.
    """
    masks = np.asarray(masks, np.float32)
    if masks.ndim != 3 or len(masks) == 0:
        raise ValueError(f"masks: got shape {masks.shape}; give (T, h, w) with T ≥ 1.")
    steps = strip_steps(len(masks)) if steps is None else tuple(steps)
    wrong = [step for step in steps if not 1 <= step <= len(masks)]
    if wrong or not steps:
        raise ValueError(f"steps: got {steps}; give steps from 1 to {len(masks)}.")
    side = max(8, (width - 2 * GAP - 2 * GAP - (len(steps) + 1) * GAP) // (len(steps) + 2))
    cell = side, max(8, round(side * output.height / output.width))
    size = max(11, side // 9)
    canvas = Image.new("RGB", (width, cell[1] + 2 * GAP + size * 3 // 2), PAPER)
    soft = [enlarge(np.clip(as_map(masks[step - 1]), 0, 1), cell) for step in steps]
    cells = [
        (fit(reference, cell), labels[0], INK),
        *((Image.fromarray(_gray(m)), f"step {s}", SOFT) for m, s in zip(soft, steps, strict=True)),
        (fit(output, cell), labels[1], INK),
    ]
    used = len(cells) * side + (len(cells) + 1) * GAP  # a double gap sets the masks apart
    left = (width - used) // 2
    for number, (picture, text, color) in enumerate(cells):
        canvas.paste(picture, (left, GAP))
        frame(canvas, (left, GAP, left + side, GAP + cell[1]))
        label(canvas, left + side / 2, GAP + cell[1] + size // 2 + 1, text, side, size, color is INK, color)
        left += side + GAP * (2 if number in (0, len(cells) - 2) else 1)
    return canvas


def token_grid(
    image: Image.Image,
    maps: Mapping[str, np.ndarray],
    columns: int | None = None,
    tile: int = TILE,
    shared: bool = False,
) -> Image.Image:
    """The picture beside the attention map of each word over it, one tile a word.

    Args:
        image: the generated picture.
        maps: word -> (h, w), any range.
        columns: tiles in a row; None = so many that rows are even, at most 6.
        tile: width of a tile, px.
        shared: one colour range for all words (strong and weak words compare) instead of one for each.
    """
    values = {word: as_map(map, f"map of “{word}”") for word, map in maps.items()}
    ends = None
    if shared and values:
        ends = min(float(v.min()) for v in values.values()), max(float(v.max()) for v in values.values())
    cell = tile, max(8, round(tile * image.height / image.width))
    picture = fit(image, cell)
    tiles = [(picture, "picture", SOFT)]
    tiles += [(overlay(picture, value, value_range=ends), word, INK) for word, value in values.items()]
    rows = -(-len(tiles) // (columns or 6))
    columns = min(len(tiles), columns or -(-len(tiles) // rows))
    size = max(11, tile // 12)
    high = cell[1] + 2 * size + GAP
    canvas = Image.new("RGB", (columns * (tile + GAP) + GAP, rows * high + GAP), PAPER)
    for number, (shown, word, color) in enumerate(tiles):
        left, top = GAP + number % columns * (tile + GAP), GAP + number // columns * high
        canvas.paste(shown, (left, top))
        label(canvas, left + tile / 2, top + cell[1] + size // 3, word, tile, size, color is INK, color)
    return canvas


def subjects_overlay(
    image: Image.Image, masks: np.ndarray, names: Sequence[str] | None = None, strength: float = 0.6
) -> Image.Image:
    """The subjects' location masks over the picture, each in a colour of its own, with a legend of their names.

    Args:
        image: the generated picture; the result has its size.
        masks: (K, h, w) in 0..1.
        names: one for each subject, or None for no legend.
        strength: 0..1, of the colours.

    Raises:
        ValueError: masks of another shape.
    """
    masks = np.asarray(masks, np.float32)
    if masks.ndim != 3:
        raise ValueError(f"masks: got shape {masks.shape}; give (K, h, w).")
    pixels = np.asarray(image.convert("RGB"), np.float32)
    soft = np.stack([enlarge(np.clip(as_map(mask), 0, 1), image.size) for mask in masks] or [0 * pixels[..., 0]])
    colors = np.array([SUBJECT_COLORS[k % len(SUBJECT_COLORS)] for k in range(len(soft))], np.float32)
    total = np.maximum(soft.sum(0), 1e-6)
    tint = np.einsum("khw,kc->hwc", soft / total, colors)
    amount = strength * soft.max(0)[..., None]
    gray = pixels.mean(-1, keepdims=True)
    calm = 0.55 * pixels + 0.45 * (0.5 * gray + 110)  # elsewhere the picture steps back a little
    shaded = tint * (0.45 + 0.75 * gray / 255)
    out = calm * (1 - soft.max(0)[..., None]) + pixels * soft.max(0)[..., None]
    picture = Image.fromarray((out * (1 - amount) + shaded * amount).clip(0, 255).astype(np.uint8))
    if names:
        _legend(
            picture, [(name, SUBJECT_COLORS[k % len(SUBJECT_COLORS)]) for k, name in enumerate(names[: len(masks)])]
        )
    return picture


def _legend(picture: Image.Image, entries: list[tuple[str, tuple[int, int, int]]]) -> None:
    """Names with dots of their colours on a white plate in the lower left corner."""
    size = max(10, min(picture.size) // 26)
    face, draw, pad = font(size), ImageDraw.Draw(picture), size // 2
    entries = [(shorten(name, face, picture.width - 6 * pad), color) for name, color in entries]
    wide = round(max(face.getlength(name) for name, _ in entries)) + size + 3 * pad
    high = len(entries) * round(1.5 * size) + pad
    left, top = pad, picture.height - high - pad
    draw.rounded_rectangle((left, top, left + wide, top + high), radius=pad, fill=PAPER)
    for number, (name, color) in enumerate(entries):
        y = top + pad // 2 + round((number + 0.5) * 1.5 * size)
        draw.ellipse((left + pad, y - size * 0.36, left + pad + size * 0.72, y + size * 0.36), fill=color)
        draw.text((left + 2 * pad + size * 0.72, y), name, font=face, fill=INK, anchor="lm")


def _colored(values: np.ndarray, cmap: str) -> np.ndarray:
    """(h, w) in 0..1 -> (h, w, 3) uint8."""
    return (matplotlib.colormaps[cmap](values)[..., :3] * 255 + 0.5).astype(np.uint8)


def _gray(values: np.ndarray) -> np.ndarray:
    """(h, w) in 0..1 -> (h, w, 3) uint8 from black to white."""
    return np.repeat((values * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=-1)
