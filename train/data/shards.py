"""Photographs packed into WebDataset shards, and training samples drawn from them.

    python -m train.data prepare --source mvimgnet --input FOLDER --output FOLDER

One WebDataset sample is one subject: `ID.json` (subject, noun, captions, sizes before any resizing), `ID.000.jpg`,
`ID.000.mask.png`, … Any WebDataset reader can stream them. `ShardSource` reads single members of the tars in place
instead, so that which frames a step sees stays a function of (seed, step) however many workers and processes read.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from tqdm import tqdm

from customcontrast.errors import ConfigError, PictureError, SegmentationError
from customcontrast.folders import make_folder
from customcontrast.images.loading import load_picture
from customcontrast.images.resizing import reduced
from customcontrast.segmentation import Segmentation, Segmenter
from train.data.captioning import Captioner
from train.data.folder import MAX_SIDE, Frame, caption_of, has_caption, read_mask, square
from train.data.photos import Listing, Subject, View
from train.data.references import segmented
from train.data.samples import Sample
from train.data.shard_cache import TURNS, ShardCache, crop_rng
from train.data.shard_index import ShardIndex, open_index

LOG = logging.getLogger(__name__)
QUALITY = 95  # of the JPEGs
SUMMARY = "report.json"  # beside the shards: what was kept and left out in all of them


@dataclass(frozen=True)
class FilterConfig:
    """Which views and subjects are good enough to learn from."""

    area_min: float = 0.04  # share of the picture that the subject covers, at least
    area_max: float = 0.9  # and at most
    sharpness: float = 20.0  # variance of the Laplacian inside the subject's box at ≤ 256 px, at least
    single: float = 0.8  # share of the mask that its largest connected part must hold
    views: int = 2  # usable views a subject must have
    max_views: int = 12  # of which so many, evenly spread, are kept
    min_side: int = 0  # shorter side of the picture, px, at least: what is smaller would be enlarged in training


@dataclass(frozen=True)
class ShardConfig:
    """How shards are cut."""

    subjects: int = 64  # subjects listed for one shard, before the filters
    size: int = 768  # shorter side of a kept picture, px; smaller pictures stay as they are


def view_fault(picture: Image.Image, mask: np.ndarray, config: FilterConfig) -> str:
    """Why this view is left out, in a few words; empty when it is good. mask: bool (H, W)."""
    if min(picture.size) < config.min_side:
        return f"{picture.width} x {picture.height} px is too small"
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
    workers: int = 0,
    part: tuple[int, int] = (1, 1),
) -> list[Path]:
    """Pack `subjects` into output/shard-NNNNN.tar; finished shards are left alone, so a killed run goes on.

    Beside each shard NNNNN.json lists what was left out and why; report.json adds them up. Shard k depends on the k-th
    run of subjects and the settings alone, whoever packs it. captioner: words the kept pictures that have no caption
    beside them; without it they are "a photo of a NOUN". workers: processes that pack, 0 = this one. part: (k, n) = the
    k-th of n machines that share `output`; the last of them to end makes the index (`train.data.shard_index`).
    Returns the shards that hold anything.

    Raises ValueError when `output` was made with other settings or from other subjects.
    """
    filters, config = filters or FilterConfig(), config or ShardConfig()
    make_folder(output, "--output")
    _same_settings(output / "shards.json", subjects, filters, config, captioner)
    count = -(-len(subjects) // config.subjects)
    mine = range(part[0] - 1, count, part[1])
    missing = [index for index in mine if not _tar(output, index).exists()]
    packer = _Packer(subjects, output, filters, config, captioner)
    with tqdm(total=len(mine), initial=len(mine) - len(missing), desc="pack shards", unit="shard",
              disable=not progress, smoothing=0.05) as bar:  # fmt: skip
        for _ in _packed(packer, missing, workers):
            bar.update()
    if all(_tar(output, index).exists() for index in range(count)):
        summary = summarize(output)
        (output / SUMMARY).write_text(json.dumps(summary, indent=1), encoding="utf-8")
        open_index(output, workers)
    return [tar for tar in sorted(output.glob("shard-*.tar")) if _reported(tar)["kept"]]


def summarize(folder: Path) -> dict[str, Any]:
    """What was kept and left out over all finished shards: subjects, views, and pictures or subjects by reason."""
    left_out: Counter[str] = Counter()
    subjects = views = 0
    for tar in folder.glob("shard-*.tar"):
        report = _reported(tar)
        subjects, views = subjects + report["kept"], views + report.get("views", 0)
        left_out.update(report.get("counts", {}))
    return {"subjects": subjects, "views": views, "left_out": dict(left_out.most_common())}


def _packed(packer: _Packer, missing: Sequence[int], workers: int) -> Iterator[int]:
    """Pack these shards, in this process or in `workers`; yields each number when it is done."""
    if workers < 1 or not missing:
        yield from map(packer, missing)
        return
    # forked, so that the listing is shared and not copied; what the parent holds of torch has started no thread yet
    processes = ProcessPoolExecutor(min(workers, len(missing)), get_context("fork"), _adopt, (packer,))
    with _one_opencv_thread(), processes as pool:
        futures = [pool.submit(_pack_one, index) for index in missing]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """OpenCV's threads stay behind where a process is forked, and a child that ends them waits for ever: none now."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


