"""The pool in memory, with tokenised captions and layouts."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from customcontrast.layout_channels import mirrored_rows
from train.base import pool
from train.base.networks import (
    tokenize,
)

FIRST_SHARDS = 20  # of the pool, encoded before the denoiser starts


def phrasings(record: dict, plain: int = 0) -> list[str]:
    """The captions of a record of the pool, and `plain` of those that name the subject alone."""
    return [c["text"] for c in record["captions"] + record["plain"][:plain]]


class Pictures:
    """The pool in memory: uint8 pictures, token ids of every phrasing, labels, groups, layouts as numbers.

    `refresh` adds new shards.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: CLIPTokenizer | None = None,
        limit: int | None = None,
        ready: Callable[[Path], bool] = lambda shard: True,
        plain: int = 0,
    ):
        self.plain = plain
        self.folder, self.tokenizer, self.limit, self.ready = folder, tokenizer, limit, ready
        self.order: list[Path] = []  # shards read so far
        self.images: Tensor = torch.empty(0)
        self.masks: Tensor = torch.empty(0)
        self.ids: Tensor = torch.empty(0)
        self.layouts: Tensor = torch.empty(0)
        self.mirrored_layouts: Tensor = torch.empty(0)
        self.records: list[dict] = []
        self.refresh()
        if not self.records:
            raise FileNotFoundError(f"no shards in {folder}; run `python -m train.base pool` first")

    def refresh(self) -> None:
        """Read shards that were finished since the last call."""
        new = [p for p in pool.shard_paths(self.folder)[: self.limit] if p not in self.order and self.ready(p)]
        if not new:
            return
        shards = [pool.read_shard(p) for p in new]
        self.order += new
        self.images = _joined(self.images, [s.images for s in shards])
        self.masks = _joined(self.masks, [s.masks for s in shards])
        fresh = [r for s in shards for r in s.records]
        self.records += fresh
        if self.tokenizer is not None:
            texts = [text for r in fresh for text in phrasings(r, self.plain)]
            ids = tokenize(self.tokenizer, texts).view(len(fresh), -1, self.tokenizer.model_max_length)
            self.ids = _joined(self.ids, [ids.to(torch.int16)])
        rows = torch.tensor([r["layout"] for r in fresh])
        self.layouts = _joined(self.layouts, [rows])
        self.mirrored_layouts = _joined(self.mirrored_layouts, [mirrored_rows(rows)])

    def __len__(self) -> int:
        return len(self.records)


def _joined(old: Tensor, parts: list[Tensor]) -> Tensor:
    return torch.cat([old, *parts]) if old.numel() else torch.cat(parts)
