"""What the tests of training's faults share: a tiny base on disk, a run of a few steps, a folder of views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from train.adapter.adapter_config import AdapterTrainConfig, DataConfig, LogConfig, LossConfig, OptimConfig
from train.data import photos, shards

ENCODER = {"width": 32, "heads": 2, "depth": 1, "visual_queries": 5, "text_queries": 3, "fourier_bands": 3}


def small_run(weights: Path, pool: Path, steps: int = 6, save_every: int = 100, workers: int = 0) -> AdapterTrainConfig:
    """A run on the tiny base with a pool of six subjects; it logs every step."""
    return AdapterTrainConfig(
        weights=str(weights),
        encoder=ENCODER,
        data=DataConfig(
            path=str(pool), size=64, reference_size=48, subjects=6, targets=2, references=2, drop=0.1, workers=workers
        ),
        optim=OptimConfig(steps=steps, batch=3, learning_rate=1e-3, warmup=2, ema=0.9),
        log=LogConfig(every=1, validate_every=0, save_every=save_every, save_minutes=100),
    )


def mixed_run(weights: Path, folder: Path, steps: int = 6, save_every: int = 100) -> AdapterTrainConfig:
    """`small_run` on two weighted sets, shards behind a mapped index and a folder, with a contrastive batch of its own.

    folder: an empty one, where both sets are made.
    """
    for name, subjects in (("listed", 6), ("own", 4)):
        write_views(folder / name, subjects)
    free = shards.FilterConfig(area_min=0.01, sharpness=0.0, single=0.3)
    listing = photos.list_subjects("folder", folder / "listed")
    shards.write_shards(listing, folder / "shards", free, shards.ShardConfig(subjects=4), progress=False)
    sets = [
        {"name": "packed", "source": "shards", "path": str(folder / "shards"), "weight": 3},
        {"name": "own", "source": "folder", "path": str(folder / "own"), "weight": 1, "captions": "noun"},
    ]
    config = small_run(weights, folder, steps, save_every)
    data = DataConfig(size=64, drop=0.1, sources=sets)
    return replace(config, data=data, loss=LossConfig(contrast_batch=4))


def write_views(folder: Path, subjects: int = 2, views: int = 3) -> None:
    """A folder of subjects in our own layout: coloured discs, with their masks."""
    rng, (y, x) = np.random.default_rng(5), np.mgrid[:72, :64]
    for s in range(subjects):
        place = folder / f"ball {'abcdef'[s]}"
        (place / "masks").mkdir(parents=True)
        for v in range(views):
            mask = (x - 30 - v) ** 2 + (y - 34) ** 2 < 400
            pixels = np.where(mask[..., None], rng.integers(0, 255, 3), 200) + rng.integers(0, 20, (72, 64, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{v}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(place / "masks" / f"{v}.png")
