"""The reproduction record: what goes into a PNG comes out of it, and nothing else is believed."""

from __future__ import annotations

import base64
import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from customcontrast.errors import RecipeError
from customcontrast.segmentation import Segmentation
from customcontrast.ui.service.recipe import KEY, MAX_SUBJECTS, png_bytes, read_png, text_chunks

SETTINGS = {"prompt": "a bear “S*” on the beach", "seed": 7, "subjects": [{"noun": "bear", "strength": 1.0}]}


def blob(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Segmentation:
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, bool)
    mask[8:30, 5:20] = True
    return Segmentation(Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)), mask)


def png_with(**chunks: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, text in chunks.items():
        info.add_text(key.replace("_", "."), text)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_roundtrip_is_exact():
    references = [[blob(0), blob(1)], [blob(2, (33, 57))]]
    picture = Image.fromarray(np.random.default_rng(9).integers(0, 255, (16, 24, 3), np.uint8))
    data = png_bytes(picture, SETTINGS, references)
    settings, found = read_png(data)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(picture))
    assert {key: settings[key] for key in SETTINGS} == SETTINGS
    assert [len(subject) for subject in found] == [2, 1]
    each = itertools.chain.from_iterable
    for before, after in zip(each(references), each(found), strict=True):
        assert np.array_equal(np.asarray(before.image), np.asarray(after.image))  # under the transparent part too
        assert np.array_equal(before.mask, after.mask)


def test_settings_are_readable_by_any_metadata_viewer():
    chunks = text_chunks(SETTINGS)
    assert json.loads(chunks[KEY])["prompt"] == SETTINGS["prompt"]
    assert all(text.isascii() for text in text_chunks(SETTINGS, [[blob()]]).values())


def test_large_references_survive_pillows_limit_on_text():
    rng = np.random.default_rng(0)
    noisy = Segmentation(Image.fromarray(rng.integers(0, 255, (768, 768, 3), np.uint8)), np.ones((768, 768), bool))
    _, found = read_png(png_bytes(Image.new("RGB", (8, 8)), SETTINGS, [[noisy]] * MAX_SUBJECTS))
    assert len(found) == MAX_SUBJECTS


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"this is a text file", "not a readable PNG"),
        (b"", "not a readable PNG"),
        (png_bytes(Image.new("RGB", (64, 64)), SETTINGS)[:60], "not a readable PNG"),
        (_png(Image.new("1", (12_000, 12_000))), "too large"),
        (png_with(), "carries no recipe"),
        (png_with(customcontrast="{not json"), "damaged"),
        (png_with(customcontrast="[1, 2]"), "damaged"),
        (png_with(customcontrast='{"version": 99}'), "newer"),
        (png_with(customcontrast='{"version": 1}', customcontrast_subject_1_1="%%%"), "damaged"),
        (
            png_with(customcontrast='{"version": 1}', customcontrast_subject_1_1=base64.b64encode(b"GIF89a").decode()),
            "damaged",
        ),
    ],
)
def test_what_is_no_recipe_gets_one_sentence(data: bytes, said: str):
    with pytest.raises(RecipeError, match=said) as caught:
        read_png(data)
    assert "\n" not in str(caught.value)


def test_a_huge_reference_is_refused():
    buffer = io.BytesIO()
    Image.new("RGBA", (3000, 3000), (0, 0, 0, 255)).save(buffer, format="WEBP", lossless=True)
    text = base64.b64encode(buffer.getvalue()).decode()
    with pytest.raises(RecipeError, match="too large"):
        read_png(png_with(customcontrast='{"version": 1}', customcontrast_subject_1_1=text))


def test_an_empty_mask_is_refused():
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(buffer, format="WEBP", lossless=True, exact=True)
    text = base64.b64encode(buffer.getvalue()).decode()
    with pytest.raises(RecipeError, match="empty mask"):
        read_png(png_with(customcontrast='{"version": 1}', customcontrast_subject_1_1=text))
