"""The reproduction record: one PNG that carries everything needed to make its picture again.

A recipe is two kinds of PNG text chunks. `customcontrast` holds the settings as JSON, readable in any
metadata viewer. `customcontrast.subject.K.R` holds reference picture R of subject K (both from 1), as
base64 of a lossless RGBA WebP whose alpha channel is the subject mask: replaying the recipe therefore
sees the very pixels of the first run. A style picture is the last K, and all of it is marked. Reading
trusts nothing: a recipe may come from a stranger.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from customcontrast.config import MAX_SUBJECTS
from customcontrast.errors import RecipeError
from customcontrast.segmentation import Segmentation

KEY = "customcontrast"
VERSION = 1
MAX_REFERENCES = 4
MAX_ROWS = MAX_SUBJECTS + 1  # subjects and a style picture
MAX_REFERENCE_PIXELS = 2048 * 2048
MAX_PICTURE_PIXELS = 8192 * 8192


References = Sequence[Sequence[Segmentation]]
"""Per subject, its reference pictures with their masks."""


def png_bytes(image: Image.Image, settings: dict[str, Any], references: References = ()) -> bytes:
    """Encode `image` as PNG with its recipe.

    Args:
        image: the generated picture, RGB.
        settings: JSON-serialisable settings of the run.
        references: per subject, its segmented reference pictures.
    """
    info = PngImagePlugin.PngInfo()
    for key, text in text_chunks(settings, references).items():
        info.add_text(key, text)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def text_chunks(settings: dict[str, Any], references: References = ()) -> dict[str, str]:
    """The recipe as PNG text chunks: keyword → ASCII text."""
    chunks = {KEY: json.dumps({"version": VERSION, **settings}, ensure_ascii=True, sort_keys=True)}
    for k, subject in enumerate(references, start=1):
        for r, segmentation in enumerate(subject, start=1):
            chunks[f"{KEY}.subject.{k}.{r}"] = _encode(segmentation)
    return chunks


def read_png(source: str | Path | bytes) -> tuple[dict[str, Any], list[list[Segmentation]]]:
    """Read a recipe back from a PNG written by :func:`png_bytes`.

    Returns:
        the settings, and per subject its reference pictures with their masks.

    Raises:
        RecipeError: the file is no PNG, or carries no recipe, or a damaged or newer one.
    """
    chunks = _read_chunks(source)
    if KEY not in chunks:
        raise RecipeError("This picture carries no recipe. Choose a PNG that was downloaded from this page.")
    try:
        settings = json.loads(chunks[KEY])
    except (ValueError, RecursionError) as error:
        raise RecipeError("The recipe in this picture is damaged; download the PNG again.") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("version"), int):
        raise RecipeError("The recipe in this picture is damaged; download the PNG again.")
    if settings["version"] > VERSION:
        raise RecipeError(f"This recipe was written by a newer release (format {settings['version']}).")
    references = []
    for k in range(1, MAX_ROWS + 1):
        keys = [f"{KEY}.subject.{k}.{r}" for r in range(1, MAX_REFERENCES + 1)]
        subject = [_decode(chunks[key]) for key in keys if key in chunks]
        if not subject:
            break
        references.append(subject)
    return settings, references


def _read_chunks(source: str | Path | bytes) -> dict[str, str]:
    handle = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(handle, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PICTURE_PIXELS:
                raise RecipeError("This picture is too large to be one of ours.")
            image.load()  # text chunks may follow the pixels
            return {key: str(text) for key, text in getattr(image, "text", {}).items()}
    except RecipeError:
        raise
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RecipeError("This file is not a readable PNG picture, so it holds no recipe.") from error


def _encode(segmentation: Segmentation) -> str:
    rgba = segmentation.image.convert("RGBA")
    rgba.putalpha(segmentation.mask_image)
    buffer = io.BytesIO()
    rgba.save(buffer, format="WEBP", lossless=True, exact=True, method=2)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _decode(text: str) -> Segmentation:
    try:
        data = base64.b64decode(text, validate=True)
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as picture:
            if picture.width * picture.height > MAX_REFERENCE_PIXELS:
                raise RecipeError("A reference picture in this recipe is too large.")
            rgba = picture.convert("RGBA")
    except (binascii.Error, UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise RecipeError("A reference picture in this recipe is damaged; download the PNG again.") from error
    mask = np.asarray(rgba.getchannel("A")) > 127
    if not mask.any():
        raise RecipeError("A reference picture in this recipe has an empty mask.")
    return Segmentation(image=rgba.convert("RGB"), mask=mask, score=1.0, method="recipe")