_PACKER: list[_Packer] = []  # in a worker process: what it packs with


def _adopt(packer: _Packer) -> None:
    torch.set_num_threads(1)
    _PACKER[:] = [packer]


def _pack_one(index: int) -> int:
    return _PACKER[0](index)


@dataclass
class _Packer:
    """Packs shards by their numbers."""

    subjects: Sequence[Subject]
    output: Path
    filters: FilterConfig
    config: ShardConfig
    captioner: Captioner | None

    def __post_init__(self) -> None:
        self.segmenter: list[Segmenter] = []  # made when the first view without a mask comes

    def __call__(self, index: int) -> int:
        start = index * self.config.subjects
        stop = min(start + self.config.subjects, len(self.subjects))
        mine = [self.subjects[i] for i in range(start, stop)]
        _write_shard(_tar(self.output, index), mine, self.filters, self.config, self.segmenter, self.captioner)
        return index


def _tar(output: Path, index: int) -> Path:
    return output / f"shard-{index:05d}.tar"


def _report(tar: Path) -> Path:
    return tar.with_suffix(".json")


def _reported(tar: Path) -> dict[str, Any]:
    return json.loads(_report(tar).read_text(encoding="utf-8"))


def _same_settings(
    path: Path, subjects: Sequence[Subject], filters: FilterConfig, config: ShardConfig, captioner: Captioner | None
) -> None:
    if isinstance(subjects, Listing):
        digest = subjects.digest()
    else:
        digest = hashlib.sha256("\n".join(subject.id for subject in subjects).encode()).hexdigest()[:16]
    settings = {"filters": vars(filters), "shards": vars(config), "subjects": digest, "count": len(subjects)}
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
    kept = views = 0
    part = tar.with_suffix(".part")
    with webdataset.TarWriter(str(part), mtime=0) as writer:
        for subject in subjects:
            sample = _pack(subject, filters, config, segmenter, captioner, skipped)
            if sample is not None:
                writer.write(sample)
                kept, views = kept + 1, views + len(sample["json"]["captions"])
    counts = Counter(reason(row["why"]) for row in skipped)
    report = {"kept": kept, "views": views, "counts": dict(counts), "skipped": skipped}
    _report(tar).write_text(json.dumps(report, indent=1), encoding="utf-8")
    part.replace(tar)


_REASONS = {  # words of a message → the reason that is counted
    "usable views": "subjects: too few usable views",
    "too small": "pictures: too small",
    "covers": "pictures: subject too small or too large",
    "in pieces": "pictures: mask in pieces",
    "blurred": "pictures: blurred",
    "another shape": "pictures: mask of another shape",
    "no pixel is marked": "pictures: empty mask",
    "there is no file": "pictures: a file is missing",
}


def reason(why: str) -> str:
    """The kind of a message about a picture or a subject that is left out."""
    return next((kind for words, kind in _REASONS.items() if words in why), "pictures: cannot be read or segmented")


def spread(count: int, first: int) -> list[int]:
    """0 … count − 1 with `first` evenly spaced ones in front, the others behind them in order."""
    even = np.unique(np.linspace(0, count - 1, min(count, first)).round().astype(int)).tolist()
    return even + sorted(set(range(count)) - set(even))


