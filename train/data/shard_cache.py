"""What the frozen VAE and CLIP say of a folder of shards, kept beside them in 16 bits (`data.shard_cache`).

    latents   z_0 of one crop of every view, the same at every epoch: 32 kB a view at SD-1.5's 512 px, 128 kB at SDXL's
              1024. x's picture is then not read at all.
    clip      three CLIP layers and the embedding of every R: 1.6 MB a view with ViT-L/14, so of small sets only. Of a
              subject of one view, TURNS fixed turns of it.

One .npy a tar and kind, mapped. The folders' names hold a hash of the weights that said it.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from train.data.adapter_pool import Cache
from train.data.frozen_features import clip_features, latents_of
from train.data.samples import required
from train.data.shard_index import ShardIndex

if TYPE_CHECKING:
    from customcontrast.base_model import BaseModel

TURNS = 4  # of a subject of one view
CHUNK = 32  # pictures that are encoded at once


class Frames(Protocol):
    """What the cache reads of a folder of shards (`shards.ShardSource`)."""

    index: ShardIndex

    def record(self, index: int) -> dict[str, Any]:
        """What is known of a subject."""

    def cropped(self, index: int, record: dict[str, Any], view: int) -> tuple[Tensor, Tensor, Tensor]:
        """A view as a target frame: picture first."""

    def reference(self, index: int, view: int, count: int, rng: random.Random) -> Tensor:
        """A view as a segmented reference."""


@dataclass(frozen=True)
class ShardCache:
    """Where features of a folder of shards are. Either folder may be None: nothing is kept of that kind."""

    index: ShardIndex
    latents: Path | None
    states: Path | None
    rows: np.ndarray  # int64 (N + 1,), each subject's first row among its folder's CLIP features

    @classmethod
    def of(cls, folder: Path, index: ShardIndex, base: BaseModel, kinds: str, size: int) -> ShardCache:
        """kinds: latents, clip or both. size: px of a target picture."""
        names = Cache.of(folder, base)
        latents = names.latents.with_name(f"{names.latents.name}-{size}") if kinds in ("latents", "both") else None
        states = names.states if kinds in ("clip", "both") else None
        return cls(index, latents, states, np.concatenate([[0], np.cumsum(references(index))]))

    def fill(self, source: Frames, base: BaseModel, progress: bool = True) -> None:
        """Make what is missing, tar by tar; a killed run goes on."""
        jobs = [(self.latents, _crops, _latent)] if self.latents else []
        jobs += [(self.states, _cuts, _state)] if self.states else []
        for out, pictures, encode in jobs:
            out.mkdir(exist_ok=True)
            missing = [k for k, tar in enumerate(self.index.tars) if not _fresh(out / f"{tar.stem}.npy", tar)]
            for k in tqdm(missing, desc=f"cache {out.name}", unit="shard", disable=not progress or not missing):
                subjects = np.flatnonzero(self.index.subjects["tar"] == k)
                found = [encode(base, chunk) for chunk in _chunks(pictures(source, subjects))]
                array = np.concatenate(found) if found else np.zeros(0, np.float16)
                part = out / f"{self.index.tars[k].stem}.part.npy"
                np.save(part, array)
                part.replace(out / f"{self.index.tars[k].stem}.npy")

    def latent(self, subject: int, view: int) -> Tensor:
        """z_0 of a view's crop, (c, h, w), float32."""
        row = self.index.subjects[subject]
        first = int(self.index.subjects["first"][self._first_subject(int(row["tar"]))])
        values = _mapped(required(self.latents, "ShardCache.latents") / f"{self.index.tars[int(row['tar'])].stem}.npy")[
            int(row["first"]) - first + view
        ]
        return torch.from_numpy(np.array(values, np.float32))

    def state(self, subject: int, reference: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """Three CLIP layers, each (N, d_I), and the embedding (e,) of a subject's `reference`-th R, float32."""
        tar = int(self.index.subjects[subject]["tar"])
        place = int(self.rows[subject] - self.rows[self._first_subject(tar)]) + reference
        values = _mapped(required(self.states, "ShardCache.states") / f"{self.index.tars[tar].stem}.npy")[place]
        layers, tokens, width, embedding = (int(v) for v in values[:4])
        flat = torch.from_numpy(np.array(values[4:], np.float32))
        size = layers * tokens * width
        return tuple(flat[:size].view(layers, tokens, width)), flat[size : size + embedding]

    def _first_subject(self, tar: int) -> int:
        return int(np.searchsorted(self.index.subjects["tar"], tar))


def references(index: ShardIndex) -> np.ndarray:
    """How many R each subject has: its views, or TURNS of its only one. int64 (N,)."""
    views = index.subjects["views"].astype(np.int64)
    return np.where(views == 1, TURNS, views)


def crop_rng(key: int, view: int) -> random.Random:
    """What decides the fixed crop, or the fixed turn, of a view."""
    return random.Random(f"cached-{int(key):016x}-{view}")


def _crops(source: Frames, subjects: np.ndarray) -> Iterator[Tensor]:
    for subject in subjects.tolist():
        record = source.record(subject)
        for view in range(len(record["captions"])):
            yield source.cropped(subject, record, view)[0]


def _cuts(source: Frames, subjects: np.ndarray) -> Iterator[Tensor]:
    for subject in subjects.tolist():
        count = int(source.index.subjects[subject]["views"])
        key = source.index.subjects[subject]["key"]
        for view in range(TURNS if count == 1 else count):
            yield source.reference(subject, view % count, count, crop_rng(key, view))


def _chunks(pictures: Iterator[Tensor]) -> Iterator[Tensor]:
    held: list[Tensor] = []
    for picture in pictures:
        held.append(picture)
        if len(held) == CHUNK:
            yield torch.stack(held)
            held = []
    if held:
        yield torch.stack(held)


def _latent(base: BaseModel, pictures: Tensor) -> np.ndarray:
    return latents_of(base, pictures).half().cpu().numpy()


def _state(base: BaseModel, pictures: Tensor) -> np.ndarray:
    """One row a picture: number of layers, tokens, width and embedding's length, then the numbers; float16."""
    states, embeddings = clip_features(base, pictures)
    head = torch.tensor([len(states), *states[0].shape[1:], embeddings.shape[1]]).expand(len(pictures), -1)
    flat = torch.cat([torch.stack(states, 1).flatten(1), embeddings], dim=1)
    return torch.cat([head.to(flat), flat], dim=1).half().cpu().numpy()


def _fresh(cached: Path, tar: Path) -> bool:
    return cached.is_file() and cached.stat().st_mtime_ns >= tar.stat().st_mtime_ns


@functools.lru_cache(maxsize=256)
def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")
