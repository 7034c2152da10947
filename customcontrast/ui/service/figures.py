"""A `Result` or a `Segmentation` → the pictures that explain it, through `visualize`; no model code."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from customcontrast import visualize
from customcontrast.errors import ViewError
from customcontrast.output import Result
from customcontrast.segmentation import Segmentation
from customcontrast.ui.service.cutouts import ADD, BOX, REMOVE, CutOut
from customcontrast.ui.service.request import ANYWHERE, place_box

if TYPE_CHECKING:
    from customcontrast.toyland.feature_atlas import Atlas

VIEW_SIDE = 384  # px, least side of an overlay, so that small pictures can be read
HOVER_SIDE, HOVER_WORDS = 256, 24  # px, least side, and how many words, of the maps that a hover shows
MARKS = ".,;:!?"  # around a word
GHOST = 0.22  # how much of the background still shows through the checkerboard


DOTS = {ADD: (22, 163, 74), REMOVE: (220, 38, 38), BOX: (37, 99, 235)}


def cutout(cut: CutOut) -> Image.Image:
    """The subject over a checkerboard, its surroundings faint so that one can click what is missing.

    The clicks are drawn as dots: green = added, red = removed, blue = a corner of the box. Size of the picture.
    """
    w, h = cut.picture.size
    board = visualize.checkerboard(Image.new("RGBA", (w, h)))
    ground = Image.blend(board, cut.picture, GHOST if cut.current else 0.8)
    picture = Image.composite(cut.picture, ground, cut.current.mask_image) if cut.current else ground
    draw, radius = ImageDraw.Draw(picture), max(2, max(h, w) // 80)
    if cut.box:
        x0, y0, x1, y1 = cut.box
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=DOTS[BOX], width=max(1, radius // 2))
    for x, y, label in cut.points:
        circle = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(circle, fill=DOTS[label], outline="white", width=max(1, radius // 3))
    return picture


def data_url(picture: Image.Image) -> str:
    """A picture as the address of itself (JPEG), for a surface that is drawn on."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def place_frame(place: str) -> str:
    """A place (see `request.read_place`) as a small SVG of the new picture, 100 wide and high."""
    words = {"": ("where the model", "finds it best"), ANYWHERE: ("anywhere,", "without a mask")}
    x0, y0, x1, y1 = place_box(place) or (0, 0, 0, 0)
    lines = "".join(f'<text x="50" y="{46 + 11 * row}">{text}</text>' for row, text in enumerate(words.get(place, ())))
    box = f'<rect class="place" x="{x0:g}" y="{y0:g}" width="{x1 - x0:g}" height="{y1 - y0:g}"/>'
    where = " ".join(words.get(place, (f"in the box {x0:g}, {y0:g}, {x1:g}, {y1:g} percent",)))
    return (
        f'<svg viewBox="-1 -1 102 102" role="img" aria-label="The new picture; the subject stands {where}">'
        f'<rect class="ground" width="100" height="100" rx="2"/>{box}{lines}</svg>'
    )


def strip(result: Result, index: int, references: Sequence[Segmentation]) -> Image.Image | None:
    """Location masks over time in the layout of the paper's figure; one row for each subject."""
    masks = result.location_masks[index]  # (T, K, h, w)
    if masks.size == 0:
        return None
    rows = [
        visualize.location_strip(reference.on_plain(), masks[:, k], result.images[index])
        for k, reference in enumerate(references[: masks.shape[1]])
    ]
    return stack(rows)


def thumbnail(cut: CutOut, side: int) -> Image.Image:
    """A small picture of a cut-out, as :func:`cutout` without its clicks."""
    small = cutout(replace(cut, points=()))
    small.thumbnail((side, side))
    return small


