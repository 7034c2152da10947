"""The paper's ablation (Tables 3 and 4) in kind: IDs 0–5, same seeds, same steps, same data order.

    python -m train.experiments.ablation --config toyland --steps 1500 --seeds 0 1 2 --limit 20 --out runs/ablation

Trains what is not trained yet, evaluates what is not evaluated yet, and writes table.md: every ID with its
interval over subjects, seeds pooled, beside the paper's numbers; then how far every ID is from ID 2, the method
without its contrastive losses, picture by picture. A run that was stopped, by --minutes or by hand, goes on with the
same command.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from customcontrast.errors import BaseModelError, ConfigError, ResumeError
from train.adapter.adapter_config import AdapterTrainConfig, load_config
from train.adapter.train import train
from train.common.options import from_options
from train.common.signals import Stopped
from train.evaluation import evaluate
from train.evaluation.evaluation_config import EvaluationConfig
from train.evaluation.metrics import COLUMNS, Score, asked, paired, summarise


@dataclass(frozen=True)
class Variant:
    """One row of Tables 3 and 4."""

    name: str
    encoder: dict[str, Any] = field(default_factory=dict)  # EncoderConfig flags
    cscl: bool = False
    macl: bool = False
    paper: tuple[float, float, float] = (0.0, 0.0, 0.0)  # E-CI, E-DI, CT of the paper (SD-1.5)


VARIANTS: dict[int, Variant] = {
    0: Variant("Visual", {"textual": False, "tv_fusion": False}, paper=(0.731, 0.554, 0.302)),
    1: Variant("+ Textual", {"tv_fusion": False}, paper=(0.765, 0.568, 0.282)),
    2: Variant("+ TV Fusion", paper=(0.754, 0.563, 0.311)),
    3: Variant("2 + CSCL", cscl=True, paper=(0.765, 0.575, 0.323)),
    4: Variant("2 + MACL", macl=True, paper=(0.780, 0.584, 0.318)),
    5: Variant("2 + CSCL + MACL", cscl=True, macl=True, paper=(0.788, 0.591, 0.325)),
}


BASELINE = 2  # the method without its contrastive losses


@dataclass(frozen=True)
class ExperimentConfig:
    """What this command and `baselines` share. A field is the option of its name, and its default the option's."""

    out: Path  # folder of the trained adapters, their pictures and the tables
    config: str = "toyland"  # preset or YAML file of the adapter's training
    overrides: tuple[str, ...] = ()  # of that file, each "KEY=VALUE" (the option --set)
    steps: int = 1500  # training steps of each adapter
    denoising: int | None = None  # denoising steps of a picture; None = the base's own
    benchmark: str = EvaluationConfig.benchmark
    limit: int = 20  # subjects of the benchmark
    references: str = EvaluationConfig.references
    readers: Path | None = None  # None = those of the base's world
    attributes: Path | None = None
    clip: str | None = EvaluationConfig.clip
    dino: str = EvaluationConfig.dino
    minutes: float | None = None  # of this session; None = no limit
    cpu: bool = False  # even where there is a GPU

    def __post_init__(self) -> None:
        if self.limit < 1 or self.steps < 1:
            raise ValueError(f"--limit {self.limit} --steps {self.steps}: give 1 subject and 1 step or more")

    def evaluation(self, trained: AdapterTrainConfig) -> EvaluationConfig:
        """How a method that was trained as `trained` is evaluated: on what, and who judges."""
        return EvaluationConfig(
            base=trained.base,
            weights=trained.weights,
            benchmark=self.benchmark,
            limit=self.limit,
            references=self.references,
            world=trained.data.world,
            readers=self.readers,
            attributes=self.attributes,
            clip=self.clip,
            dino=self.dino,
            steps=self.denoising,
        )


@dataclass(frozen=True)
class AblationConfig(ExperimentConfig):
    """Which rows of Tables 3 and 4 are made."""

    out: Path = Path("runs/ablation")
    ids: tuple[int, ...] = tuple(VARIANTS)  # keys of VARIANTS
    seeds: tuple[int, ...] = (0, 1, 2)  # each row is trained once with each


def variant_config(config: AdapterTrainConfig, variant: Variant, seed: int, steps: int) -> AdapterTrainConfig:
    """`config` as this variant trains it. Data order and noise depend on the seed alone, so all variants share them."""
    return replace(
        config,
        seed=seed,
        encoder=config.encoder | variant.encoder,
        loss=replace(config.loss, cscl=variant.cscl, macl=variant.macl),
        optim=replace(config.optim, steps=steps),
        log=replace(config.log, validate_every=0),
    )


class Deadline:
    """The minutes of this session."""

    def __init__(self, minutes: float | None) -> None:
        self.end = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def left(self) -> float | None:
        """Minutes left, 0 when none are; None without a limit."""
        return None if self.end is None else max(0.0, (self.end - time.monotonic()) / 60)


def run(config: AblationConfig) -> str:
    """Train, evaluate, and write the table; returns its Markdown."""
    trained = load_config(config.config, config.overrides)
    scores: dict[int, list[Score]] = {}
    deadline = Deadline(config.minutes)
    for seed in config.seeds:
        for number in config.ids:
            folder = config.out / f"id{number}-seed{seed}"
            if deadline.left == 0.0:
                raise Stopped
            wanted = variant_config(trained, VARIANTS[number], seed, config.steps)
            if train(wanted, folder, deadline.left, cpu=config.cpu).step < config.steps:
                raise Stopped  # asked to stop: the checkpoint is written
            scores.setdefault(number, []).extend(evaluated(folder, trained, config))
            (config.out / f"{named('table', config)}.md").write_text(table(scores, config), encoding="utf-8")
    return table(scores, config)


