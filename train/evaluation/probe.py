"""What the frozen image encoder tells of a reference: linear probes of the layers that an adapter reads.

    python -m train.evaluation probe --base toyland2 --world demo --count 1000

Segmented references of Toyland subjects, distorted towards photographs as in training. For each attribute a logistic
regression on one layer's features (class token, mean and spread of the patches, and their means on a 3 × 3 grid, by
their 256 principal components), learned on four fifths of the subjects and tested on the others. What no layer tells
to a linear reader an adapter has to find out by itself, or cannot.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from tqdm import tqdm

from customcontrast.base_model import BaseModel, load_base
from customcontrast.specs import BASES
from train.common.options import from_options
from train.data.data_config import DataConfig
from train.data.frozen_features import clip_features
from train.data.references import crop_size
from train.data.toyland_source import reference_scene, render_references
from train.evaluation.command import add_toyland_options, write_report
from train.toyland import ToySubject, World, sample_subject
from train.toyland.subjects import BUILD

VIEWS = 2  # references of each subject
COMPONENTS = 256
GRID = 3
CHUNK = 32  # subjects rendered and encoded at once


@dataclass(frozen=True)
class ProbeConfig:
    """What is probed. A field is the option of its name, and its default the option's."""

    base: str = "toyland2"  # one of customcontrast.specs.BASES
    weights: str | None = None  # folder of the base; None = the shipped one
    world: str = "demo"  # part of Toyland: a classmethod of train.toyland.World
    count: int = 1000  # subjects, 50 or more
    photographs: bool = True  # distorted towards photographs, as in training
    seed: int = 0
    out: Path = Path("runs/probe")  # folder of the report

    def __post_init__(self) -> None:
        if self.count < 50:
            raise ValueError(f"--count {self.count}: give 50 subjects or more, or nothing can be learned of them")


def summary(states: Tensor) -> Tensor:
    """A layer's hidden states (N, 1 + p², d) as rows of features (N, 3·d + GRID²·d)."""
    token, patches = states[:, 0].float(), states[:, 1:].float()
    side = round(patches.shape[1] ** 0.5)
    grid = F.adaptive_avg_pool2d(patches.transpose(1, 2).unflatten(-1, (side, side)), GRID).flatten(1)
    return torch.cat([token, patches.mean(dim=1), patches.std(dim=1), grid], dim=1)


@torch.no_grad()
def looked_at(config: ProbeConfig, base: BaseModel, subjects: Sequence[ToySubject]) -> dict[str, np.ndarray]:
    """{layer, or "embedding": features of VIEWS references of each subject (VIEWS · N, ·)}."""
    world, rng = World.named(config.world), random.Random(f"probe-{config.seed}")
    parts: dict[str, list[Tensor]] = {}
    for start in tqdm(range(0, len(subjects), CHUNK), desc="look", unit="chunk"):
        scenes = [reference_scene(rng, world, s) for s in subjects[start : start + CHUNK] for _ in range(VIEWS)]
        seed = config.seed + start if config.photographs else None
        states, embeddings = clip_features(
            base, render_references(scenes, DataConfig.reference_size, crop_size(base), seed=seed)
        )
        for layer, hidden in zip(base.image_layers, states, strict=True):
            parts.setdefault(f"layer {layer}", []).append(summary(hidden))
        parts.setdefault("embedding", []).append(embeddings.float())
    return {name: torch.cat(rows).cpu().numpy() for name, rows in parts.items()}


def accuracies(features: Mapping[str, np.ndarray], subjects: Sequence[ToySubject]) -> dict[str, dict[str, float]]:
    """{attribute: {layer: share read rightly of the last fifth, and "guess": of the commonest value}}."""
    split = VIEWS * (len(subjects) * 4 // 5)
    found: dict[str, dict[str, float]] = {}
    for name in ("species", "color_1", "color_2", "pattern", *BUILD):
        wanted = np.repeat([str(getattr(subject, name)) for subject in subjects], VIEWS)
        values, counts = np.unique(wanted[:split], return_counts=True)
        if len(values) < 2:
            continue
        found[name] = {"guess": float((wanted[split:] == values[counts.argmax()]).mean())}
        for layer, rows in features.items():
            reader = make_pipeline(
                StandardScaler(),
                PCA(min(COMPONENTS, rows.shape[1], split), random_state=0),
                LogisticRegression(max_iter=200, C=0.1),
            )
            found[name][layer] = float(reader.fit(rows[:split], wanted[:split]).score(rows[split:], wanted[split:]))
    return found


def report(found: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table in percent."""
    columns = list(next(iter(found.values())))
    rows = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, own in found.items():
        rows.append(f"| {name} | " + " | ".join(f"{own[column]:.0%}" for column in columns) + " |")
    return "\n".join(rows)


def probe_command(arguments: Sequence[str]) -> str:
    """`python -m train.evaluation probe …`: the table."""
    given = ProbeConfig()
    parser = argparse.ArgumentParser(prog="python -m train.evaluation probe", description=__doc__.split("\n\n")[0])
    add_toyland_options(parser, given, tuple(BASES))
    parser.add_argument("--count", type=int, default=given.count, help="subjects")
    parser.add_argument("--as-rendered", dest="photographs", action="store_false", help="references without distortion")
    parser.add_argument("--seed", type=int, default=given.seed)
    config = from_options(ProbeConfig, parser.parse_args(arguments))
    world, rng = World.named(config.world), random.Random(f"probe-subjects-{config.seed}")
    base = load_base(config.base, config.weights)
    subjects = [sample_subject(rng, world) for _ in range(config.count)]
    found = accuracies(looked_at(config, base, subjects), subjects)
    return write_report(config.out, report(found), "accuracies.json", found)
