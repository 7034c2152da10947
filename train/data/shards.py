"""Photographs packed into WebDataset shards, and training samples drawn from them.

    python -m train.data prepare --source mvimgnet --input FOLDER --output FOLDER

One WebDataset sample is one subject: `ID.json` (subject, noun, captions), `ID.000.jpg`, `ID.000.mask.png`, … Any
WebDataset reader can stream them. `ShardSource` reads single members of the tars in place instead, so that which
frames a step sees stays a function of (seed, step) however many workers and processes read.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from customcontrast.errors import ConfigError, PictureError, SegmentationError
from customcontrast.images.loading import load_picture
from customcontrast.segmentation import Segmentation, Segmenter
from train.data.captioning import Captioner
from train.data.folder import MAX_SIDE, Frame, caption_of, has_caption, read_mask, square
from train.data.photos import Subject, View
from train.data.references import segmented
from train.data.samples import Sample

QUALITY = 95  # of the JPEGs


@dataclass(frozen=True)
class FilterConfig:
    """Which views and subjects are good enough to learn from."""

    area_min: float = 0.04  # share of the picture that the subject covers, at least
    area_max: float = 0.9  # and at most
    sharpness: float = 20.0  # variance of the Laplacian inside the subject's box at ≤ 256 px, at least
    single: float = 0.8  # share of the mask that its largest connected part must hold
    views: int = 2  # usable views a subject must have
    max_views: int = 12  # of which so many, evenly spread, are kept


@dataclass(frozen=True)
class ShardConfig:
    """How shards are cut."""

    subjects: int = 64  # subjects listed for one shard, before the filters
    size: int = 768  # shorter side of a kept picture, px; smaller pictures stay as they are


def view_fault(picture: Image.Image, mask: np.ndarray, config: FilterConfig) -> str:
    """Why this view is left out, in a few words; empty when it is good. mask: bool (H, W)."""
    area = float(mask.mean())
    if not config.area_min <= area <= config.area_max:
        return f"subject covers {area:.1%}"
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    largest = stats[1:, cv2.CC_STAT_AREA].max() / mask.sum()
    if largest < config.single:
        return f"mask in pieces, the largest holds {largest:.0%}"
    sharp = sharpness(picture, mask)
    return f"blurred ({sharp:.0f})" if sharp < config.sharpness else ""


def sharpness(picture: Image.Image, mask: np.ndarray) -> float:
    """Variance of the Laplacian of the grey subject box, reduced to 256 px on its longer side (grey levels²)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    grey = picture.convert("L").crop(box)
    scale = min(1.0, 256 / max(grey.size))
    grey = grey.resize([max(3, round(side * scale)) for side in grey.size], Image.Resampling.BICUBIC)
    return float(cv2.Laplacian(np.asarray(grey, dtype=np.float64), cv2.CV_64F).var())


# ------------------------------------------------------------------------------------------------------ writing


def write_shards(
    subjects: Sequence[Subject],
    output: Path,
    filters: FilterConfig | None = None,
    config: ShardConfig | None = None,
    progress: bool = True,
    captioner: Captioner | None = None,
) -> list[Path]:
    """Pack `subjects` into output/shard-NNNNN.tar; finished shards are left alone, so a killed run goes on.

    Beside each shard NNNNN.json lists what was left out and why. Shard k depends on the k-th run of subjects and the
    settings alone. captioner: words the kept pictures that have no caption beside them; without it they are "a photo of
    a NOUN". Returns the shards that hold anything.

    Raises ValueError when `output` was made with other settings or from other subjects.
    """
    filters, config = filters or FilterConfig(), config or ShardConfig()
    output.mkdir(parents=True, exist_ok=True)
    _same_settings(output / "shards.json", subjects, filters, config, captioner)
    segmenter: list[Segmenter] = []  # made when the first view without a mask comes
    starts = range(0, len(subjects), config.subjects)
    for index, start in enumerate(tqdm(starts, desc="pack shards", unit="shard", disable=not progress)):
        tar = output / f"shard-{index:05d}.tar"
        if not tar.exists():
            _write_shard(tar, subjects[start : start + config.subjects], filters, config, segmenter, captioner)
    return [tar for tar in sorted(output.glob("shard-*.tar")) if json.loads(_report(tar).read_text())["kept"]]


def _report(tar: Path) -> Path:
    return tar.with_suffix(".json")