def named(stem: str, config: ExperimentConfig) -> str:
    """The name of what is about these references: of an evaluation's folder, of a table."""
    return stem if config.references == "plain" else f"{stem}-{config.references}"


def evaluated(
    folder: Path, trained: AdapterTrainConfig, config: ExperimentConfig, subject_scale: float = 1.0
) -> list[Score]:
    """The scores of one trained variant; subject_scale is λ of Eq. 3.

    A subject keeps its name over the seeds: it is one group of the bootstrap.
    """
    asked_of = replace(
        config.evaluation(trained),
        adapter=folder / "adapter.safetensors",
        subject_scale=subject_scale,
        floor=config.out / "floor",
        out=folder / named("evaluation", config),
    )
    done = asked_of.out / "scores.json"
    if not done.exists() or json.loads(done.read_text())["about"].get("step") != config.steps:
        evaluate.evaluate_adapter(asked_of)
    rows = json.loads(done.read_text())["scores"][evaluate.RUNS[0]]
    return [Score(**row) for row in rows]


SHOWN = {"E-CI": "E-CI", "E-DI": "E-DI", "CT": "CT"}  # column of `metrics.COLUMNS`: its heading
TOY = {"edits": "edits", "leaks": "leaks", "retrieval": "retrieval@1"}  # where there are readers of Toyland


def shown(scores: dict[int, list[Score]]) -> dict[str, str]:
    """Columns of the tables: the paper's, and those of `TOY` that all methods have. {column: its heading}."""
    return SHOWN | {column: head for column, head in TOY.items() if all(asked(s, column) for s in scores.values())}


def differences(scores: dict[int, list[Score]]) -> list[str]:
    """Markdown: every ID less the baseline, over pairs of pictures of one subject, prompt and seed; [] without it."""
    if BASELINE not in scores or len(scores) < 2:
        return []
    heads = shown(scores)
    lines = ["", f"| ID | less ID {BASELINE}: {' | '.join(heads.values())} |", "|---|" + "---|" * len(heads)]
    for number, rows in sorted(scores.items()):
        if number == BASELINE:
            continue
        gains = [paired(asked(rows, c), asked(scores[BASELINE], c), _value_of(c)) for c in heads]
        lines.append(f"| {number} | {' | '.join(f'{gain:+}' for gain in gains)} |")
    return lines


def _value_of(column: str) -> Callable[[Score], float]:
    def value(score: Score) -> float:
        found = COLUMNS[column][1](score)
        assert found is not None  # `asked` leaves out the pictures that a column is not about
        return found

    return value


def table(scores: dict[int, list[Score]], config: AblationConfig) -> str:
    """Markdown: ours with intervals, the paper's beside."""
    heads = shown(scores)
    lines = [f"| ID | what | {' | '.join(heads.values())} | paper: E-CI | E-DI | CT |", "|---" * (len(heads) + 5) + "|"]
    for number, rows in sorted(scores.items()):
        variant = VARIANTS[number]
        found = summarise(rows)
        ours = " | ".join(str(found[name]) for name in heads)
        paper = " | ".join(f"{value:.3f}" for value in variant.paper)
        lines.append(f"| {number} | {variant.name} | {ours} | {paper} |")
    lines += differences(scores)
    seeds = " ".join(map(str, config.seeds))
    lines += [
        "",
        f"- {config.steps} steps, seeds {seeds}, {config.limit} subjects; 95 % bootstrap intervals over subjects",
    ]
    lines += [f"- {evaluate.EDITED_REFERENCES}"] * (config.references == "edited")
    lines += ["- the paper's numbers are on real pictures with SD-1.5: compare the order, not the size"]
    return "\n".join(lines) + "\n"


def add_common(parser: argparse.ArgumentParser, given: ExperimentConfig) -> None:
    """Options of this command and of `baselines`: what is trained on, how it is judged, where and how long."""
    parser.add_argument("--config", default=given.config)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--denoising", type=int, help="denoising steps of a picture; default the base's own")
    parser.add_argument("--benchmark", default=given.benchmark)
    parser.add_argument("--limit", type=int, default=given.limit, help="subjects of the benchmark")
    evaluate.add_references(parser, given.references)
    parser.add_argument("--readers", type=Path)
    parser.add_argument("--attributes", type=Path)
    parser.add_argument("--clip")
    parser.add_argument("--dino", default=given.dino)
    parser.add_argument("--out", type=Path, default=given.out)
    parser.add_argument("--minutes", type=float, help="stop after so many minutes; the same command goes on")
    parser.add_argument("--cpu", action="store_true")


def ended(name: str, work: Callable[[], str]) -> int:
    """Print what an experiment gives; its exit status: 0, 2 after one sentence, 130 where it was stopped."""
    try:
        print(work())
    except (ConfigError, ResumeError, BaseModelError, FileNotFoundError, FloatingPointError, ValueError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt):
        print(f"{name}: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m train.experiments.ablation", description=__doc__.split("\n\n")[0])
    given = AblationConfig()
    add_common(parser, given)
    parser.add_argument("--ids", type=int, nargs="+", default=given.ids, choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=given.seeds)
    parser.add_argument("--steps", type=int, default=given.steps)
    options = parser.parse_args(arguments)
    return ended("ablate", lambda: run(from_options(AblationConfig, options)))


if __name__ == "__main__":
    sys.exit(main())
