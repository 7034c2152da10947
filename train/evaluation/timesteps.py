"""Where in the diffusion an adapter helps: Eq. 1 inside the subject's mask, at one timestep after another.

    python -m train.evaluation timesteps --base toyland2 --world demo --adapter FILE --count 96

Held-out subjects of Toyland, each with the same noise under five conditions: its own reference; another subject's; its
own without the visual branch (λ = 0); without S*; neither, the noun alone. An adapter whose features carry the subject
makes its own reference better than the noun alone, and another's worse. Where both make no difference the picture is
already decided by the noisy latents, and training at these timesteps teaches it nothing (`loss.timestep_bias`).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from customcontrast.adapter import Adapter
from customcontrast.base_model import BaseModel
from customcontrast.pipeline import CustomContrast
from customcontrast.precision import autocast
from customcontrast.specs import BASES
from train.adapter.adapter_config import LossConfig
from train.adapter.frozen_base import make_ready
from train.adapter.step import AdapterLoss, Noise
from train.common.options import from_options
from train.data.data_config import DataConfig
from train.data.frozen_features import with_features
from train.data.references import crop_size
from train.data.samples import Batch, Sample, collate, required
from train.data.toyland_source import ToylandSource
from train.evaluation.command import add_toyland_options, write_report
from train.toyland import World

CONDITIONS = ("own", "another's", "λ = 0", "no S*", "noun alone")
BATCH = 16


@dataclass(frozen=True)
class TimestepsConfig:
    """What is measured. A field is the option of its name, and its default the option's."""

    base: str = "toyland2"  # one of customcontrast.specs.BASES
    weights: str | None = None  # folder of the base; None = the shipped one
    adapter: Path | None = None  # adapter file; None = the one beside the base's weights
    world: str = "demo"  # part of Toyland: a classmethod of train.toyland.World
    count: int = 96  # subjects, 2 or more
    timesteps: tuple[int, ...] = (60, 200, 350, 500, 650, 800, 900, 970)
    photographs: bool = True  # references distorted towards photographs, as in training
    seed: int = 0
    out: Path = Path("runs/timesteps")  # folder of the report

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"--count {self.count}: give 2 subjects or more; each is shown another's reference too")
        bad = [t for t in self.timesteps if not 0 <= t < 1000]
        if bad or not self.timesteps:
            raise ValueError(f"--timesteps {' '.join(map(str, bad))}: give one or more of 0 to 999")


def held_out(config: TimestepsConfig, base: BaseModel) -> list[Sample]:
    """One sample of each held-out subject."""
    World.named(config.world)  # raises ValueError before anything is rendered
    data = DataConfig(source="toyland", world=config.world, subjects=config.count, photographs=config.photographs)
    source = ToylandSource(data, base.default_size, crop_size(base), heldout=True)
    subjects = tqdm(range(config.count), desc="render", unit="subject")
    return [source.draw(i, random.Random(f"timesteps-{config.seed}-{i}")) for i in subjects]


def conditions(batch: Batch) -> dict[str, Batch]:
    """The batch under each of CONDITIONS; it has its features, and two rows or more."""
    all_rows = torch.ones(len(batch), dtype=torch.bool)
    states = tuple(layer.roll(1, 0) for layer in required(batch.reference_states, "Batch.reference_states"))
    changed = (
        batch,
        replace(batch, reference_states=states),
        replace(batch, drop_visual=all_rows),
        replace(batch, drop_token=all_rows),
        replace(batch, drop_subject=all_rows),
    )
    return dict(zip(CONDITIONS, changed, strict=True))


@torch.no_grad()
def masked_errors(model: AdapterLoss, batch: Batch, noise: Noise) -> Tensor:
    """Squared error of the prediction inside each row's mask, (B,)."""
    made = model.denoise(batch, noise)
    error = (made.prediction.float() - made.target.float()).square().mean(dim=1)
    inside = F.interpolate(batch.masks.float(), size=error.shape[-2:], mode="area")[:, 0]
    return (error * inside).sum((1, 2)) / inside.sum((1, 2)).clamp_min(1e-6)


def measure(
    base: BaseModel, adapter: Adapter, samples: Sequence[Sample], timesteps: Sequence[int], seed: int = 0
) -> dict[str, dict[int, list[float]]]:
    """{condition: {t: error of each sample}}; the noise of a sample at t is the same under all conditions."""
    model = AdapterLoss(base, adapter, LossConfig(cscl=False, macl=False, lambda_2=0.0))
    found: dict[str, dict[int, list[float]]] = {name: {t: [] for t in timesteps} for name in CONDITIONS}
    starts = range(0, len(samples) - 1, BATCH)  # a last row alone would be shown its own reference as another's
    for start in tqdm(starts, desc="denoise", unit="batch"):
        batch = with_features(base, collate(list(samples[start : start + BATCH])))
        changed, shape = conditions(batch), required(batch.latents, "Batch.latents").shape
        for t in timesteps:
            drawn = Noise.draw(shape, 1000, (seed, start, t), base.device)
            noise = replace(drawn, t=torch.full_like(drawn.t, t))
            for name, rows in changed.items():
                with autocast(base.device):
                    found[name][t] += masked_errors(model, rows, noise).tolist()
    return found


def report(found: dict[str, dict[int, list[float]]]) -> str:
    """Means as a Markdown table; gain: how much smaller the error is with the own reference, in percent."""
    head = ["t", *CONDITIONS, "gain over the noun alone", "gain over another's"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for t in found["own"]:
        mean = {name: sum(found[name][t]) / len(found[name][t]) for name in CONDITIONS}
        gains = [100 * (1 - mean["own"] / mean[name]) for name in ("noun alone", "another's")]
        cells = [str(t), *(f"{mean[name]:.4f}" for name in CONDITIONS), *(f"{gain:+.1f} %" for gain in gains)]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def timesteps_command(arguments: Sequence[str]) -> str:
    """`python -m train.evaluation timesteps …`: the table."""
    given = TimestepsConfig()
    parser = argparse.ArgumentParser(prog="python -m train.evaluation timesteps", description=__doc__.split("\n\n")[0])
    add_toyland_options(parser, given, tuple(BASES))
    parser.add_argument("--adapter", type=Path, help="adapter file; default the one beside the weights")
    parser.add_argument("--count", type=int, default=given.count, help="held-out subjects")
    parser.add_argument("--timesteps", type=int, nargs="+", default=list(given.timesteps), help="0 to 999")
    parser.add_argument("--as-rendered", dest="photographs", action="store_false", help="references without distortion")
    parser.add_argument("--seed", type=int, default=given.seed)
    config = from_options(TimestepsConfig, parser.parse_args(arguments))
    model = CustomContrast.load(config.base, config.weights, config.adapter)
    base, adapter = model.base, model.adapter
    if not isinstance(adapter, Adapter):
        raise ValueError(f"--adapter {config.adapter}: give an adapter of ours, which has S*; a published one has none")
    make_ready(base, gradient_checkpointing=False)
    samples = held_out(config, base)
    found = measure(base, adapter.float().eval(), samples, config.timesteps, config.seed)
    return write_report(config.out, report(found), "errors.json", found, indent=None)
