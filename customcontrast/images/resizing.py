"""Pictures made smaller."""

from __future__ import annotations

from PIL import Image


def reduced(picture: Image.Image, side: int, reducing_gap: float | None = 3.0) -> Image.Image:
    """The picture with its shorter side reduced to `side`, px; a smaller one as it is (never enlarged).

    reducing_gap: see Pillow's `resize`; None is exact, and slower for large pictures.
    """
    scale = side / min(picture.size)
    if scale >= 1:
        return picture
    return picture.resize([round(x * scale) for x in picture.size], Image.Resampling.LANCZOS, reducing_gap=reducing_gap)
