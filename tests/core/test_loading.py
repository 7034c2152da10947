"""Every kind of picture comes in upright, in sRGB and of a sane size, or is refused in one sentence."""

from __future__ import annotations

import io
import re
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from customcontrast.errors import PictureError
from customcontrast.images import loading
from customcontrast.images.loading import alpha_mask, load_picture

RED, BLUE = (220, 30, 40), (30, 60, 210)


def two_halves(width: int = 64, height: int = 48) -> Image.Image:
    """Left half red, right half blue."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (width // 2, 0, width, height))
    return picture


def encode(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def assert_two_halves(picture: Image.Image, width: int, height: int) -> None:
    assert picture.mode == "RGB" and picture.size == (width, height)
    assert close(picture, (width // 4, height // 2), RED) and close(picture, (width * 3 // 4, height // 2), BLUE)


def close(picture: Image.Image, xy: tuple[int, int], color: tuple[int, int, int], tolerance: int = 12) -> bool:
    return max(abs(a - b) for a, b in zip(picture.getpixel(xy), color, strict=True)) <= tolerance


def refused(source, **options) -> str:
    with pytest.raises(PictureError) as caught:
        load_picture(source, "reference", **options)
    message = str(caught.value)
    assert message.startswith("reference: ") and message.endswith(".") and "\n" not in message
    assert len(message) < 240, message
    return message


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("WEBP", {"quality": 95}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("GIF", {}),
        ("PPM", {}),
        ("JPEG2000", {}),
    ],
)
def test_usual_formats(kind, options, tmp_path):
    data = encode(two_halves(), kind, **options)
    path = tmp_path / "picture.bin"  # the content decides, not the name
    path.write_bytes(data)
    for source in (data, path, str(path), Image.open(io.BytesIO(data))):
        picture = load_picture(source)
        assert picture.mode == "RGB" and picture.size == (64, 48)
        assert close(picture, (8, 20), RED, 16) and close(picture, (56, 20), BLUE, 16)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LA", "La", "RGBA", "RGBa", "PA", "I", "F"])
def test_every_pillow_mode(mode):
    grey = two_halves().convert("L")
    via = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode)
    source = (two_halves().convert(via) if via else two_halves()).convert(mode)
    picture = load_picture(source)
    assert picture.mode == "RGB" and picture.size == source.size
    if mode in ("L", "LA", "La", "I", "F"):
        assert close(picture, (8, 20), (grey.getpixel((8, 20)),) * 3, 2)
    elif mode != "1":
        tolerance = 32 if mode.startswith("P") else 16  # Pillow's palette of 216 colours is 51 apart
        assert close(picture, (8, 20), RED, tolerance) and close(picture, (56, 20), BLUE, tolerance)


def test_cmyk_jpeg():
    picture = load_picture(encode(two_halves().convert("CMYK"), "JPEG", quality=95))
    assert close(picture, (8, 20), RED, 24) and close(picture, (56, 20), BLUE, 24)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (40, 40), color) for color in (RED, BLUE, (9, 200, 9))]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
        assert Image.open(io.BytesIO(data)).n_frames == 3
        assert close(load_picture(data), (20, 20), RED)


def test_sixteen_bit_grey_keeps_its_ramp():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(32, 0)
    for kind in ("PNG", "TIFF"):
        out = np.asarray(load_picture(encode(Image.fromarray(ramp), kind)))
        assert np.abs(out[4, :, 0].astype(int) - np.arange(256)).max() <= 1
    twelve = Image.fromarray((ramp // 16).astype(np.uint16))  # a camera's 12 bits in 16
    assert np.asarray(load_picture(twelve)).max() == 255


def test_palette_with_a_transparent_colour():
    source = Image.new("P", (40, 40), 0)
    source.putpalette([0, 0, 0, *RED])
    ImageDraw.Draw(source).rectangle((10, 10, 29, 29), fill=1)
    for kind in ("PNG", "GIF"):
        data = encode(source, kind, transparency=0)
        assert close(load_picture(data), (2, 2), (255, 255, 255)) and close(load_picture(data), (20, 20), RED)
        mask = alpha_mask(data)
        assert mask is not None and mask.sum() == 400 and mask[20, 20]


def test_alpha_goes_on_white_and_is_a_mask_where_it_cuts_something_out():
    values = np.zeros((40, 60, 4), np.uint8)
    values[10:30, 20:40] = (*RED, 255)
    values[10:30, 40:50] = (*RED, 128)
    picture = load_picture(values)
    assert close(picture, (30, 20), RED) and close(picture, (2, 2), (255, 255, 255))
    assert close(picture, (45, 20), tuple((c + 255) // 2 for c in RED))
    mask = alpha_mask(encode(Image.fromarray(values), "PNG"))
    assert mask.shape == (40, 60) and mask.dtype == bool and mask.sum() == 600
    values[..., 3] = 255
    assert alpha_mask(values) is None
    assert alpha_mask(two_halves()) is None
    assert alpha_mask(np.zeros((40, 40, 4), np.uint8)) is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = two_halves()
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(back[orientation]) if orientation in back else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG"):
        picture = load_picture(encode(stored, kind, exif=exif))
        assert picture.size == upright.size
        assert close(picture, (8, 20), RED, 16) and close(picture, (56, 20), BLUE, 16)


def test_icc_profile_is_applied_and_a_broken_one_is_not_in_the_way():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, lab, b"not a profile", srgb[:60]):
        picture = load_picture(encode(two_halves(), "PNG", icc_profile=profile))
        assert close(picture, (8, 20), RED, 3)
    swapped = ImageCms.ImageCmsProfile(io.BytesIO(_swap_red_and_blue(srgb)))
    picture = load_picture(encode(two_halves(), "PNG", icc_profile=swapped.tobytes()))
    assert close(picture, (8, 20), RED[::-1], 24) and close(picture, (56, 20), BLUE[::-1], 24)
    with_alpha = two_halves().convert("RGBA")
    picture = load_picture(encode(with_alpha, "PNG", icc_profile=swapped.tobytes()))
    assert close(picture, (8, 20), RED[::-1], 24)


def _swap_red_and_blue(profile: bytes) -> bytes:
    """An ICC profile whose red and blue primaries have changed places."""
    return profile.replace(b"rXYZ", b"____", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"____", b"bXYZ", 1)


def test_large_pictures_are_reduced_and_small_ones_left_alone():
    for source in (np.zeros((1200, 2500, 3), np.uint8), encode(Image.new("RGB", (2500, 1200)), "JPEG")):
        assert load_picture(source).size == (2048, 983)
        assert load_picture(source, max_side=500).size == (500, 240)
    assert load_picture(np.zeros((17, 200), np.uint8)).size == (200, 17)


def test_bomb_is_refused_by_its_header():
    line = Image.new("1", (20_000, 1))
    small = encode(line, "PNG")
    header = bytearray(small)
    header[20:24] = (20_000).to_bytes(4, "big")  # the height in IHDR, its check sum below
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    message = refused(bytes(header))
    assert "400 million" in message and "120 million" in message
    assert "limit is 1 million" in refused(Image.new("RGB", (1200, 1000)), max_pixels=1_000_000)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((20, 30), 128, np.uint8), 128),
        (np.full((20, 30, 1), 128, np.uint8), 128),
        (np.full((20, 30, 3), 0.5, np.float32), 128),
        (np.full((20, 30, 3), 0.5, np.float64), 128),
        (np.full((20, 30, 3), 0.5, np.float16), 128),
        (np.full((20, 30, 4), 1.0, np.float32), 255),
        (np.full((20, 30), True), 255),
        (np.full((20, 30, 3), 65535, np.uint16), 255),
        (np.full((20, 30, 3), 7, np.int64), 7),
    ],
)
def test_arrays(values, expected):
    out = np.asarray(load_picture(values))
    assert out.shape == (20, 30, 3) and (out == expected).all()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (np.zeros((3, 64, 64), np.float32), "shape"),
        (np.zeros((64,), np.uint8), "shape"),
        (np.zeros((0, 64, 3), np.uint8), "empty"),
        (np.full((64, 64, 3), np.nan), "NaN"),
        (np.full((64, 64, 3), 200.0), "0..1"),
        (np.full((64, 64, 3), -5), "0..255"),
        (np.full((64, 64), "a"), "array holds"),
        (Image.new("RGB", (1, 1)), "1 x 1"),
        (Image.new("RGB", (0, 0)), "0 x 0"),
        (Image.new("RGB", (2000, 20)), "strip"),
        (None, "no picture"),
        ("", "no picture"),
        (b"", "empty"),
        (b"hello there, this is text", "text"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b'<?xml version="1.0"?><svg></svg>', "SVG"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0", "HEIC photograph"),
        (b"\0\0\0\x18ftypisom\0\0", "video"),
        (b"\xff\xd8\xff", "cut short"),
        (bytes(range(128, 256)) * 9, "not a picture"),
        ([1, 2, 3], "got list"),
        ("https://example.org/cat.png", "address"),
        ("/nowhere/cat.png", "no file"),
        ("a\0b.png", "no file"),
        ("x" * 5000, "no file"),
    ],
)
def test_refusals_name_what_came(source, says):
    assert says.lower() in refused(source).lower()


def test_refused_files(tmp_path):
    text = tmp_path / "holiday.png"
    text.write_text("Dear diary, today … " * 50, encoding="utf-8")
    assert "'holiday.png' is text" in refused(text)
    empty = tmp_path / "empty.png"
    empty.touch()
    assert "'empty.png' is empty" in refused(empty)
    assert "folder" in refused(tmp_path)


heif_only = pytest.mark.skipif("HEIF" not in loading.FORMATS, reason="pip install pi-heif pillow-heif")


def heic(mode: str, pixels: np.ndarray | Image.Image, **options) -> bytes:
    """A HEIC file of a picture, or of values (H, W, channels) in pillow-heif's `mode`."""
    writer = pytest.importorskip("pillow_heif", reason="pip install pillow-heif")
    buffer = io.BytesIO()
    if isinstance(pixels, Image.Image):
        writer.from_pillow(pixels).save(buffer, quality=95, **options)
    else:
        writer.encode(mode, pixels.shape[1::-1], pixels.tobytes(), buffer, quality=95, **options)
    return buffer.getvalue()