def _pack(
    subject: Subject,
    filters: FilterConfig,
    config: ShardConfig,
    segmenter: list[Segmenter],
    captioner: Captioner | None,
    skipped: list[dict],
) -> dict[str, Any] | None:
    """The sample of a subject, or None. Views are read evenly spaced ones first, until there are `max_views`."""
    good: dict[int, tuple[Segmentation, str, tuple[int, int], bool]] = {}  # whether the caption is the default one
    for i in spread(len(subject.views), filters.max_views):
        if len(good) == filters.max_views:
            break
        view = subject.views[i]
        try:
            found = _segmentation(view, segmenter)
            fault = view_fault(found.image, found.mask, filters)
            caption, span = caption_of(view.picture, subject.noun)
        except (PictureError, SegmentationError, ConfigError) as error:
            fault = str(error)
        if fault:
            skipped.append({"subject": subject.id, "picture": view.picture.name, "why": fault})
        else:
            good[i] = found, caption, span, not has_caption(view.picture)
    if len(good) < filters.views:
        why = f"{len(good)} usable views, {filters.views} needed"
        skipped.append({"subject": subject.id, "picture": "", "why": why})
        return None
    kept = [good[i] for i in sorted(good)]
    captions = [[text, list(span)] for _, text, span, _ in kept]
    bare = [i for i, (*_, default) in enumerate(kept) if default]
    if captioner and bare:
        written = captioner.captions([kept[i][0].image for i in bare], subject.noun)
        for i, (text, span) in zip(bare, written, strict=True):
            captions[i] = [text, list(span)]
    sizes = [list(found.image.size) for found, *_ in kept]
    record = {"subject": subject.id, "noun": subject.noun, "captions": captions, "sizes": sizes}
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
    picture = load_picture(view.picture, argument=view.picture.name, max_side=MAX_SIDE)
    if view.mask is None:
        if not segmenter:
            segmenter.append(Segmenter())
        return segmenter[0].auto(picture)
    inside = read_mask(view.mask, picture.size)
    return Segmentation(image=picture, mask=inside, score=1.0, method="given")


