"""Photographs of subjects in the layouts in which their data sets are published: MVImgNet, OpenImages V7, a folder.

Each reader lists subjects and opens nothing but text files; pictures are read, filtered and packed by
`train.data.shards`. What a reader leaves out on the annotation's word alone (a group, a drawing, a cut-off box)
it does not list.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from customcontrast.errors import DataLayoutError
from train.data.folder import SUFFIXES, class_noun, mask_path, pictures_in, subject_places

MVIMGNET_CLASSES = "mvimgnet_category.txt"  # lines "class label,class name"
OPENIMAGES_CLASSES = "class-descriptions"  # part of a CSV's name: LabelName,DisplayName
OPENIMAGES_MASKS = "object-segmentation"  # MaskPath,ImageID,LabelName,BoxID,…
OPENIMAGES_BOXES = "bbox"  # ImageID,…,LabelName,…,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,…
LEFT_OUT = ("IsTruncated", "IsGroupOf", "IsDepiction")


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


def list_subjects(source: str, folder: Path) -> list[Subject]:
    """The subjects of `folder`, sorted by id.

    source: mvimgnet | openimages | folder. Raises DataLayoutError where the layout is another one.
    """
    readers = {"mvimgnet": mvimgnet, "openimages": openimages, "folder": own}
    if source not in readers:
        raise DataLayoutError(f"source is {source!r}; choose {', '.join(readers)}")
    if not folder.is_dir():
        raise DataLayoutError(f"input {folder} is not a folder; pass the data set's root")
    found = sorted(readers[source](folder), key=lambda subject: subject.id)
    if not found:
        raise DataLayoutError(
            f"input {folder} holds no subject in the layout of {source!r}; see train/data/photos.py for it"
        )
    return found


def mvimgnet(folder: Path) -> Iterator[Subject]:
    """MVImgNet: class_label/instance_id/images/*.jpg, with masks/ beside images/ (2.0), or under the root
    mask/class_label/instance_id/NAME.jpg.png (1.0); mvimgnet_category.txt names the classes.

    Raises DataLayoutError when the list of classes is missing.
    """
    listed = folder / MVIMGNET_CLASSES
    if not listed.is_file():
        raise DataLayoutError(f"{folder} has no {MVIMGNET_CLASSES}; put the data set's list of classes there")
    rows = (line.split(",", 1) for line in listed.read_text(encoding="utf-8").splitlines() if "," in line)
    names = {label.strip(): name.strip().lower() for label, name in rows}
    for place in sorted(folder.glob("*/*/images")):
        instance, label = place.parent, place.parent.parent.name
        if label not in names:
            continue
        masks = (instance / "masks", folder / "mask" / label / instance.name)
        views = tuple(View(path, _mask_beside(path, masks)) for path in pictures_in(place))
        if views:
            yield Subject(f"{label}-{instance.name}", names[label], views)


def _mask_beside(picture: Path, folders: tuple[Path, ...]) -> Path | None:
    names = (f"{picture.name}.png", f"{picture.stem}.png", picture.name)
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def openimages(folder: Path) -> Iterator[Subject]:
    """OpenImages V7: images/ImageID.jpg, masks/MaskPath, and three CSVs under any of their published names: boxes
    (…bbox….csv), masks (…object-segmentation….csv), classes (…class-descriptions….csv, with or without a header).

    A subject is one masked instance, so it has one view. Left out: instances whose box is truncated, a group or a
    depiction, and pictures with two boxes of the same class, where a caption would not say which is meant.
    """
    names = {row[0]: row[1].lower() for row in _rows(_table(folder, OPENIMAGES_CLASSES)) if len(row) > 1}
    boxes: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in _records(_table(folder, OPENIMAGES_BOXES)):
        if row.get("ImageID") and row.get("LabelName"):
            boxes[row["ImageID"], row["LabelName"]].append(row)
    for row in _records(_table(folder, OPENIMAGES_MASKS)):
        image, label, mask = row.get("ImageID"), row.get("LabelName"), row.get("MaskPath")
        mine = boxes.get((image, label), [])
        if not mask or label not in names or len(mine) != 1 or any(mine[0].get(flag) == "1" for flag in LEFT_OUT):
            continue
        picture = next((p for s in sorted(SUFFIXES) if (p := folder / "images" / f"{image}{s}").is_file()), None)
        if picture is not None:
            yield Subject(Path(mask).stem, names[label], (View(picture, folder / "masks" / mask),))


def _table(folder: Path, part: str) -> Path:
    found = sorted(path for path in folder.glob("*.csv") if part in path.name)
    if not found:
        raise DataLayoutError(f"{folder} has no CSV with {part!r} in its name; OpenImages publishes one")
    return found[0]


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        yield from csv.reader(file)


def _records(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        yield from csv.DictReader(file)


def own(folder: Path) -> Iterator[Subject]:
    """A folder of your own subjects, as `train.data.folder` describes it."""
    for place in subject_places(folder):
        views = []
        for path in pictures_in(place):
            mask = mask_path(path)
            views.append(View(path, mask if mask.is_file() else None))
        yield Subject(place.name, class_noun(place), tuple(views))
