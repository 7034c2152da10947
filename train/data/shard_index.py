"""Where each subject's members lie in the tars of a folder: two arrays that all processes map from one file.

A tar says where its members are only to who walks through all of its headers. That is done once (by `prepare`, else
by the first run), and only for tars that have changed since. The arrays are mapped, not read: loader processes and the
eight processes of a node share the pages that they touch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

LOG = logging.getLogger(__name__)
FOLDER = "index"
SUBJECT = np.dtype(
    [("tar", "<u4"), ("record", "<i8"), ("record_size", "<u4"), ("first", "<i8"), ("views", "<u4"), ("key", "<u8")]
)  # tar: which; record: where its JSON begins, bytes; first: its first row in `views`; key: hash of its name in the tar
VIEW = np.dtype([("picture", "<i8"), ("picture_size", "<u4"), ("mask", "<i8"), ("mask_size", "<u4")])  # bytes


@dataclass(frozen=True)
class ShardIndex:
    """The subjects of a folder of shards, in the order of tars and of samples in them."""

    tars: tuple[Path, ...]
    subjects: np.ndarray  # SUBJECT (N,)
    views: np.ndarray  # VIEW (V,)
    skipped: tuple[str, ...]  # tars that cannot be read, with the reason

    def rows(self, subject: int) -> np.ndarray:
        """The VIEW rows of a subject."""
        row = self.subjects[subject]
        first = int(row["first"])
        return self.views[first : first + int(row["views"])]

    def read(self, subject: int, offset: int, size: int) -> bytes:
        """`size` bytes of the subject's tar from `offset` on."""
        with self.tars[int(self.subjects[subject]["tar"])].open("rb") as file:
            file.seek(int(offset))
            return file.read(int(size))


def key_of(name: str) -> int:
    """A 64-bit number for a sample's name in a tar; equal on every machine."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def open_index(folder: Path, workers: int = 0) -> ShardIndex:
    """The index of a folder of tars; what is missing of it is made and kept there, where the folder can be written.

    workers: processes that walk through new tars; 0 = this one.
    """
    tars = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    stamps = [[tar.name, stat.st_size, stat.st_mtime_ns] for tar in tars if (stat := tar.stat())]
    about = _about(folder)
    if about is None or about["tars"] != stamps:
        built = _build(folder, tars, stamps, about, workers)
        if built is not None:
            return ShardIndex(tuple(tars), *built)
        about = _about(folder)
        assert about is not None  # `_build` has just written it
    subjects, views = (np.load(_array(folder, name, about["digest"]), mmap_mode="r") for name in ("subjects", "views"))
    return ShardIndex(tuple(tars), subjects, views, tuple(about["skipped"]))


def _about(folder: Path) -> dict | None:
    """What the index says of itself; None where there is none that can be used."""
    try:
        about = json.loads((folder / FOLDER / "index.json").read_text(encoding="utf-8"))
        for name, kind in (("subjects", SUBJECT), ("views", VIEW)):
            if np.load(_array(folder, name, about["digest"]), mmap_mode="r").dtype != kind:
                return None
        return about if about["tars"] is not None else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _array(folder: Path, name: str, digest: str) -> Path:
    return folder / FOLDER / f"{name}-{digest}.npy"


def _build(
    folder: Path, tars: Sequence[Path], stamps: list[list], about: dict | None, workers: int
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]] | None:
    """Walk through the tars that are new and write the index; returns it where it could not be written."""
    known = {} if about is None else {tuple(stamp): i for i, stamp in enumerate(about["tars"])}
    old_subjects, old_views = (
        (np.zeros(0, SUBJECT), np.zeros(0, VIEW))
        if about is None
        else (np.load(_array(folder, name, about["digest"]), mmap_mode="r") for name in ("subjects", "views"))
    )
    new = [tar for tar, stamp in zip(tars, stamps, strict=True) if tuple(stamp) not in known]
    walked = dict(zip(new, _walk_all(new, workers), strict=True))
    subjects, views, skipped, rows = [], [], [], 0
    said = [] if about is None else about["skipped"]
    bounds = np.searchsorted(old_subjects["tar"], np.arange(len(known) + 1))
    for i, (tar, stamp) in enumerate(zip(tars, stamps, strict=True)):
        if tar in walked:
            s, v, fault = walked[tar]
            if fault:
                skipped.append(f"{tar.name}: {fault}")
        else:
            at = known[tuple(stamp)]
            s = np.array(old_subjects[bounds[at] : bounds[at + 1]])
            first, end = (int(s["first"][0]), int(s["first"][-1] + s["views"][-1])) if len(s) else (0, 0)
            v = np.array(old_views[first:end])
            s["first"] -= first
            skipped += [text for text in said if text.startswith(f"{tar.name}: ")]
        s = s.copy()
        s["tar"], s["first"] = i, s["first"] + rows
        subjects.append(s)
        views.append(v)
        rows += len(v)
    all_subjects = np.concatenate(subjects) if subjects else np.zeros(0, SUBJECT)
    all_views = np.concatenate(views) if views else np.zeros(0, VIEW)
    digest = hashlib.blake2b(json.dumps(stamps).encode(), digest_size=6).hexdigest()
    try:
        (folder / FOLDER).mkdir(exist_ok=True)
        for name, array in (("subjects", all_subjects), ("views", all_views)):
            part = folder / FOLDER / f"{name}-{digest}.{os.getpid()}.part.npy"
            np.save(part, array)
            part.replace(_array(folder, name, digest))
        part = folder / FOLDER / f"index.{os.getpid()}.part"
        part.write_text(json.dumps({"tars": stamps, "skipped": skipped, "digest": digest}), encoding="utf-8")
        part.replace(folder / FOLDER / "index.json")
        for path in (folder / FOLDER).glob("*.npy"):
            if about is not None and about["digest"] != digest and path.stem.endswith(about["digest"]):
                path.unlink(missing_ok=True)
    except OSError as error:
        LOG.warning("the index of %s cannot be kept (%s); every process makes its own, at every start", folder, error)
        return all_subjects, all_views, tuple(skipped)
    return None


def _walk_all(tars: Sequence[Path], workers: int) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    if workers < 2 or len(tars) < 2:
        yield from map(walk, tars)
        return
    with ProcessPoolExecutor(min(workers, len(tars)), get_context("fork")) as pool:
        yield from pool.map(walk, tars, chunksize=4)


def walk(tar: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """SUBJECT rows and VIEW rows of one tar, numbered from 0, and what is wrong with it ("" = nothing)."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(tar) as file:
            for member in file:
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, {})[suffix] = member.offset_data, member.size
                vars(file)["members"].clear()  # else it remembers every header
    except (tarfile.TarError, OSError) as error:
        return np.zeros(0, SUBJECT), np.zeros(0, VIEW), str(error).splitlines()[0] if str(error) else "damaged"
    subjects: list[tuple[int, ...]] = []
    views: list[tuple[int, ...]] = []
    for key, parts in found.items():
        if "json" not in parts:
            continue
        mine: list[tuple[int, ...]] = []
        while (picture := parts.get(f"{len(mine):03d}.jpg")) and (mask := parts.get(f"{len(mine):03d}.mask.png")):
            mine.append((*picture, *mask))
        subjects.append((0, *parts["json"], len(views), len(mine), key_of(key)))
        views += mine
    return np.array(subjects, SUBJECT), np.array(views, VIEW), ""