def _same_settings(
    path: Path, subjects: Sequence[Subject], filters: FilterConfig, config: ShardConfig, captioner: Captioner | None
) -> None:
    ids = [subject.id for subject in subjects]
    settings = {"filters": vars(filters), "shards": vars(config), "first": ids[0], "count": len(ids)}
    settings |= {"captions": captioner.name} if captioner else {}
    if path.exists() and json.loads(path.read_text()) != settings:
        raise ValueError(f"output {path.parent} was made with other settings or data; choose another folder")
    path.write_text(json.dumps(settings))


def _write_shard(
    tar: Path,
    subjects: Sequence[Subject],
    filters: FilterConfig,
    config: ShardConfig,
    segmenter: list[Segmenter],
    captioner: Captioner | None,
) -> None:
    skipped: list[dict[str, str]] = []
    kept = 0
    part = tar.with_suffix(".part")
    with webdataset.TarWriter(str(part), mtime=0) as writer:
        for subject in subjects:
            sample = _pack(subject, filters, config, segmenter, captioner, skipped)
            if sample is not None:
                writer.write(sample)
                kept += 1
    _report(tar).write_text(json.dumps({"kept": kept, "skipped": skipped}, indent=1))
    part.replace(tar)


def _pack(
    subject: Subject,
    filters: FilterConfig,
    config: ShardConfig,
    segmenter: list[Segmenter],
    captioner: Captioner | None,
    skipped: list[dict],
) -> dict[str, Any] | None:
    good: list[tuple[Segmentation, str, tuple[int, int], bool]] = []  # whether the caption is the default one
    for view in subject.views:
        try:
            found = _segmentation(view, segmenter)
            fault = view_fault(found.image, found.mask, filters)
            caption, span = caption_of(view.picture, subject.noun)
        except (PictureError, SegmentationError, ConfigError) as error:
            fault = str(error)
        if fault:
            skipped.append({"subject": subject.id, "picture": view.picture.name, "why": fault})
        else:
            good.append((found, caption, span, not has_caption(view.picture)))
    if len(good) < filters.views:
        why = f"{len(good)} usable views, {filters.views} needed"
        skipped.append({"subject": subject.id, "picture": "", "why": why})
        return None
    picks = np.unique(np.linspace(0, len(good) - 1, min(len(good), filters.max_views)).round().astype(int))
    kept = [good[i] for i in picks]
    captions = [[text, list(span)] for _, text, span, _ in kept]
    bare = [i for i, (*_, default) in enumerate(kept) if default]
    if captioner and bare:
        written = captioner.captions([kept[i][0].image for i in bare], subject.noun)
        for i, (text, span) in zip(bare, written, strict=True):
            captions[i] = [text, list(span)]
    record = {"subject": subject.id, "noun": subject.noun, "captions": captions}
    sample: dict[str, Any] = {"__key__": sample_key(subject.id), "json": record}
    for i, (found, *_) in enumerate(kept):
        sample |= {f"{i:03d}.jpg": _jpeg(found.image, config.size), f"{i:03d}.mask.png": _mask_png(found, config.size)}
    return sample


def sample_key(subject: str) -> str:
    """The key of a subject in a tar: its id in letters, digits, _ and -; where that changes it, with a hash of it.

    So "toy 1", "toy.1" and "toy_1" stay three subjects, for every reader of WebDataset's tars.
    """
    plain = re.sub(r"[^\w-]", "_", subject)
    return plain if plain == subject else f"{plain}-{hashlib.sha256(subject.encode()).hexdigest()[:8]}"


def _segmentation(view: View, segmenter: list[Segmenter]) -> Segmentation:
    picture = load_picture(view.picture, argument=view.picture.name)
    if view.mask is None:
        segmenter or segmenter.append(Segmenter())
        return segmenter[0].auto(picture)
    inside = read_mask(view.mask, picture.size)
    return Segmentation(image=picture, mask=inside, score=1.0, method="given")


def _reduced(picture: Image.Image, side: int) -> Image.Image:
    scale = min(side / min(picture.size), MAX_SIDE / max(picture.size))
    if scale >= 1:
        return picture
    return picture.resize([round(x * scale) for x in picture.size], Image.Resampling.LANCZOS)


