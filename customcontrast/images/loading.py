"""Any picture a person may hand over -> one clean RGB picture, or one sentence that says what to do.

Nothing here knows about the model. `load_picture` is the only door through which pictures come in: it
turns the picture upright (EXIF), brings it to sRGB (ICC profile, CMYK), takes the first frame of an
animation, scales 16-bit and floating-point values to 8 bits, puts transparent pictures on white, and limits
the size. `alpha_mask` tells whether the transparency of a picture already cuts its subject out.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import io
import re
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from customcontrast.errors import PictureError

MAX_PIXELS = 120_000_000  # refused above this, from the header alone (12,000 x 10,000)
MAX_BYTES = 256 << 20  # refused above this, before reading
MAX_SIDE = 2048  # larger pictures are reduced to this on their longer side
MIN_SIDE = 16  # smaller ones cannot show a subject
MAX_ASPECT = 20  # longer strips cannot show one either


def _register_heif() -> None:
    """Teach Pillow HEIF, the photographs of iPhones, by the package that is installed; without one it stays unread.

    pi-heif only reads. pillow-heif writes too, and its wheels hold an encoder under the GPL, which ours need not.
    """
    for package in ("pi_heif", "pillow_heif"):
        with contextlib.suppress(ImportError):
            importlib.import_module(package).register_heif_opener()
            return


# Pillow's readers that are safe and useful here; EPS, for one, would start another program.
Image.init()
_register_heif()
FORMATS = [kind for kind in "JPEG PNG GIF WEBP BMP TIFF AVIF HEIF JPEG2000 PPM ICO QOI".split() if kind in Image.OPEN]
# How the names of photographs and drawings end, wherever a folder of pictures is listed. HEIC is among them also where
# nothing reads it, so that such a file is reported rather than passed over.
SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .avif .heic .heif .hif .jp2".split())
HEIC = "a HEIC photograph" + (" that is cut short or damaged" if "HEIF" in FORMATS else "")
SHOWN_BY_BROWSERS = frozenset(".jpg .jpeg .png .webp .gif .bmp .avif .ico".split())
# What a file is when it is not one of these, by its first bytes, and what to do about it.
FOREIGN = (
    (re.compile(rb"\xff\xd8\xff"), "a JPEG picture that is cut short or damaged"),
    (re.compile(rb"\x89PNG|GIF8|RIFF....WEBP", re.S), "a picture that is cut short or damaged"),
    (re.compile(rb"....ftypavi[fs]", re.S), "an AVIF picture that is cut short or damaged"),
    (re.compile(rb"....ftyp(he[iv][cxms]|mif1|msf1)", re.S), HEIC),
    (re.compile(rb"....ftyp", re.S), "a video"),
    (re.compile(rb"\x1aE\xdf\xa3|RIFF....AVI", re.S), "a video"),
    (re.compile(rb"%PDF"), "a PDF document"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive or an office document"),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", re.S | re.I), "an SVG drawing"),
    (re.compile(rb"\s*<(!doctype html|html)", re.I), "a web page"),
)
# `warnings.catch_warnings` swaps a table of the whole process: one reader at a time may do that.
_READING = threading.Lock()

Source = str | Path | bytes | Image.Image | np.ndarray


def load_picture(
    source: Source, argument: str = "image", max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE
) -> Image.Image:
    """Read a picture from a path, bytes, a Pillow picture or an array.

    Args:
        source: path, the bytes of a file, a PIL picture, or an array (H, W), (H, W, 1), (H, W, 3), (H, W, 4):
            uint8 in 0..255, uint16 in 0..65535, bool, or floats in 0..1.
        argument: how the messages call this picture.
        max_pixels: pictures with more pixels than this are refused before anything is decoded.
        max_side: the longer side of the result, in pixels; larger pictures are reduced to it.

    Returns:
        A new RGB picture in sRGB, upright, both sides >= MIN_SIDE; the caller may change it.

    Raises:
        PictureError: one sentence that names what came and what to do.
    """
    return load_with_alpha(source, argument, max_pixels, max_side)[0]


def alpha_mask(source: Source, argument: str = "image", **limits: int) -> np.ndarray | None:
    """The subject as the picture's own transparency cuts it out: (H, W) bool like `load_picture`, or None."""
    return load_with_alpha(source, argument, **limits)[1]


