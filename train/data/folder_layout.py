"""What lies where in a folder of one's own subjects (see `train.data.folder`). No torch, so that a listing is cheap."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from customcontrast.errors import ConfigError
from customcontrast.images.loading import SUFFIXES

CLASSES = "prompts_and_classes.txt"  # DreamBench's list of "folder,class noun"


def subject_places(folder: Path) -> list[Path]:
    """Sub-folders that hold pictures, in order.

    Raises ConfigError where the folder is none, or holds pictures alone.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; data.path must hold one sub-folder of pictures per subject")
    places = [p for p in folder.iterdir() if p.is_dir() and p.name != "masks" and not p.name.startswith(".")]
    subjects = sorted(p for p in places if pictures_in(p))
    if not subjects and pictures_in(folder):
        raise ConfigError(f"{folder} holds pictures alone; put them into one sub-folder for each subject")
    return subjects


def pictures_in(place: Path) -> list[Path]:
    """Pictures of a sub-folder in order; hidden files are none."""
    return sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def read_text(path: Path) -> str:
    """A text file's text, composed (NFC): UTF-8, UTF-16 with its byte order mark, else Windows-1252.

    Raises ConfigError with the file's name where it is none of these.
    """
    data = path.read_bytes()
    encodings = ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp1252")
    for encoding in encodings:
        try:
            return unicodedata.normalize("NFC", data.decode(encoding))
        except UnicodeDecodeError:
            continue
    raise ConfigError(f"{path.name} of {path.parent.name} is no text that can be read; save it as UTF-8")


def class_noun(place: Path) -> str:
    """noun.txt, or DreamBench's list beside the sub-folder, or the sub-folder's name in words."""
    if (place / "noun.txt").is_file():
        return read_text(place / "noun.txt").strip()
    listed = place.parent / CLASSES
    if listed.is_file():
        found = re.search(rf"^{re.escape(place.name)},(.+)$", read_text(listed), re.MULTILINE)
        if found:
            return found[1].strip()
    return re.sub(r"[\W\d_]+", " ", place.name).strip() or "object"


def mask_path(path: Path) -> Path:
    """Where the mask of a picture is, or goes: by its whole name, or by its stem where that can be no other's."""
    whole = path.parent / "masks" / f"{path.name}.png"
    short = path.parent / "masks" / f"{path.stem}.png"
    alone = sum(other.stem == path.stem for other in pictures_in(path.parent)) == 1
    return short if alone and not whole.is_file() else whole
