"""Rendered Toyland pictures on disk: shards that several processes write and any number read.

A shard holds `subjects_per_shard` subjects with `views × variants` frames each, so that the base model and the
adapter (which needs several frames of one subject) learn from the same pictures. Pictures and masks are
safetensors (uint8), captions and labels JSON. A shard depends on its index and the world alone.
"""

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from customcontrast.tensor_files import write_tensors
from train.base.base_config import PoolConfig
from train.toyland import (
    Caption,
    ToyScene,
    ToySubject,
    World,
    attributes,
    describe,
    render,
    sample_scene,
    sample_subject,
)
from train.toyland.layouts import layout_of


@dataclass(frozen=True)
class Shard:
    """N rendered pictures with their masks and records.

    images (N,3,H,W) uint8; masks (N,2,H,W) bool, one plane a subject; one record a picture:
    {captions: [{text, nouns}], plain: [{text, nouns}], group: int, view: int, ids: [...], labels: {...},
    layout: [...]}.
    """

    images: Tensor
    masks: Tensor
    records: list[dict]


def shard_scenes(index: int, config: PoolConfig) -> list[tuple[int, int, ToyScene]]:
    """The (group, view, scene) triples of shard `index`: a group is one leading subject."""
    world = World.named(config.world)
    rng = random.Random(f"toyland-{config.world}-{index}")
    rows: list[tuple[int, int, ToyScene]] = []
    for group in range(config.subjects_per_shard):
        lead = sample_subject(rng, world)
        for view in range(config.views):
            subjects: tuple[ToySubject, ...] = (lead,)
            if rng.random() < world.p_two:
                subjects = (lead, _another(rng, world, lead))
                rng.shuffle(pair := list(subjects))
                subjects = tuple(pair)
            scene = sample_scene(rng, world, subjects=subjects)
            rows.append((group, view, scene))
            for _ in range(config.variants - 1):
                other = sample_scene(rng, world, subjects=subjects)
                rows.append((group, view, replace(scene, background=other.background, style=other.style)))
    return rows


def _another(rng: random.Random, world: World, lead: ToySubject) -> ToySubject:
    while True:
        subject = sample_subject(rng, world)
        if subject.species != lead.species:
            return subject


def write_shard(index: int, config: PoolConfig, folder: Path, device: str = "cpu", chunk: int = 24) -> Path:
    """Render shard `index` into `folder`; an existing one is left alone."""
    path = folder / f"shard-{index:05d}.safetensors"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    rows = shard_scenes(index, config)
    rng = random.Random(f"captions-{index}")
    images, masks, records = [], [], []
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        out = render([scene for _, _, scene in part], config.size, device=device)
        images.append(out.images.cpu())
        masks.append(torch.nn.functional.pad(out.masks.cpu(), (0, 0, 0, 0, 0, 2 - out.masks.shape[1])))
        records += [
            _record(group, view, scene, rng, config.captions) | {"layout": layout_of(scene, mask).numbers()}
            for (group, view, scene), mask in zip(part, out.masks.cpu(), strict=True)
        ]
    bits = np.packbits(torch.cat(masks).numpy(), axis=-1)
    path.with_suffix(".json").write_text(json.dumps(records))
    write_tensors({"images": torch.cat(images).contiguous(), "masks": torch.from_numpy(bits)}, path)
    return path


def _record(group: int, view: int, scene: ToyScene, rng: random.Random, captions: int) -> dict:
    worded = [describe(scene, rng) for _ in range(captions)]
    plain = [describe(scene, rng, subject_words="noun") for _ in range(captions)]
    return {
        "captions": [_as_json(c) for c in worded],
        "plain": [_as_json(c) for c in plain],
        "group": group,
        "view": view,
        "ids": [p.subject.id for p in scene.placements],
        "labels": attributes(scene),
    }


def _as_json(caption: Caption) -> dict[str, object]:
    return {"text": caption.text, "nouns": [list(span) for span in caption.nouns]}


def read_shard(path: Path) -> Shard:
    """Read one shard that `write_shard` wrote."""
    tensors = load_file(path)
    width = tensors["images"].shape[-1]
    masks = torch.from_numpy(np.unpackbits(tensors["masks"].numpy(), axis=-1)[..., :width].astype(bool))
    return Shard(tensors["images"], masks, json.loads(path.with_suffix(".json").read_text()))


def shard_paths(folder: Path) -> list[Path]:
    """Finished shards in order."""
    return sorted(folder.glob("shard-*.safetensors"))


def fill(
    config: PoolConfig, folder: Path, count: int, worker: int = 0, workers: int = 1, device: str = "cpu"
) -> Iterator[tuple[int, float]]:
    """Write shards worker, worker + workers, … below `count`; yields (index, pictures a second) after each."""
    for index in range(worker, count, workers):
        start = time.monotonic()
        write_shard(index, config, folder, device)
        pictures = config.subjects_per_shard * config.views * config.variants
        yield index, pictures / (time.monotonic() - start)
