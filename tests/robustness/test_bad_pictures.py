"""Whatever file is handed over ends in a usable picture or in one clear sentence; never in another error."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from customcontrast.errors import PictureError
from customcontrast.images.loading import MAX_SIDE, MIN_SIDE, load_with_alpha

KINDS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
FEW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def encoded(kind: str, mode: str = "RGB", side: int = 48, **options: object) -> bytes:
    noise = np.random.default_rng(7).integers(0, 256, (side, side + 9, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def read(source: object) -> str:
    """Load; returns "" for a picture, which is checked, or the sentence, which is checked too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            picture, mask = load_with_alpha(source, "image")
        except PictureError as error:
            sentence = str(error)
            assert sentence.startswith("image: ") and sentence.endswith(".") and "\n" not in sentence
            assert 25 < len(sentence) < 260, sentence
            assert "Error" not in sentence and "0x" not in sentence, sentence
            return sentence
    assert picture.mode == "RGB" and MIN_SIDE <= min(picture.size) and max(picture.size) <= MAX_SIDE
    assert mask is None or (mask.dtype == bool and mask.shape == picture.size[::-1] and mask.any())
    return ""


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of hand-made chunks, with right check sums."""
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def header(width: int, height: int, depth: int = 8, color: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)


END = (b"IEND", b"")


# ---- each kind that the app promises to survive, by hand --------------------------------------------------


def test_text_named_png(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_text("this is a letter, not a cat\n" * 30)
    assert "text" in read(path)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.touch()
    assert "empty" in read(path)


def test_one_pixel() -> None:
    assert "1 x 1" in read(_saved(Image.new("RGB", (1, 1))))


@pytest.mark.parametrize("part", [0.02, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated(kind: str, part: float) -> None:
    data = encoded(kind)
    said = read(data[: int(len(data) * part)])
    if kind == "JPEG":
        assert "cut short" in said or "damaged" in said


@pytest.mark.parametrize("size", [(20_000, 20_000), (65_535, 65_535), (2**31 - 1, 2**31 - 1), (300_000, 1)])
def test_decompression_bombs_are_refused_by_the_header(size: tuple[int, int]) -> None:
    """The file says it is huge and holds a few bytes: nothing may be decoded, or allocated."""
    said = read(png(header(*size), (b"IDAT", zlib.compress(bytes(1000))), END))
    assert "million" in said or "300,000 x 1" in said or "300000 x 1" in said


def test_text_bomb_in_a_png() -> None:
    bomb = b"note\0\0" + zlib.compress(bytes(60_000_000), 9)
    assert read(png(header(32, 32), (b"zTXt", bomb), (b"IDAT", zlib.compress(bytes(32 * 97))), END)) is not None


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_jpeg_modes(mode: str) -> None:
    assert read(encoded("JPEG", mode)) == ""


def test_animated_gif() -> None:
    frames = [Image.new("P", (40, 30), k) for k in range(4)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert read(buffer.getvalue()) == ""
    read(buffer.getvalue()[:-30])


def test_sixteen_bits_palette_alpha() -> None:
    assert read(_saved(Image.fromarray(np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 30))) == ""
    assert read(encoded("PNG", "P")) == read(encoded("PNG", "RGBA")) == read(encoded("PNG", "LA")) == ""
    assert read(encoded("PNG", "1")) == ""
    assert read(_saved(Image.new("RGBA", (40, 40)))) == ""  # all transparent: white, and no mask


def test_broken_exif_and_profile() -> None:
    for junk in (b"Exif\0\0" + b"\xff" * 60, b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b""):
        assert read(encoded("JPEG", exif=junk)) == ""
    assert read(encoded("PNG", icc_profile=b"\0" * 200)) == ""
    assert read(encoded("JPEG", icc_profile=b"acsp" * 50)) == ""


@pytest.mark.parametrize(
    "chunks",
    [
        [END],
        [header(0, 0), END],
        [header(40, 40), END],
        [header(40, 40, 8, 3), (b"IDAT", zlib.compress(bytes(41 * 40))), END],  # palette picture, no palette
        [header(40, 40, 7, 2), END],
        [header(40, 40), (b"IDAT", b"not deflated"), END],
        [header(40, 40), (b"IDAT", zlib.compress(bytes(30))), END],
        [(b"IDAT", zlib.compress(bytes(30))), header(40, 40), END],
    ],
)
def test_hand_made_pngs(chunks: list) -> None:
    read(png(*chunks))


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"\xff\xd8",
        b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(40),
        b"GIF89a" + bytes(20),
        b"GIF89a\xff\xff\xff\xff\xff\xff\xff",
        b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        b"BM" + bytes(60),
        b"II*\0" + bytes(40),
        b"MM\0*\0\0\0\x08\xff\xff" + bytes(300),
        b"P6 99999 99999 255\n",
        b"P6\n-4 20\n255\n",
        b"\0\0\x01\0\xff\xff" + bytes(64),
        b"qoif\xff\xff\xff\xff\xff\xff\xff\xff\x04\x01",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n",
        "Привет, это не картинка".encode("utf-16"),
        b"<svg onload='x'/>",
    ],
)
def test_headers_without_a_picture(data: bytes) -> None:
    assert read(data) != ""


# ---- made by hypothesis -----------------------------------------------------------------------------------


@FEW
@given(st.binary(max_size=400))
@example(b"\xff\xd8\xff")
def test_any_bytes(data: bytes) -> None:
    assert read(data) != ""


@FEW
@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_a_true_beginning_and_a_false_end(kind: str, tail: bytes) -> None:
    read(encoded(kind)[:60] + tail)


@settings(FEW, max_examples=200)
@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_flipped_bytes(kind: str, changes: list) -> None:
    data = bytearray(encoded(kind))
    for place, value in changes:
        data[int(place**3 * len(data))] = value  # the beginning, where the structure is, more often
    read(bytes(data))


@FEW
@given(st.sampled_from(KINDS), st.floats(0, 1), st.floats(0, 1))
def test_a_piece_cut_out(kind: str, first: float, second: float) -> None:
    data = encoded(kind)
    start, end = sorted((int(first * len(data)), int(second * len(data))))
    read(data[:start] + data[end:])


@FEW
@given(
    arrays.arrays(
        st.one_of(
            arrays.integer_dtypes(),
            arrays.unsigned_integer_dtypes(),
            arrays.floating_dtypes(sizes=(16, 32, 64)),
            arrays.boolean_dtypes(),
            arrays.complex_number_dtypes(),
            arrays.unicode_string_dtypes(),
        ),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=24),
    )
)
def test_any_array(values: np.ndarray) -> None:
    read(values)


@FEW
@given(st.text(max_size=60))
@example("\0")
@example("~")
@example("..")
@example("C:\\cat.png")
@example("file:///etc/hostname")
def test_any_path(name: str) -> None:
    assert read(name) != ""


@pytest.mark.parametrize("source", [None, 3, 2.5, object(), [], {}, (1, 2), b"", bytearray(b"x"), Path("/nowhere")])
def test_things_that_are_no_pictures(source: object) -> None:
    assert read(source) != ""


def _saved(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