def atlas(known: Atlas, new: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """New subjects (name, place) among known ones."""
    return visualize.atlas_plot(known.places, known.subjects, new)


def alike(known: Atlas, rows: Sequence[tuple[str, Segmentation, Sequence[tuple[int, float]]]]) -> Image.Image:
    """For each new subject its picture and the known ones nearest to it, with their cosine."""
    return stack(
        [
            visualize.compare_row(
                [reference.on_plain(), *(known.picture(i) for i, _ in near)],
                [noun, *(f"{cosine:.2f}" for _, cosine in near)],
                height=128,
            )
            for noun, reference, near in rows
        ]
    )


def step_overlay(
    result: Result, index: int, step: int, names: Sequence[str], picture: Image.Image | None = None
) -> Image.Image:
    """The location masks of one step (from 1), each subject in its colour, over the picture as it was then.

    picture: None = the finished one.
    """
    picture = enlarged(picture or result.images[index])
    masks = result.location_masks[index]
    if masks.size == 0:  # made without a subject
        return picture
    return visualize.subjects_overlay(picture, masks[_clamp(step, len(masks)) - 1], list(names))


def area_plot(result: Result, index: int, names: Sequence[str]) -> Image.Image | None:
    """How large each subject's mask is and where its centre goes, step by step."""
    masks = result.location_masks[index]
    return visualize.area_plot(masks, list(names)) if masks.size else None


def animations(
    result: Result,
    index: int,
    names: Sequence[str],
    paths: Sequence[Path],
    forming: Callable[[int], Image.Image] | None = None,
) -> list[Path]:
    """All steps of :func:`step_overlay` as GIF or MP4, one file for each path; [] for a picture without subjects.

    forming: step (from 1) → the picture as it was then.
    """
    if result.location_masks.size == 0:
        return []
    steps = range(1, result.location_masks.shape[1] + 1)
    frames = [step_overlay(result, index, s, names, forming(s) if forming else None) for s in steps]
    return [visualize.animation(frames, path) for path in paths]


def word_map(result: Result, index: int, word: int, step: int = 0, layers: str = "") -> np.ndarray:
    """Where a word acted in the text branch: (h, w), mean over its tokens.

    step: from 1; 0 = mean over all steps. layers: a key of `by_resolution` ("12x12"; then over all steps), "" = all.
    """
    tokens = list(result.words[word][1])
    return _mean(result.by_resolution[layers]["text"][index] if layers else result.text_maps[index], tokens, step)


def subject_map(result: Result, index: int, subject: int, step: int = 0, layers: str = "") -> np.ndarray:
    """Where a subject's picture acted in the visual branch: (h, w); `step` and `layers` as in `word_map`."""
    maps = result.by_resolution[layers].get("visual") if layers else result.visual_maps
    if maps is None:
        raise ViewError("This model's visual branch keeps no map.")
    return _mean(maps[index], [subject], step)


def _mean(maps: np.ndarray, channels: list[int], step: int) -> np.ndarray:
    """(T, C, h, w) or, over all steps already, (C, h, w) -> the mean of some channels at a step (h, w)."""
    chosen = maps[..., channels, :, :].astype(np.float32).mean(axis=-3)
    if chosen.ndim == 2:
        return chosen
    return chosen.mean(axis=0) if step < 1 else chosen[_clamp(step, len(chosen)) - 1]


def named_map(result: Result, index: int, name: str, step: int = 0) -> np.ndarray:
    """A map (h, w) by name: a word of the prompt, or “visual:1” for the first subject's picture.

    Raises:
        ViewError: there is no such word, subject or picture.
    """
    if not 0 <= index < len(result.images):
        raise ViewError(f"There is no picture {index}; there are {len(result.images)}, counted from 0.")
    total = result.text_maps.shape[1]
    if not 0 <= step <= total:
        raise ViewError(f"There is no step {step}; this picture has 1 to {total}, and 0 is the mean over all of them.")
    name = " ".join(str(name or "").split())
    match = re.fullmatch(r"visual:(\d{1,9})", name)
    if match:
        subject, count = int(match[1]), result.visual_maps.shape[2]
        if not 1 <= subject <= count:
            raise ViewError(f"There is no subject {subject}; this picture has {count}.")
        return subject_map(result, index, subject - 1, step)
    words = word_names(result)
    for same in (str, str.lower, lambda text: text.strip(MARKS).lower()):  # as written, or else without its marks
        found = [i for i, word in enumerate(words) if same(word) == same(name)]
        if found:
            return word_map(result, index, found[0], step)
    raise ViewError(f"The word “{name}” is not in the prompt; its words are: {', '.join(words)}.")


def word_names(result: Result) -> list[str]:
    """The words of a run's prompt, each with a name of its own: the second “bear” is “bear #2”."""
    words = [text for text, _ in result.words]
    again = [words[:i].count(word) for i, word in enumerate(words)]
    return [f"{word} #{n + 1}" if n else word for word, n in zip(words, again, strict=True)]


def map_overlay(result: Result, index: int, values: np.ndarray) -> Image.Image:
    """A map (h, w) in colour over the picture."""
    return visualize.overlay(enlarged(result.images[index]), values)


def looked_at(
    result: Result, index: int, subject: int, references: Sequence[Segmentation], place: tuple[float, float] | None
) -> Image.Image | None:
    """Which parts of a subject's reference pictures a place of the picture attended to, in colour over them.

    place: (x, y) in fractions of the picture; None = where the subject is. None for a run that recorded nothing of it.
    """
    if subject >= len(result.looked_at):
        return None
    maps = result.looked_at[subject][index].astype(np.float32)  # (h, w, references, patches high, patches wide)
    h, w = maps.shape[:2]
    at = None if place is None else (min(int(place[1] * h), h - 1), min(int(place[0] * w), w - 1))
    values = maps.mean((0, 1)) if at is None else maps[at]
    top = (0.0, max(float(values.max()), 1e-9))
    pictures = [
        visualize.overlay(reference.on_plain(size=VIEW_SIDE), patches, value_range=top)
        for reference, patches in zip(references, values, strict=False)
    ]
    return visualize.compare_row(pictures, [f"picture {i + 1}" for i in range(len(pictures))], height=240)


def grid(result: Result, index: int, step: int = 0) -> Image.Image:
    """The picture and the text map of every word of the prompt."""
    maps = {name: word_map(result, index, word, step) for word, name in enumerate(word_names(result))}
    return visualize.token_grid(result.images[index], maps)


def hover_words(result: Result, index: int, labels: Sequence[str]) -> str:
    """The picture and a button for each word, which carries the picture with that word's map over it; as HTML.

    labels: what is written for each word.
    """
    if not result.words or result.text_maps.size == 0:
        return ""
    buttons = []
    for word, name in enumerate(labels[:HOVER_WORDS]):
        overlaid = data_url(
            visualize.overlay(enlarged(result.images[index], HOVER_SIDE), word_map(result, index, word))
        )
        buttons.append(f'<button type="button" data-map="{overlaid}">{html.escape(name)}</button>')
    picture = data_url(enlarged(result.images[index], HOVER_SIDE))
    return (
        f'<div class="cc-hover"><img src="{picture}" data-picture="{picture}" alt="The picture; a word’s map lies over '
        f'it">'
        f'<div class="cc-hover-words" role="group" aria-label="Words of the prompt">{"".join(buttons)}</div></div>'
    )


def explained(result: Result, index: int, names: Sequence[str], labels: Sequence[str], word: int) -> str:
    """What the maps of this very picture say, in three small figures with a sentence each; as HTML.

    names: of the subjects. labels: of the words. word: whose map is the second figure; the third is that of the
    prompt's last word.
    """
    if not result.words or result.text_maps.size == 0:
        return ""
    picture, masks = enlarged(result.images[index], HOVER_SIDE), result.location_masks[index]
    mask = masks[-1] if masks.size else None  # (K, h, w) of the last step
    rows = []
    if mask is not None:
        parts = [
            f"the {name} fills {float(one.mean()):.0%} of it, {_where(one)}"
            for name, one in zip(names, mask, strict=False)
        ]
        rows.append(
            (
                visualize.subjects_overlay(picture, mask, list(names)),
                f"Location mask. This is where the last step placed the subject in your picture: {'; '.join(parts)}. "
                "Your subject’s details flow in here alone, and its own words act here alone.",
            )
        )
    for chosen in dict.fromkeys((word, len(labels) - 1)):
        values = word_map(result, index, chosen)
        caption = f"Word map. Bright is where “{labels[chosen]}” acted while this picture was drawn, over all steps."
        if mask is not None and mask.shape[-2:] == values.shape and values.sum() > 0:
            inside = float((values * mask.max(0)).sum() / values.sum())
            share = float(mask.max(0).mean())
            caption += f" {inside:.0%} of it lies inside the location mask, which is {share:.0%} of the picture."
        rows.append((visualize.overlay(picture, values), caption))
    figures = "".join(
        f'<figure><img src="{data_url(image)}" alt=""><figcaption>{html.escape(text)}</figcaption></figure>'
        for image, text in rows
    )
    return f'<div class="cc-explained">{figures}</div>'


def _where(mask: np.ndarray) -> str:
    """The middle of a mask (h, w) in words."""
    total = max(float(mask.sum()), 1e-6)
    h, w = mask.shape
    x, y = (
        float((mask.sum(0) * (np.arange(w) + 0.5)).sum() / total / w),
        float((mask.sum(1) * (np.arange(h) + 0.5)).sum() / total / h),
    )
    across = "left of" if x < 0.45 else "right of" if x > 0.55 else ""
    down = "above" if y < 0.45 else "below" if y > 0.55 else ""
    return f"its middle {' and '.join(filter(None, (across, down)))} the centre" if across or down else "in the centre"


def enlarged(image: Image.Image, side: int = VIEW_SIDE) -> Image.Image:
    """`image`, scaled up by a whole number until its shorter side is at least `side` px."""
    factor = max(1, -(-side // min(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


def stack(pictures: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Pictures below one another, `gap` px between them, on white."""
    high = sum(p.height + gap for p in pictures) - gap
    whole = Image.new("RGB", (max(p.width for p in pictures), high), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height + gap
    return whole


def _clamp(step: int, total: int) -> int:
    return max(1, min(int(step), total))
