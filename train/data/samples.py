"""One training sample, and a batch of them.

A sample is a target frame x with its mask M and a caption that names only the class noun, a reference frame r ≠ x of
the same subject, segmented (R), and a positive frame r⁺ ≠ r, segmented.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

ON_CPU = ("drop_text", "drop_subject", "drop_token", "drop_visual")  # fields of a Batch that stay on the CPU
Value = TypeVar("Value")
DROPS = ("none", "text", "subject", "both", "token", "visual")


@dataclass(frozen=True)
class Sample:
    """What one training example is made of. Pictures are uint8 (3, ·, ·); a cached source gives features instead."""

    subject: str  # stable id: two samples of one subject are never each other's negatives
    caption: str  # names the subject by its class noun alone; looks come from R
    noun: tuple[int, int]  # character span of that noun in the caption
    mask: Tensor  # M, bool (1, H, W)
    image: Tensor | None = None  # x, (3, H, W)
    reference: Tensor | None = None  # R, (3, C, C) on white
    positive: Tensor | None = None  # R⁺, (3, C, C) on white
    latent: Tensor | None = None  # cached: z_0 of x, (c, h, w)
    reference_states: tuple[Tensor, ...] | None = None  # cached: three CLIP layers of R, each (N, d_I)
    positive_states: tuple[Tensor, ...] | None = None  # cached: the same of R⁺
    embedding: Tensor | None = None  # cached: CLIP image embedding of R, (e,)
    layout: Tensor | None = None  # where the subject is and how it is seen (`Layout.numbers`), (NUMBERS,)
    origin: Tensor | None = None  # x's height and width before it was resized, its crop's top and left, px, (4,)
    pair: bool = False  # R and R⁺ alone, for Eq. 4 and 7; x and its mask are not there
    drop: str = "none"  # one of DROPS


@dataclass(frozen=True)
class Batch:
    """B samples. The frozen features are None until `with_features`."""

    subjects: Tensor  # LongTensor (B,), a hash of the id, equal on every process
    captions: list[str]
    nouns: list[tuple[int, int]]
    masks: Tensor  # bool (B, 1, H, W)
    drop_text: Tensor  # bool (B,): the empty prompt instead of the caption
    drop_subject: Tensor  # bool (B,): no S*, and λ = 0
    images: Tensor | None = None  # uint8 (B, 3, H, W)
    references: Tensor | None = None  # uint8 (B, 3, C, C)
    positives: Tensor | None = None
    latents: Tensor | None = None  # z_0 (B, c, h, w)
    reference_states: tuple[Tensor, ...] | None = None  # 3 × (B, N, d_I)
    positive_states: tuple[Tensor, ...] | None = None
    embeddings: Tensor | None = None  # (B, e)
    layouts: Tensor | None = None  # (B, NUMBERS)
    origins: Tensor | None = None  # (B, 4)
    drop_token: Tensor | None = None  # bool (B,): no S*, the visual branch alone; None = nowhere
    drop_visual: Tensor | None = None  # bool (B,): λ = 0, S* alone; None = nowhere
    contrast: Batch | None = None  # pairs R, R⁺ of other subjects, for Eq. 4 and 7; None = those of this batch

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device) -> Batch:
        """All tensors on `device`, but for the drops: prompts are made of them on the CPU, and would wait for a GPU."""
        moved = {f.name: _move(getattr(self, f.name), device) for f in fields(self) if f.name not in ON_CPU}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """All tensors in page-locked memory, from which a GPU copies without being waited for (DataLoader calls it)."""
        return replace(self, **{f.name: _pin(getattr(self, f.name)) for f in fields(self)})

    def select(self, rows: Sequence[int]) -> Batch:
        """These rows, in this order."""
        index = torch.as_tensor(list(rows), dtype=torch.long)
        return replace(self, **{f.name: _pick(getattr(self, f.name), index) for f in fields(self)})


def required(value: Value | None, name: str) -> Value:
    """`value`, the field `name` of a sample, a batch or its noise. Raises ValueError where it is None."""
    if value is None:
        raise ValueError(f"{name} is None, but it is needed here; take a source that gives it, or call `with_features`")
    return value


class Source(Protocol):
    """Frames of subjects."""

    def __len__(self) -> int:
        """Number of distinct subjects."""

    def draw(self, index: int, rng: random.Random) -> Sample:
        """A sample of subject `index`; every choice comes from `rng`."""

    def pair(self, index: int, rng: random.Random) -> Sample:
        """R and R⁺ of subject `index` alone (`as_pair`), for less than `draw` where x need not be read."""

    def subject_keys(self) -> np.ndarray:
        """A 64-bit number for each subject, uint64 (N,), that stays its own when others come and go."""


def keys_of(ids: Iterable[str]) -> np.ndarray:
    """A 64-bit hash of each id, uint64 (N,); equal on every machine."""
    data = (blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest() for name in ids)
    return np.frombuffer(b"".join(data), "<u8")


def as_pair(sample: Sample) -> Sample:
    """The sample without x and what belongs to it."""
    bare = torch.zeros(1, 1, 1, dtype=torch.bool)
    return replace(sample, mask=bare, image=None, latent=None, layout=None, origin=None, pair=True)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples; a picture or a feature that one of them lacks is None for all. Pairs become `Batch.contrast`.

    A sample without `origin` among others that have one counts as large as it is and whole.
    """
    pairs = [replace(sample, pair=False) for sample in samples if sample.pair]
    if pairs and len(pairs) < len(samples):
        return replace(collate([sample for sample in samples if not sample.pair]), contrast=collate(pairs))
    if any(sample.origin is not None for sample in samples):
        samples = [s if s.origin is not None else replace(s, origin=_whole(s)) for s in samples]

    def stack(name: str) -> Tensor | None:
        values = [getattr(s, name) for s in samples]
        return None if any(v is None for v in values) else torch.stack(values)

    def states(name: str) -> tuple[Tensor, ...] | None:
        values = [getattr(s, name) for s in samples]
        if any(v is None for v in values):
            return None
        return tuple(torch.stack(layer) for layer in zip(*values, strict=True))

    return Batch(
        subjects=torch.tensor([zlib.crc32(s.subject.encode()) for s in samples]),
        captions=[s.caption for s in samples],
        nouns=[s.noun for s in samples],
        masks=torch.stack([s.mask for s in samples]),
        drop_text=torch.tensor([s.drop in ("text", "both") for s in samples]),
        drop_subject=torch.tensor([s.drop in ("subject", "both") for s in samples]),
        images=stack("image"),
        references=stack("reference"),
        positives=stack("positive"),
        latents=stack("latent"),
        reference_states=states("reference_states"),
        positive_states=states("positive_states"),
        embeddings=stack("embedding"),
        layouts=stack("layout"),
        origins=stack("origin"),
        drop_token=torch.tensor([s.drop == "token" for s in samples]),
        drop_visual=torch.tensor([s.drop == "visual" for s in samples]),
    )


def _whole(sample: Sample) -> Tensor:
    """`Sample.origin` of a picture that is neither resized nor cropped."""
    return torch.tensor([*sample.mask.shape[-2:], 0, 0])


def _pin(value: Any) -> Any:
    if isinstance(value, Tensor | Batch):
        return value.pin_memory()
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        return tuple(v.pin_memory() for v in value)
    return value


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Batch):
        return value.to(device)
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        return tuple(v.to(device, non_blocking=True) for v in value)
    return value


def _pick(value: Any, index: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[index.to(value.device)]
    if isinstance(value, list):
        return [value[i] for i in index.tolist()]
    if isinstance(value, tuple):
        return tuple(v[index.to(v.device)] for v in value)
    return value
