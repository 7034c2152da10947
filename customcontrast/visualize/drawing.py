"""Typography, colours and small drawing steps shared by all figures."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, SOFT, LINE, PAPER = (31, 41, 55), (107, 114, 128), (222, 226, 231), (255, 255, 255)
# One colour a subject, distinct for colour-blind readers too (after Okabe and Ito).
SUBJECT_COLORS = ((230, 129, 0), (0, 114, 178), (0, 158, 115), (204, 90, 160), (86, 180, 233), (213, 94, 0))
BICUBIC = Image.Resampling.BICUBIC


@cache
def _font_file(bold: bool) -> str:
    """DejaVu Sans as it comes with matplotlib: the same letters on every machine, Greek and accents included."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """A font of `size` px; a new object for each call, since Pillow's are not made to be shared by threads."""
    return ImageFont.truetype(_font_file(bold), size)


def as_map(values: np.ndarray, argument: str = "map") -> np.ndarray:
    """(h, w) numbers -> float32, finite. Raises ValueError for another number of axes or an empty map."""
    values = np.asarray(values, np.float32)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"{argument}: got shape {values.shape}; give one map (h, w).")
    return np.nan_to_num(values, posinf=0.0, neginf=0.0)


def stretch(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Values scaled linearly: low (default: the least) to 0, high (the largest) to 1; a flat map becomes 0."""
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    if high - low < 1e-8:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0, 1)


def enlarge(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Map (h, w) in 0..1 -> float32 (height, width) of `size`, smoothly, still in 0..1."""
    picture = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.clip(np.asarray(picture.resize(size, BICUBIC)), 0, 1)


def fit(image: Image.Image, size: tuple[int, int], ground: tuple[int, int, int] = PAPER) -> Image.Image:
    """The whole picture scaled to fit a cell of `size` (width, height) px, centred on a plain ground."""
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    method = Image.Resampling.LANCZOS if scale < 1 else BICUBIC
    cell = Image.new("RGB", size, ground)
    picture = image.convert("RGB").resize(inner, method)
    cell.paste(picture, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return cell


def shorten(text: str, face: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` px."""
    text = " ".join(str(text).split())
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def label(
    canvas: Image.Image,
    center: float,
    top: float,
    text: str,
    width: int,
    size: int = 15,
    bold: bool = False,
    color: tuple[int, int, int] = INK,
) -> None:
    """One line of text, centred at `center` px, its top at `top` px, no wider than `width` px."""
    face = font(size, bold)
    ImageDraw.Draw(canvas).text((center, top), shorten(text, face, width), font=face, fill=color, anchor="ma")


def frame(canvas: Image.Image, box: tuple[int, int, int, int], color: tuple[int, int, int] = LINE) -> None:
    """A hairline around the pixels x0..x1-1, y0..y1-1, just outside them."""
    x0, y0, x1, y1 = box
    ImageDraw.Draw(canvas).rectangle((x0 - 1, y0 - 1, x1, y1), outline=color)