def load_with_alpha(
    source: Source, argument: str = "image", max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE
) -> tuple[Image.Image, np.ndarray | None]:
    """`load_picture` and `alpha_mask` in one reading."""
    with _READING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _read(source, argument, max_pixels, max_side)
        except PictureError:
            raise
        except Image.DecompressionBombError as error:
            pixels = re.search(r"\d+", str(error))
            raise _too_large(argument, int(pixels.group()) if pixels else 0, max_pixels) from None
        except MemoryError:
            raise PictureError(f"{argument}: the picture does not fit into memory: make it smaller.") from None
        except Exception as error:  # Pillow's readers raise some twenty kinds of error on broken files
            raise PictureError(_broken(argument, error)) from error


def shown_by_browsers(path: str | Path) -> bool:
    """Whether a browser shows this file by itself, as its name says; HEIC, TIFF and JPEG 2000 it does not."""
    return Path(path).suffix.lower() in SHOWN_BY_BROWSERS


def _read(source: Source, argument: str, max_pixels: int, max_side: int) -> tuple[Image.Image, np.ndarray | None]:
    if isinstance(source, np.ndarray):
        picture = _from_array(source, argument)
    elif isinstance(source, Image.Image):
        picture = source
    else:
        picture = _open(source, argument)
    _check_size(picture.size, argument, max_pixels)
    if picture is not source and picture.format in ("JPEG", "MPO"):
        picture.draft(None, (2 * max_side, 2 * max_side))  # decodes at 1/2, 1/4, 1/8 where that is enough
    picture.load()
    if picture is source:
        picture = picture.copy()
    profile = picture.info.get("icc_profile")
    picture = _eight_bits(_upright(picture))
    picture = _plain_mode(picture)
    if max(picture.size) > max_side:
        scale = max_side / max(picture.size)
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    alpha = picture.getchannel("A") if picture.mode in ("LA", "RGBA") else None  # LAB has an A too, which is a colour
    picture = _srgb(picture.convert(picture.mode[:-1]) if alpha is not None else picture, profile)
    if alpha is None:
        return picture, None
    white = Image.new("RGB", picture.size, (255, 255, 255))
    return Image.composite(picture, white, alpha), _informative(alpha)


def _open(source: str | Path | bytes, argument: str) -> Image.Image:
    """The picture's header; the pixels are not decoded yet."""
    if source is None or source == "":
        raise PictureError(f"{argument}: no picture was given; choose one.")
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, name = bytes(source), "the file"
    elif isinstance(source, (str, Path)):
        data, name = _file(source, argument)
    else:
        raise PictureError(
            f"{argument}: got {type(source).__name__}; give a path, bytes, a PIL picture or a numpy array."
        )
    if not data:
        raise PictureError(f"{argument}: {name} is empty (0 bytes); save or upload the picture again.")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        what = _what(data[:4096])
        raise PictureError(f"{argument}: {name} is {what}; give a JPEG, PNG or WebP picture.") from None


