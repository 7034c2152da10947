"""Photographs of subjects in the layouts in which their data sets are published: MVImgNet, OpenImages V7, a folder.

A reader lists subjects and opens nothing but folders and text files; which views a subject has is looked up when it is
read. So a `Listing` of 219,000 subjects of MVImgNet, or of the 2.7 million masks of OpenImages, takes a line each.
Pictures are read, filtered and packed by `train.data.shards`. What a reader leaves out on the annotation's word alone
(a group, a drawing, a cut-off box, a class that is no subject) it does not list, and counts.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from customcontrast.errors import DataLayoutError
from customcontrast.images.loading import SUFFIXES
from train.data.folder_layout import class_noun, mask_path, pictures_in, subject_places

MVIMGNET_CLASSES = "mvimgnet_category.txt"  # lines "class label,class name"
OPENIMAGES_CLASSES = "class-descriptions"  # part of a CSV's name: LabelName,DisplayName
OPENIMAGES_MASKS = "object-segmentation"  # MaskPath,ImageID,LabelName,BoxID,…
OPENIMAGES_BOXES = "bbox"  # ImageID,…,LabelName,…,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,…
LEFT_OUT = ("IsTruncated", "IsGroupOf", "IsDepiction")
NO_SUBJECTS = Path(__file__).with_name("openimages_no_subjects.txt")  # classes, one a line; # begins a comment
CHUNK = 1 << 18  # rows of a CSV that are compared at once


@dataclass(frozen=True)
class View:
    """One picture of a subject and where its mask is (None: to be segmented)."""

    picture: Path
    mask: Path | None = None


@dataclass(frozen=True)
class Subject:
    """One subject: id unique in its data set, class noun, views in a fixed order."""

    id: str
    noun: str
    views: tuple[View, ...]


@dataclass
class Listing(Sequence[Subject]):
    """Subjects in the order of their ids, a line of text each: "id, tab, noun, tab, place" ("" = its place is its id).

    Indexing looks a subject's views up. left_out: how many were not listed, by reason.
    """

    source: str  # key of READERS
    folder: Path
    text: bytes  # all lines
    starts: np.ndarray  # int64 (N + 1,), where each begins
    left_out: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, source: str, folder: Path, lines: list[bytes], left_out: dict[str, int]) -> Listing:
        lines.sort()
        starts = np.zeros(len(lines) + 1, np.int64)
        np.cumsum([len(line) for line in lines], out=starts[1:])
        return cls(source, folder, b"".join(lines), starts, left_out)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Subject:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        line = self.text[self.starts[index] : self.starts[index + 1]].decode()
        name, noun, place = line.split("\t")
        return Subject(name, noun, VIEWS[self.source](self.folder, place or name))

    def digest(self) -> str:
        """The listing in a few letters: another set, or another version of it, has another."""
        return hashlib.sha256(self.text).hexdigest()[:16]


def list_subjects(source: str, folder: Path, no_subjects: Path | None = NO_SUBJECTS) -> Listing:
    """The subjects of `folder`, sorted by id.

    source: mvimgnet | openimages | folder. no_subjects: a file of OpenImages classes that are left out, None = none.
    Raises DataLayoutError where the layout is another one.
    """
    if source not in READERS:
        raise DataLayoutError(f"source is {source!r}; choose {', '.join(READERS)}")
    if not folder.is_dir():
        raise DataLayoutError(f"input {folder} is not a folder; pass the data set's root")
    left_out: Counter[str] = Counter()
    lines = []
    for name, noun, place in READERS[source](folder, left_out, no_subjects):
        if "\t" in name + noun + place or "\n" in name + noun + place:
            left_out["a name with a tab or a line break in it"] += 1
        else:
            lines.append(f"{name}\t{noun}\t{place}".encode("utf-8", "surrogateescape"))
    if not lines:
        raise DataLayoutError(
            f"input {folder} holds no subject in the layout of {source!r}; see train/data/photos.py for it"
        )
    return Listing.of(source, folder, lines, dict(left_out))


# ------------------------------------------------------------------------------------------------------ MVImgNet


def mvimgnet(folder: Path, left_out: Counter[str], no_subjects: Path | None) -> Iterator[tuple[str, str, str]]:
    """MVImgNet: class_label/instance_id/images/*.jpg, with masks/ beside images/ (2.0), or under the root
    mask/class_label/instance_id/NAME.jpg.png (1.0); mvimgnet_category.txt names the classes.

    Raises DataLayoutError when the list of classes is missing.
    """
    listed = folder / MVIMGNET_CLASSES
    if not listed.is_file():
        raise DataLayoutError(f"{folder} has no {MVIMGNET_CLASSES}; put the data set's list of classes there")
    rows = (line.split(",", 1) for line in listed.read_text(encoding="utf-8").splitlines() if "," in line)
    names = {label.strip(): name.strip().lower() for label, name in rows}
    for label in _folders(folder):
        if label == "mask":
            continue
        instances = _folders(folder / label)
        if label not in names:
            left_out["a class that the list of classes does not name"] += len(instances)
            continue
        for instance in instances:
            yield f"{label}-{instance}", names[label], f"{label}/{instance}"


def _folders(place: Path) -> list[str]:
    with os.scandir(place) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _mvimgnet_views(folder: Path, place: str) -> tuple[View, ...]:
    instance = folder / place
    if not (instance / "images").is_dir():
        return ()
    masks = (instance / "masks", folder / "mask" / place)
    return tuple(View(path, _mask_beside(path, masks)) for path in pictures_in(instance / "images"))


def _mask_beside(picture: Path, folders: tuple[Path, ...]) -> Path | None:
    names = (f"{picture.name}.png", f"{picture.stem}.png", picture.name)
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


# ---------------------------------------------------------------------------------------------------- OpenImages


def openimages(folder: Path, left_out: Counter[str], no_subjects: Path | None) -> Iterator[tuple[str, str, str]]:
    """OpenImages V7: images/ImageID.jpg, masks/MaskPath, and three CSVs under any of their published names: boxes
    (…bbox….csv), masks (…object-segmentation….csv), classes (…class-descriptions….csv, with or without a header).

    A subject is one masked instance, so it has one view. Left out: instances whose box is truncated, a group or a
    depiction, pictures with two boxes of the same class, where a caption would not say which is meant, and classes that
    are no subject. Only (picture, class) pairs with a mask are counted among the boxes, as 64-bit numbers: the boxes
    themselves, 14.6 million, are read once and forgotten.
    """
    names = {row[0]: row[1].lower() for row in _rows(_table(folder, OPENIMAGES_CLASSES)) if len(row) > 1}
    boxes, masks = _table(folder, OPENIMAGES_BOXES), _table(folder, OPENIMAGES_MASKS)
    unwanted = _classes(no_subjects) if no_subjects is not None else frozenset()
    allowed = {label for label, name in names.items() if name not in unwanted}

    keys = np.fromiter((hash((i, c)) for i, c, m in _columns(masks, "ImageID", "LabelName", "MaskPath") if m), np.int64)
    pairs, rows = np.unique(keys, return_inverse=True)
    counts, flagged = np.zeros(len(pairs), np.uint8), np.zeros(len(pairs), bool)
    for image_classes, flags in _box_chunks(boxes):
        at = np.searchsorted(pairs, image_classes)
        at[at == len(pairs)] = 0
        known = pairs[at] == image_classes if len(pairs) else np.zeros(len(at), bool)
        np.maximum.at(flagged, at[known], flags[known])
        more = np.bincount(at[known], minlength=len(pairs)) if known.any() else np.zeros(len(pairs), np.int64)
        counts = np.minimum(counts + more, 2).astype(np.uint8)
    del keys, pairs  # what follows needs the counts alone
    reasons = ("no box of its class", "", "two boxes of one class in the picture")
    found = (row for row in _columns(masks, "ImageID", "LabelName", "MaskPath") if row[2])
    for (image, label, mask), at in zip(found, rows, strict=True):
        if label not in names:
            left_out["a class without a name"] += 1
        elif label not in allowed:
            left_out["a class that is no subject"] += 1
        elif counts[at] != 1:
            left_out[reasons[counts[at]]] += 1
        elif flagged[at]:
            left_out["cut off, a group or a depiction"] += 1
        else:
            name = Path(mask).stem
            usual = mask == f"{name}.png" and "_" not in image and name.startswith(f"{image}_")  # as published
            yield name, names[label], "" if usual else f"{image}/{mask}"


def _openimages_views(folder: Path, place: str) -> tuple[View, ...]:
    image, _, mask = place.partition("/") if "/" in place else (place.partition("_")[0], "", f"{place}.png")
    names = (f"{image}{suffix}" for suffix in (".jpg", *sorted(SUFFIXES - {".jpg"})))
    found = next((folder / "images" / name for name in names if (folder / "images" / name).is_file()), None)
    return () if found is None else (View(found, folder / "masks" / mask),)


def _box_chunks(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(picture, class) of many boxes as 64-bit numbers, and whether one of LEFT_OUT holds for each."""
    keys: list[int] = []
    flags: list[bool] = []
    for image, label, *marks in _columns(path, "ImageID", "LabelName", *LEFT_OUT):
        if image and label:
            keys.append(hash((image, label)))
            flags.append("1" in marks)
        if len(keys) == CHUNK:
            yield np.array(keys, np.int64), np.array(flags, bool)
            keys, flags = [], []
    if keys:
        yield np.array(keys, np.int64), np.array(flags, bool)


def _classes(path: Path) -> frozenset[str]:
    lines = (line.partition("#")[0].strip().lower() for line in path.read_text(encoding="utf-8").splitlines())
    return frozenset(line for line in lines if line)


def _table(folder: Path, part: str) -> Path:
    found = sorted(path for path in folder.glob("*.csv") if part in path.name)
    if not found:
        raise DataLayoutError(f"{folder} has no CSV with {part!r} in its name; OpenImages publishes one")
    return found[0]


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        yield from csv.reader(file)


def _columns(path: Path, *names: str) -> Iterator[tuple[str, ...]]:
    """These columns of a CSV with a header, row by row; a row that is too short for the first of them is left out.

    Raises DataLayoutError where the header lacks one of the first two.
    """
    rows = _rows(path)
    header = next(rows, [])
    lacking = [name for name in names[:2] if name not in header]
    if lacking:
        raise DataLayoutError(f"{path.name} has no column {lacking[0]!r} in its first line; OpenImages publishes one")
    places = [header.index(name) if name in header else len(header) for name in names]
    last, whole = max(places[:2]), max(places)
    for row in rows:
        if len(row) > whole:
            yield tuple([row[place] for place in places])
        elif len(row) > last:
            yield tuple([row[place] if place < len(row) else "" for place in places])


# ------------------------------------------------------------------------------------------------- your own folder


def own(folder: Path, left_out: Counter[str], no_subjects: Path | None) -> Iterator[tuple[str, str, str]]:
    """A folder of your own subjects, as `train.data.folder` describes it."""
    for place in subject_places(folder):
        yield place.name, class_noun(place), place.name


def _own_views(folder: Path, place: str) -> tuple[View, ...]:
    pairs = ((path, mask_path(path)) for path in pictures_in(folder / place))
    return tuple(View(path, mask if mask.is_file() else None) for path, mask in pairs)


READERS = {"mvimgnet": mvimgnet, "openimages": openimages, "folder": own}
VIEWS = {"mvimgnet": _mvimgnet_views, "openimages": _openimages_views, "folder": _own_views}