def _jpeg(picture: Image.Image, side: int) -> bytes:
    buffer = io.BytesIO()
    _reduced(picture.convert("RGB"), side).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _mask_png(found: Segmentation, side: int) -> bytes:
    buffer = io.BytesIO()
    _reduced(Image.fromarray(found.mask.astype(np.uint8) * 255), side).point(lambda v: 255 * (v > 127)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class _Member:
    tar: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class ShardSource:
    """Subjects of a folder of shards. x, r and r⁺ are different views wherever there are enough; from a subject of one
    view (OpenImages) r and r⁺ are that view mirrored and turned, so that they do not show x's pose.

    A tar that cannot be read is listed in `skipped`. Raises ConfigError when no subject is left.
    """

    def __init__(self, folder: Path, size: int, crop: int) -> None:
        self.size, self.crop = size, crop
        self.skipped: list[str] = []
        self.subjects: list[dict[str, _Member]] = []
        tars = sorted(folder.glob("*.tar")) if folder.is_dir() else []
        for tar in tars:
            self.subjects += self._index(tar)
        if not self.subjects:
            raise ConfigError(
                f"data.path {folder} holds no shard with a subject in it; make some with `python -m train.data prepare`"
                + (f" (skipped: {'; '.join(self.skipped)})" if self.skipped else "")
            )

    def _index(self, tar: Path) -> list[dict[str, _Member]]:
        found: dict[str, dict[str, _Member]] = {}
        try:
            with tarfile.open(tar) as file:
                for member in file:
                    key, _, suffix = member.name.partition(".")
                    found.setdefault(key, {})[suffix] = _Member(tar, member.offset_data, member.size)
        except (tarfile.TarError, OSError) as error:
            self.skipped.append(f"{tar.name}: {str(error).splitlines()[0] if str(error) else 'damaged'}")
            return []
        return [parts for parts in found.values() if "json" in parts]

    def __len__(self) -> int:
        return len(self.subjects)

    def draw(self, index: int, rng: random.Random) -> Sample:
        """Raises ConfigError naming the tar when this subject in it is damaged."""
        try:
            return self._draw(self.subjects[index], rng)
        except Exception as error:  # broken JSON, JPEG, PNG or a missing member: Pillow alone raises a dozen kinds
            tar = next(iter(self.subjects[index].values())).tar
            raise ConfigError(
                f"data.path: a subject in {tar.name} is damaged ('{type(error).__name__}'); delete this shard and "
                "make it again with `python -m train.data prepare`."
            ) from error

    def _draw(self, parts: dict[str, _Member], rng: random.Random) -> Sample:
        record = json.loads(parts["json"].read())
        count = len(record["captions"])
        order = rng.sample(range(count), count)
        target, reference, positive = (order[k % count] for k in range(3))
        if count == 2:  # r⁺ ≠ r matters more than r⁺ ≠ x
            positive = target
        caption, noun = record["captions"][target]
        picture, mask = self._view(parts, target)
        image, inside = square(Frame(picture, mask, caption, tuple(noun)), self.size, rng)
        return Sample(
            subject=record["subject"],
            caption=caption,
            noun=tuple(noun),
            mask=inside,
            image=image,
            reference=self._reference(parts, reference, count, rng),
            positive=self._reference(parts, positive, count, rng),
        )

    @staticmethod
    def _view(parts: dict[str, _Member], i: int) -> tuple[bytes, np.ndarray]:
        mask = np.asarray(Image.open(io.BytesIO(parts[f"{i:03d}.mask.png"].read()))) > 127
        return parts[f"{i:03d}.jpg"].read(), mask

    def _reference(self, parts: dict[str, _Member], i: int, count: int, rng: random.Random) -> Tensor:
        data, mask = self._view(parts, i)
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
        cut = segmented(pixels, torch.from_numpy(mask.copy()), self.crop)
        return turned(cut, rng) if count == 1 else cut


def turned(cut: Tensor, rng: random.Random, degrees: float = 20.0) -> Tensor:
    """A subject on white, uint8 (3, C, C), mirrored half the time, turned by up to `degrees` and scaled to 80–100 %."""
    picture = Image.fromarray(cut.permute(1, 2, 0).numpy())
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side, scale = picture.width, rng.uniform(0.8, 1.0)
    small = picture.resize((round(side * scale),) * 2, Image.Resampling.BICUBIC)
    plain = Image.new("RGB", picture.size, "white")
    plain.paste(small, ((side - small.width) // 2,) * 2)
    angle = rng.uniform(-degrees, degrees)
    plain = plain.rotate(angle, Image.Resampling.BICUBIC, fillcolor="white")
    return torch.from_numpy(np.array(plain)).permute(2, 0, 1).contiguous()


def skipped_views(folder: Path) -> Iterator[dict[str, str]]:
    """What `write_shards` left out, over all shards: subject, picture, why."""
    for tar in sorted(folder.glob("shard-*.tar")):
        yield from json.loads(_report(tar).read_text())["skipped"]
