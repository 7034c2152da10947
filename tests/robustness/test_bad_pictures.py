"""Whatever file is handed over ends as it must: in a usable picture or one clear sentence, never in another error."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from customcontrast.errors import PictureError
from customcontrast.images.loading import MAX_SIDE, MIN_SIDE, load_with_alpha
from tests.robustness.judge import Judge

KINDS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
FEW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def encoded(kind: str, mode: str = "RGB", side: int = 48, **options: object) -> bytes:
    noise = np.random.default_rng(7).integers(0, 256, (side, side + 9, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def read(source: object) -> Image.Image:
    """Load a picture and hold it to what every picture is, or its sentence to what theirs are."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            picture, mask = load_with_alpha(source, "image")
        except PictureError as error:
            sentence = str(error)
            assert sentence.startswith("image: ") and sentence.endswith("."), sentence
            assert 25 < len(sentence) < 260, sentence
            raise
    assert picture.mode == "RGB" and MIN_SIDE <= min(picture.size) and max(picture.size) <= MAX_SIDE
    assert mask is None or (mask.dtype == bool and mask.shape == picture.size[::-1] and mask.any())
    return picture


@pytest.fixture
def case(judge: Callable) -> Judge:
    return judge("library: pictures")


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


def test_text_named_png(case: Judge, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_text("this is a letter, not a cat\n" * 30)
    case.refused("image: .* is text", read, path)


def test_empty_file(case: Judge, tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.touch()
    case.refused("image: .* is empty", read, path)


def test_one_pixel(case: Judge) -> None:
    case.refused("image: .* 1 x 1", read, _saved(Image.new("RGB", (1, 1))))


@pytest.mark.parametrize("part", [0.02, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated(case: Judge, kind: str, part: float) -> None:
    data = encoded(kind)
    case.refused("image: .*(cut short|damaged|not a picture)", read, data[: int(len(data) * part)])


@pytest.mark.parametrize("size", [(20_000, 20_000), (65_535, 65_535), (2**31 - 1, 2**31 - 1), (300_000, 1)])
def test_decompression_bombs_are_refused_by_the_header(case: Judge, size: tuple[int, int]) -> None:
    """The file says it is huge and holds a few bytes: nothing may be decoded, or allocated."""
    bomb = png(header(*size), (b"IDAT", zlib.compress(bytes(1000))), END)
    case.refused("image: .*(million|300,?000 x 1)", read, bomb)


def test_text_bomb_in_a_png(case: Judge) -> None:
    """60 MB of text in a small picture are not unpacked: the reader stops there."""
    bomb = b"note\0\0" + zlib.compress(bytes(60_000_000), 9)
    case.refused("image", read, png(header(32, 32), (b"zTXt", bomb), (b"IDAT", zlib.compress(bytes(32 * 97))), END))


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_jpeg_modes(case: Judge, mode: str) -> None:
    case.works(read, encoded("JPEG", mode))


def test_animated_gif(case: Judge) -> None:
    frames = [Image.new("RGB", (40, 30), (60 * k, 0, 200)) for k in range(4)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    case.works(read, buffer.getvalue())
    case.works(read, buffer.getvalue()[:-30])  # the first frame is whole, and the others are not looked at


def test_sixteen_bits_palette_alpha(case: Judge) -> None:
    case.works(read, _saved(Image.fromarray(np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 30)))
    for mode in ("P", "RGBA", "LA", "1"):
        case.works(read, encoded("PNG", mode))
    case.works(read, _saved(Image.new("RGBA", (40, 40))))  # all transparent: white, and no mask
    lab = io.BytesIO()
    Image.new("LAB", (40, 40), (112, 192, 170)).save(lab, "TIFF")
    red, green, blue = case.works(read, lab.getvalue()).getpixel((20, 20))
    assert red > 150 and green < 60 and blue < 60


def test_broken_exif_and_profile(case: Judge) -> None:
    for junk in (b"Exif\0\0" + b"\xff" * 60, b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b""):
        case.works(read, encoded("JPEG", exif=junk))
    case.works(read, encoded("PNG", icc_profile=b"\0" * 200))
    case.works(read, encoded("JPEG", icc_profile=b"acsp" * 50))


@pytest.mark.parametrize(
    ("chunks", "right"),
    [
        ([END], False),
        ([header(0, 0), END], False),
        ([header(40, 40), END], False),
        ([header(40, 40, 8, 3), (b"IDAT", zlib.compress(bytes(41 * 40))), END], True),  # no palette: black
        ([header(40, 40, 7, 2), END], False),
        ([header(40, 40), (b"IDAT", b"not deflated"), END], False),
        ([header(40, 40), (b"IDAT", zlib.compress(bytes(30))), END], False),
        ([(b"IDAT", zlib.compress(bytes(30))), header(40, 40), END], False),
        ([header(40, 40), (b"IDAT", zlib.compress(bytes(40 * 121))), END], True),
    ],
)
def test_hand_made_pngs(case: Judge, chunks: list, right: bool) -> None:
    case.told(None if right else "image", read, png(*chunks))


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
def test_headers_without_a_picture(case: Judge, data: bytes) -> None:
    case.refused("image", read, data)


# ---- made by hypothesis -----------------------------------------------------------------------------------


@FEW
@given(st.binary(max_size=400))
@example(b"\xff\xd8\xff")
def test_any_bytes(judge: Callable, data: bytes) -> None:
    judge("library: pictures").refused("image", read, data)


@FEW
@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_a_true_beginning_and_a_false_end(judge: Callable, kind: str, tail: bytes) -> None:
    """The pixels are 48 x 57, and no 260 bytes can hold that noise, nor any picture by chance."""
    judge("library: pictures").refused("image", read, encoded(kind)[:60] + tail)


PIXELS = ("BMP", "PPM", "TIFF")  # whose pixels lie in the file as they are: any byte is a colour
changes = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12)


def pixels_at(data: bytes) -> int:
    """The byte from which the pixels lie in the file; a TIFF's directory may come before or after them."""
    with Image.open(io.BytesIO(data)) as picture:
        return picture.tile[0].offset


@FEW
@given(st.sampled_from(("PNG", *PIXELS)), changes)
def test_flipped_bytes(judge: Callable, kind: str, changes: list) -> None:
    whole = encoded(kind)
    data, first = bytearray(whole), pixels_at(whole) if kind in PIXELS else 0
    length = 48 * 57 * 3 if kind in PIXELS else len(data)
    for place, value in changes:
        data[first + int(place**3 * length)] = value  # the beginning, where a PNG's structure is, more often
    right = kind in PIXELS or data == whole  # each part of a PNG has a check sum
    judge("library: pictures").told(None if right else "image", read, bytes(data))


@settings(FEW, max_examples=30)
@given(st.sampled_from(("JPEG", "GIF", "WEBP")), changes)
def test_flipped_bytes_of_compressed_pictures(judge: Callable, kind: str, changes: list) -> None:
    data = bytearray(encoded(kind))
    for place, value in changes:
        data[int(place**3 * len(data))] = value
    case = judge("library: pictures")
    case.either("a changed byte of a compressed picture may give other colours, or none", read, bytes(data))


@FEW
@given(st.sampled_from(KINDS), st.floats(0, 1), st.floats(0, 1))
def test_a_piece_cut_out(judge: Callable, kind: str, first: float, second: float) -> None:
    data = encoded(kind)
    start, end = sorted((int(first * len(data)), int(second * len(data))))
    case, rest = judge("library: pictures"), data[:start] + data[end:]
    if start == end:
        case.works(read, rest)
    elif kind == "JPEG":
        case.either("a JPEG without a piece of its pixels is a picture with a smear", read, rest)
    else:
        case.refused("image", read, rest)


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
def test_any_array(judge: Callable, values: np.ndarray) -> None:
    channels = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (1, 3, 4))
    shown = channels and 16 <= min(values.shape[:2])
    judge("library: pictures").told(None if shown and in_range(values) else "image", read, values)


def in_range(values: np.ndarray) -> bool:
    """0..255 of whole numbers, all of 16 bits, 0..1 of fractions (a hundredth more or less), or true and false."""
    if values.dtype == np.uint16 or values.dtype == bool:
        return True
    if values.dtype.kind not in "iuf":
        return False
    top = 1 if values.dtype.kind == "f" else 255
    return bool((values >= -0.01 * top).all() and (values <= 1.01 * top).all())


@FEW
@given(
    st.sampled_from((np.uint8, np.int32, np.float32, np.float64, np.uint16, bool)),
    st.sampled_from(((16, 16), (20, 24, 3), (24, 17, 4), (16, 16, 1))),
    st.sampled_from((0, 1, 200, -3, 256, 0.5, float("nan"))),
)
def test_arrays_of_pictures(judge: Callable, kind: type, shape: tuple[int, ...], value: float) -> None:
    with np.errstate(invalid="ignore"):
        values = np.full(shape, np.array(value).astype(kind))
    judge("library: pictures").told(None if in_range(values) else "image", read, values)


@FEW
@given(st.text(max_size=60))
@example("\0")
@example("~")
@example("..")
@example("C:\\cat.png")
@example("file:///etc/hostname")
def test_any_path(judge: Callable, name: str) -> None:
    judge("library: pictures").refused("image", read, name)


@pytest.mark.parametrize("source", [None, 3, 2.5, object(), [], {}, (1, 2), b"", bytearray(b"x"), Path("/nowhere")])
def test_things_that_are_no_pictures(case: Judge, source: object) -> None:
    case.refused("image", read, source)


def _saved(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