def _file(source: str | Path, argument: str) -> tuple[bytes, str]:
    if re.match(r"[a-z]+://", str(source)):
        raise PictureError(f"{argument}: '{_short(source)}' is an address; download the picture and give the file.")
    path, name = Path(source), f"'{_short(Path(source).name)}'"
    try:
        if path.is_dir():
            raise PictureError(f"{argument}: '{_short(source)}' is a folder; give one picture file.")
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise PictureError(f"{argument}: {name} is larger than {MAX_BYTES >> 20} MB; make it smaller.")
        if path.is_file():
            return path.read_bytes(), name
    except PermissionError:
        raise PictureError(f"{argument}: {name} may not be read; change its permissions.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, PictureError):
            raise
    raise PictureError(f"{argument}: there is no file '{_short(source)}'; check the path.")


def _from_array(values: np.ndarray, argument: str) -> Image.Image:
    """Array (H, W[, 1 | 3 | 4]) -> picture of 8 bits."""
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise PictureError(f"{argument}: the array has shape {values.shape}; give (H, W), (H, W, 3) or (H, W, 4).")
    if values.size == 0:
        raise PictureError(f"{argument}: the array is empty (shape {values.shape}); give a picture.")
    if values.dtype == bool:
        return Image.fromarray(values.astype(np.uint8) * 255)
    if values.dtype == np.uint16:
        return Image.fromarray((values // 257).astype(np.uint8))
    if values.dtype.kind not in "iuf":
        raise PictureError(f"{argument}: the array holds {values.dtype}; give uint8 or floats in 0..1.")
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise PictureError(f"{argument}: the array holds NaN or infinite values; give floats in 0..1.")
    top = 1 if values.dtype.kind == "f" else 255
    if low < -0.01 * top or high > 1.01 * top:
        raise PictureError(
            f"{argument}: the {values.dtype} array goes from {low:.4g} to {high:.4g}; bring it to 0..{top}."
        )
    scaled = np.clip(values.astype(np.float32) * (255 / top), 0, 255)
    return Image.fromarray((scaled + 0.5).astype(np.uint8))


def _check_size(size: tuple[int, int], argument: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise _too_large(argument, width * height, max_pixels, f" ({width:,} x {height:,})")
    if min(size) < MIN_SIDE:
        raise PictureError(
            f"{argument}: the picture is {width} x {height} pixels; give one of at least {MIN_SIDE} x {MIN_SIDE}."
        )
    if max(size) > MAX_ASPECT * min(size):
        raise PictureError(f"{argument}: the picture is a strip of {width} x {height} pixels; crop it to the subject.")


def _too_large(argument: str, pixels: int, max_pixels: int, size: str = "") -> PictureError:
    return PictureError(
        f"{argument}: the picture has {pixels / 1e6:,.0f} million pixels{size}; "
        f"the limit is {max_pixels / 1e6:,.0f} million: make it smaller."
    )


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Modes of 16 and 32 bits a pixel -> L, by the smallest usual range that holds the values."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.nan_to_num(np.asarray(picture).astype(np.float32), posinf=0, neginf=0)
    high = float(values.max())
    ranges = ([1] if picture.mode == "F" else []) + [255, 1023, 4095, 65535]
    top = next((top for top in ranges if high <= top), high)
    return Image.fromarray((np.clip(values / top, 0, 1) * 255 + 0.5).astype(np.uint8))


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # noqa: BLE001 - of any kind: a broken EXIF block says nothing about the pixels
        return picture


def _plain_mode(picture: Image.Image) -> Image.Image:
    """Any 8-bit mode -> L, LA, RGB, RGBA, CMYK or LAB; palettes and colour keys become alpha."""
    if picture.mode in ("RGBa", "La"):  # colours already multiplied by alpha
        return picture.convert(picture.mode.upper())
    if picture.has_transparency_data:
        return picture if picture.mode in ("LA", "RGBA") else picture.convert("RGBA")
    if picture.mode in ("1", "L"):
        return picture.convert("L")
    return picture if picture.mode in ("RGB", "CMYK", "LAB") else picture.convert("RGB")


def _srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """L, RGB, CMYK or LAB -> RGB in sRGB, through the picture's own colour profile where that is valid."""
    try:
        target = ImageCms.createProfile("sRGB")
        if profile:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return _converted(picture, own, target)
        if picture.mode == "LAB":
            return _converted(picture, ImageCms.createProfile("LAB"), target)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        pass  # a profile that is broken or of another colour model: the values as they stand
    return picture.convert("RGB")


def _converted(
    picture: Image.Image,
    source: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile,
    target: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile,
) -> Image.Image:
    out = ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
    assert out is not None  # it is None only where a picture is converted in place
    return out


def _informative(alpha: Image.Image) -> np.ndarray | None:
    """Alpha (L) -> bool (H, W) where it separates a subject from its ground, else None."""
    mask = np.asarray(alpha) >= 128
    return mask if 0.005 < mask.mean() < 0.97 and not _only_rounded(mask) else None


def _only_rounded(mask: np.ndarray) -> bool:
    """Whether only the corners of a picture are transparent, as of a round avatar: that cuts out no subject.

    mask: (H, W) bool. Such a picture is a disc that reaches the edges, or more.
    """
    h, w = mask.shape
    y, x = np.mgrid[:h, :w]
    inside = ((x - (w - 1) / 2) / (w / 2)) ** 2 + ((y - (h - 1) / 2) / (h / 2)) ** 2 <= 0.94
    corners = mask[[0, 0, -1, -1], [0, -1, 0, -1]]
    middles = mask[[0, -1, h // 2, h // 2], [w // 2, w // 2, 0, -1]]
    return bool(mask[inside].mean() > 0.995 and middles.sum() >= 3 and not corners.all())


def _what(head: bytes) -> str:
    for pattern, name in FOREIGN:
        if pattern.match(head):
            return name
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the head may end within a character
    except UnicodeDecodeError:
        text = "\0"
    return "not a picture, or of a kind that is not known here" if "\0" in text else "text, not a picture"


def _broken(argument: str, error: Exception) -> str:
    cut = isinstance(error, EOFError) or re.search(r"truncated|not enough|incomplete|eof|end of file", str(error), re.I)
    what = "is cut short" if cut else "is damaged and cannot be read"
    return f"{argument}: the picture {what}; save or upload it again, best as PNG or JPEG."


def _short(text: object) -> str:
    text = re.sub(r"[\x00-\x1f\x7f]", "?", str(text))
    return text if len(text) <= 80 else f"{text[:38]}…{text[-38:]}"