def _jpeg(picture: Image.Image, side: int) -> bytes:
    buffer = io.BytesIO()
    reduced(picture.convert("RGB"), side).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _mask_png(found: Segmentation, side: int) -> bytes:
    buffer = io.BytesIO()
    reduced(Image.fromarray(found.mask.astype(np.uint8) * 255), side).point(lambda v: 255 * (v > 127)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------ reading


class ShardSource:
    """Subjects of a folder of shards. x, r and r⁺ are different views wherever there are enough; from a subject of one
    view (OpenImages) r and r⁺ are that view mirrored and turned, so that they do not show x's pose.

    What is in the folder, and what was left out of it, is said once at the start; a tar that cannot be read is listed
    in `skipped`. Raises ConfigError when no subject is left.
    """

    def __init__(self, folder: Path, size: int, crop: int, workers: int = 0) -> None:
        self.folder, self.size, self.crop = folder, size, crop
        self.index: ShardIndex = open_index(folder, workers)
        self.cache: ShardCache | None = None  # set where `data.shard_cache` asks for it (`train.data.sources`)
        self.skipped = list(self.index.skipped)
        if not len(self):
            raise ConfigError(
                f"data.path {folder} holds no shard with a subject in it; make some with `python -m train.data prepare`"
                + (f" (skipped: {'; '.join(self.skipped)})" if self.skipped else "")
            )
        said, left_out = inventory(folder, self.index)
        LOG.log(logging.WARNING if left_out or self.skipped else logging.INFO, said)

    def __len__(self) -> int:
        return len(self.index.subjects)

    def subject_keys(self) -> np.ndarray:
        return np.array(self.index.subjects["key"])

    def draw(self, index: int, rng: random.Random) -> Sample:
        """Raises ConfigError naming the tar when this subject in it is damaged."""
        return self._guarded(index, rng, self._draw)

    def pair(self, index: int, rng: random.Random) -> Sample:
        """R and R⁺ alone; x is not read. Raises ConfigError as `draw` does."""
        return self._guarded(index, rng, self._pair)

    def _guarded(self, index: int, rng: random.Random, draw: Callable[[int, random.Random], Sample]) -> Sample:
        try:
            return draw(index, rng)
        except Exception as error:  # broken JSON, JPEG, PNG or a missing member: Pillow alone raises a dozen kinds
            tar = self.index.tars[int(self.index.subjects[index]["tar"])]
            raise ConfigError(
                f"data.path: a subject in {tar.name} is damaged ('{type(error).__name__}'); delete this shard and "
                "make it again with `python -m train.data prepare`."
            ) from error

    def record(self, index: int) -> dict[str, Any]:
        """The JSON of a subject: subject, noun, captions [[text, [start, end]], …] and, in newer shards, sizes."""
        row = self.index.subjects[index]
        return json.loads(self.index.read(index, row["record"], row["record_size"]))

    def _draw(self, index: int, rng: random.Random) -> Sample:
        record = self.record(index)
        count = len(record["captions"])
        order = rng.sample(range(count), count)
        target, reference, positive = (order[k % count] for k in range(3))
        if count == 2:  # r⁺ ≠ r matters more than r⁺ ≠ x
            positive = target
        caption, noun = record["captions"][target]
        if self.cache is not None and self.cache.latents is not None:
            _, inside, origin = self.cropped(index, record, target)
            x: dict[str, Tensor] = {"latent": self.cache.latent(index, target)}
        else:
            image, inside, origin = square(self.frame(index, record, target), self.size, rng)
            x = {"image": image}
        shown = self._references(index, reference, positive, count, rng)
        return Sample(record["subject"], caption, tuple(noun), inside, origin=origin, **(x | shown))

    def _references(self, index: int, reference: int, positive: int, count: int, rng: random.Random) -> dict[str, Any]:
        """R and R⁺ as pictures, or what CLIP says of them: fields of a Sample."""
        if self.cache is None or self.cache.states is None:
            both = [self.reference(index, view, count, rng) for view in (reference, positive)]
            return {"reference": both[0], "positive": both[1]}
        if count == 1:
            reference, positive = rng.sample(range(TURNS), 2)
        states, embedding = self.cache.state(index, reference)
        positive_states, _ = self.cache.state(index, positive)
        return {"reference_states": states, "positive_states": positive_states, "embedding": embedding}

    def cropped(self, index: int, record: dict[str, Any], view: int) -> tuple[Tensor, Tensor, Tensor]:
        """`square` of a view with a crop that is always the same."""
        rng = crop_rng(self.index.subjects[index]["key"], view)
        return square(self.frame(index, record, view), self.size, rng)

    def _pair(self, index: int, rng: random.Random) -> Sample:
        record = self.record(index)
        count = len(record["captions"])
        order = rng.sample(range(count), min(2, count))
        shown = self._references(index, order[0], order[-1], count, rng)
        caption, noun = record["captions"][order[0]]
        mask = torch.zeros(1, 1, 1, dtype=torch.bool)
        return Sample(record["subject"], caption, tuple(noun), mask, pair=True, **shown)

    def frame(self, index: int, record: dict[str, Any], view: int) -> Frame:
        """One picture of a subject with its mask and caption."""
        picture, mask = self._view(index, view)
        caption, noun = record["captions"][view]
        sizes = record.get("sizes")
        return Frame(picture, mask, caption, tuple(noun), tuple(sizes[view]) if sizes else None)

    def _view(self, index: int, view: int) -> tuple[bytes, np.ndarray]:
        row = self.index.rows(index)[view]
        mask = Image.open(io.BytesIO(self.index.read(index, row["mask"], row["mask_size"])))
        return self.index.read(index, row["picture"], row["picture_size"]), np.asarray(mask) > 127

    def reference(self, index: int, view: int, count: int, rng: random.Random) -> Tensor:
        """R of one view, uint8 (3, C, C); of a subject of one view mirrored and turned, as `rng` says."""
        data, mask = self._view(index, view)
        pixels = pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB"))
        cut = segmented(pixels, torch.from_numpy(mask.copy()), self.crop)
        return turned(cut, rng) if count == 1 else cut


def inventory(folder: Path, index: ShardIndex) -> tuple[str, dict[str, int]]:
    """One line: how many subjects and views a folder of shards holds, and what was left out of it; that by reason."""
    said = f"{folder}: {len(index.subjects):,} subjects with {len(index.views):,} views in {len(index.tars)} shards"
    try:
        left_out = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["left_out"]
    except (OSError, ValueError, KeyError):
        left_out = {}
    if left_out:
        said += "; left out when they were packed: " + ", ".join(f"{n:,} {kind}" for kind, n in left_out.items())
    if index.skipped:
        said += f"; {len(index.skipped)} shards cannot be read: {'; '.join(index.skipped[:5])}"
    return said, left_out


def turned(cut: Tensor, rng: random.Random, degrees: float = 20.0) -> Tensor:
    """A subject on white, uint8 (3, C, C), mirrored half the time, turned by up to `degrees` and scaled to 80–100 %."""
    picture = to_pil_image(cut)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side, scale = picture.width, rng.uniform(0.8, 1.0)
    small = picture.resize((round(side * scale),) * 2, Image.Resampling.BICUBIC)
    plain = Image.new("RGB", picture.size, "white")
    plain.paste(small, ((side - small.width) // 2,) * 2)
    angle = rng.uniform(-degrees, degrees)
    plain = plain.rotate(angle, Image.Resampling.BICUBIC, fillcolor="white")
    return pil_to_tensor(plain)


def skipped_views(folder: Path) -> Iterator[dict[str, str]]:
    """What `write_shards` left out, over all shards: subject, picture, why."""
    for tar in sorted(folder.glob("shard-*.tar")):
        yield from json.loads(_report(tar).read_text())["skipped"]