@heif_only
def test_heic_photographs_are_read_upright():
    """Rotation stands in the container; an EXIF block that says the same must not turn the picture twice."""
    assert_two_halves(load_picture(heic("RGB", two_halves())), 64, 48)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: left goes up
    turned = load_picture(heic("RGB", two_halves(), exif=exif.tobytes()))
    assert turned.size == (48, 64) and close(turned, (24, 10), RED) and close(turned, (24, 54), BLUE)


@heif_only
def test_heic_of_ten_bits_and_with_alpha():
    deep = np.broadcast_to(np.array([40000, 20000, 60000], np.uint16), (48, 64, 3)).copy()
    assert close(load_picture(heic("RGB;16", deep)), (20, 20), (156, 78, 233))
    cut = two_halves()
    cut.putalpha(Image.new("L", (32, 48), 255).crop((0, 0, 64, 48)))
    data = heic("RGBA", cut)
    mask = alpha_mask(data)
    assert mask is not None and mask[:, :28].all() and not mask[:, 36:].any()
    assert close(load_picture(data), (10, 24), RED) and close(load_picture(data), (54, 24), (255, 255, 255))


@heif_only
def test_heic_that_is_cut_short_or_declares_too_much():
    data = heic("RGB", Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)))
    for part in (0.02, 0.1, 0.5, 0.9):
        assert re.search("cut short", refused(data[: int(len(data) * part)]))
    at = data.index(b"ispe") + 8  # width and height, 4 bytes each
    for side, says in ((12_000, "144 million"), (60_000, "3,600 million"), (64, "damaged")):
        declared = data[:at] + side.to_bytes(4, "big") * 2 + data[at + 8 :]
        assert says in refused(declared)


def test_truncated_pictures_are_refused():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encode(noise, kind)
        for part in (0.5, 0.9):
            assert re.search("cut short|damaged", refused(data[: int(len(data) * part)]))


def test_callers_picture_is_untouched():
    source = two_halves().convert("RGBA")
    before = source.tobytes()
    load_picture(source).putpixel((0, 0), (0, 0, 0))
    same = two_halves()
    load_picture(same).putpixel((0, 0), (1, 2, 3))
    assert source.tobytes() == before and source.mode == "RGBA" and same.getpixel((0, 0)) == RED


def test_threads_and_warnings():
    """Pictures that make Pillow warn, from many threads: right results, no warning, the filters as before."""
    exif = Image.Exif()
    exif[0x0112] = 1
    data = encode(two_halves(), "JPEG", exif=exif)
    start = data.index(b"Exif\0\0")
    warning = data[: start + 12] + b"\xff" * 12 + data[start + 24 :]
    results, filters = [], list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        workers = [threading.Thread(target=lambda: results.append(load_picture(warning).size)) for _ in range(16)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert results == [(64, 48)] * 16 and not caught
    assert list(warnings.filters) == filters
    assert not loading._READING.locked()
