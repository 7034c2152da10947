"""Table 1 in kind: other methods on the same base, with the same budget, in one table.

    python -m train.experiments.baselines --config toyland --steps 1500 --limit 20 --out runs/baselines --minutes 60

Encoders, trained by `train.adapter.train` on the same data for --steps:
    customcontrast      all of Eq. 9
    ip-adapter-plus     a Resampler over CLIP features and new keys and values; no S*, no sink, Eq. 1 alone
    elite               S* alone (λ of Eq. 3 is 0), Eq. 1 alone
Fine-tuned on each subject's reference picture for --subject-steps (`train.experiments.finetune`):
    textual-inversion   the embeddings of S*
    dreambooth-lora     low-rank updates of the UNet's attention
    custom-diffusion    S* and the keys and values of the cross-attention, beside the base's own pictures of the class

Trains and makes only what is missing, and writes table.md and scores.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from customcontrast.base_model import BaseModel, load_base
from customcontrast.images.loading import load_picture
from train.adapter.adapter_config import AdapterTrainConfig, load_config
from train.adapter.train import train
from train.common.options import from_options
from train.common.signals import Stopped
from train.evaluation import evaluate
from train.evaluation.drawings import base_digest
from train.evaluation.evaluate import Bench, Made
from train.evaluation.metrics import Score, markdown, to_json
from train.experiments import finetune
from train.experiments.ablation import Deadline, ExperimentConfig, add_common, ended, evaluated, named
from train.experiments.finetune import FineTuneConfig


@dataclass(frozen=True)
class Method:
    """An encoder trained over many subjects, as flags of our own."""

    encoder: dict[str, Any] = field(default_factory=dict)  # EncoderConfig fields
    loss: dict[str, Any] = field(default_factory=dict)  # LossConfig fields
    subject_scale: float = 1.0  # λ of Eq. 3 at inference


PLAIN = {"cscl": False, "macl": False, "lambda_2": 0.0}  # Eq. 1 alone
ENCODERS: dict[str, Method] = {
    "customcontrast": Method(loss={"cscl": True, "macl": True}),
    "ip-adapter-plus": Method({"textual": False, "tv_fusion": False, "sink": False}, PLAIN),
    "elite": Method({"tv_fusion": False}, PLAIN | {"visual": False}, subject_scale=0.0),
}
RATES = {"textual-inversion": 5e-3, "dreambooth-lora": 1e-3, "custom-diffusion": 3e-4}


@dataclass(frozen=True)
class BaselinesConfig(ExperimentConfig):
    """Which methods are compared."""

    out: Path = Path("runs/baselines")
    methods: tuple[str, ...] = (*ENCODERS, *finetune.METHODS)  # of ENCODERS and finetune.METHODS
    subject_steps: int = 200  # training steps of a fine-tuned method on each subject


def method_config(config: AdapterTrainConfig, method: Method, steps: int) -> AdapterTrainConfig:
    """`config` as this method trains: the same data, order, noise and steps for all."""
    return replace(
        config,
        encoder=config.encoder | method.encoder,
        loss=replace(config.loss, **method.loss),
        optim=replace(config.optim, steps=steps),
        log=replace(config.log, validate_every=0),
    )


def run(config: BaselinesConfig) -> str:
    """Train, make and score what is missing; returns the table."""
    trained = load_config(config.config, config.overrides)
    deadline, scores = Deadline(config.minutes), dict[str, list[Score]]()
    for name in (m for m in config.methods if m in ENCODERS):
        method, folder = ENCODERS[name], config.out / name
        wanted = method_config(trained, method, config.steps)
        if deadline.left == 0.0 or train(wanted, folder, deadline.left, cpu=config.cpu).step < config.steps:
            raise Stopped
        scores[name] = evaluated(folder, trained, config, method.subject_scale)
        report(scores, {}, [], config)
    tuned = [m for m in config.methods if m not in ENCODERS]
    if not tuned:
        return (config.out / f"{named('table', config)}.md").read_text(encoding="utf-8")
    base = load_base(trained.base, trained.weights, "cpu" if config.cpu else None)
    bench = Bench.of(base, replace(config.evaluation(trained), seed=trained.seed))
    for name in tuned:
        settings = FineTuneConfig(name, config.subject_steps, learning_rate=RATES[name])
        made = fine_tuned_pictures(base, bench, settings, config, deadline)
        scores[name] = evaluate.score(made, bench.backbones, bench.others)
    return report(scores, bench.backbones.names, bench.notes, config)


def fine_tuned_pictures(
    base: BaseModel, bench: Bench, method: FineTuneConfig, config: BaselinesConfig, deadline: Deadline
) -> list[Made]:
    """Every task of every subject; a subject whose pictures are all there is not learned again."""
    folder = config.out / method.method / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    settings, made = (method, config.denoising, base_digest(base)), []
    for case in tqdm(bench.cases, desc=method.method, unit="subject"):
        keys = [hashlib.sha256(repr((settings, t.prompt)).encode()).hexdigest()[:10] for t in case.tasks]
        paths = [folder / f"{case.key}-{t.category}-{k}.png" for t, k in zip(case.tasks, keys, strict=True)]
        if not all(path.exists() for path in paths):
            if deadline.left == 0.0:
                raise Stopped
            learned = finetune.fine_tune(base, case.reference, case.noun, method)
            for task, path in zip(case.tasks, paths, strict=True):
                finetune.generate(learned, task.prompt, config.denoising).save(path)
        pictures = [load_picture(path) for path in paths]
        made += [Made(case, t, p, bench.find(p, case.noun)) for t, p in zip(case.tasks, pictures, strict=True)]
    return made


def report(scores: dict[str, list[Score]], names: dict[str, str], notes: Sequence[str], config: BaselinesConfig) -> str:
    """table.md and scores.json of the methods that are done."""
    if not names:  # the encoders' own reports say who judged
        about = json.loads((config.out / next(iter(scores)) / named("evaluation", config) / "scores.json").read_text())
        names, notes = about["backbones"], about["about"]["notes"]
    encoders, tuned = (any((name in ENCODERS) == which for name in scores) for which in (True, False))
    notes = [
        *notes,
        *[f"encoders: {config.steps} steps on the same data"] * encoders,
        *[f"fine-tuned: {config.subject_steps} steps on one picture"] * tuned,
    ]
    table = markdown(scores, names, notes)
    (config.out / f"{named('table', config)}.md").write_text(table, encoding="utf-8")
    (config.out / f"{named('scores', config)}.json").write_text(
        to_json(scores, names, {"notes": notes}), encoding="utf-8"
    )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    given = BaselinesConfig()
    parser = argparse.ArgumentParser(
        prog="python -m train.experiments.baselines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(parser, given)
    parser.add_argument("--methods", nargs="+", default=given.methods, choices=given.methods)
    parser.add_argument("--steps", type=int, default=given.steps, help="training steps of an encoder")
    parser.add_argument("--subject-steps", type=int, default=given.subject_steps, help="training steps on each subject")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    return ended("baselines", lambda: run(from_options(BaselinesConfig, options)))


if __name__ == "__main__":
    sys.exit(main())
