"""Two subjects in one picture: is each of them there, and is it itself?

    python -m train.evaluation pairs --limit 20

Pairs of held-out Toyland subjects, one picture for each seed, made in one pass and in passes of their own
(`customcontrast.multi_subject`). The left and the right half of each picture are read apart: the mask reader finds
what stands there, and the identity reader looks for it among 50 other subjects and the partner, so that a mixture of
both is found as neither. The renders of the same pairs, with their exact masks, are the ceiling.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from customcontrast.config import LocationConfig
from customcontrast.pipeline import CustomContrast
from customcontrast.segmentation import Segmentation
from customcontrast.visualize import contact_sheet
from train.common.options import from_options
from train.evaluation.command import add_toyland_options, with_adapter
from train.evaluation.drawings import Drawing, drawn
from train.evaluation.metrics import Interval, bootstrap, identity_rank
from train.evaluation.readers import Readers, load_readers
from train.evaluation.tasks import DISTRACTORS, portrait, toy_distractors
from train.toyland import World, describe, render, sample_scene, sample_subject

RUNS = {"in one pass": False, "in passes of their own": True}
CEILING = "real renders"
CELL = 112  # px of a picture on the sheet


@dataclass(frozen=True)
class TwoSubjectsConfig:
    """How pairs of subjects are judged. A field is the option of its name, and its default the option's."""

    base: str = "toyland"  # toyland or toyland2
    weights: str | None = None  # folder of the base; None = the shipped one
    adapter: Path | None = None  # adapter file; None = the one beside the base's weights
    limit: int = 20  # pairs of subjects, 1 or more
    seeds: int = 2  # pictures of each pair, 1 or more
    world: str = "small"  # part of Toyland: a classmethod of train.toyland.World
    readers: Path | None = None  # Toyland's judges (`train.evaluation.readers`); None = those of the base's world
    out: Path = Path("runs/pairs")  # folder of the report


@dataclass(frozen=True, eq=False)
class Pair:
    """Two subjects, the left one first, and what a picture of both should show."""

    references: tuple[Segmentation, Segmentation]
    nouns: tuple[str, str]
    prompt: str  # both nouns in <angle brackets>
    picture: Image.Image  # the real render
    masks: np.ndarray  # (2, H, W) bool, of the render


def toyland_pairs(count: int, world: World, side: int, seed: int = 0) -> list[Pair]:
    """`count` pairs of held-out subjects of two kinds, photographed in any place, the same for the same seed."""
    return [_pair(random.Random(f"pairs-{seed}-{i}"), world, side) for i in range(count)]


def _pair(rng: random.Random, world: World, side: int) -> Pair:
    first = sample_subject(rng, world, heldout=True)
    second = first
    while second.species == first.species:
        second = sample_subject(rng, world, heldout=True)
    bare = {"shape": world.shapes[0], "accessory": world.accessories[0]}
    scene = sample_scene(rng, world, subjects=(first, second), style=world.styles[0], **bare)
    scene = replace(scene, placements=tuple(sorted(scene.placements, key=lambda p: p.x)))
    caption = describe(scene, subject_words="noun")
    left, right = (caption.text[start:end] for start, end in caption.nouns)
    shown = render([scene], side)
    picture = to_pil_image(shown.images[0])
    one, other = (portrait(rng, world, p.subject) for p in scene.placements)
    return Pair((one, other), (left, right), caption.marked, picture, shown.masks[0].numpy())


def halves(picture: Image.Image, readers: Readers) -> tuple[Segmentation, Segmentation]:
    """What stands in the left and in the right half, each as the mask reader finds it there."""
    whole, found = readers.segment(picture), []
    for side in (slice(None, picture.width // 2), slice(picture.width // 2, None)):
        mask = np.zeros_like(whole.mask)
        mask[:, side] = whole.mask[:, side]
        if mask.mean() < 0.005:  # nothing there: the half as it is
            mask[:, side] = True
        found.append(replace(whole, mask=mask))
    return found[0], found[1]


def hits(
    pairs: Sequence[Pair], found: Sequence[Sequence[Segmentation]], readers: Readers, others: Tensor
) -> np.ndarray:
    """Whether each subject is found first among the distractors and its partner, bool (pictures, 2).

    found: two segmentations of each picture, left and right; picture i is of pair i modulo their number.
    others: the distractors as the identity reader sees them, (D, d).
    """
    known = [readers.identity([reference.on_plain() for reference in pair.references]) for pair in pairs]
    rows = []
    for i, two in enumerate(found):
        true = known[i % len(pairs)]
        seen = readers.identity([segmentation.on_plain() for segmentation in two])
        rows.append([identity_rank(seen[k], true[k], torch.cat([others, true[1 - k : 2 - k]])) == 0 for k in range(2)])
    return np.array(rows)


def pictures(
    custom: CustomContrast, pairs: Sequence[Pair], apart: bool, config: TwoSubjectsConfig
) -> list[Image.Image]:
    """The pictures of all pairs for one seed after the other; those in --out made the same way are read instead."""
    options = {"location": LocationConfig(apart=apart)}
    drawings = [
        Drawing(f"pair{i}", pair.prompt, seed, tuple(zip(pair.references, pair.nouns, strict=True)), options)
        for seed in range(config.seeds)
        for i, pair in enumerate(pairs)
    ]
    return list(drawn(custom, drawings, config.out / "pictures", "apart" if apart else "together"))


def evaluate_pairs(config: TwoSubjectsConfig) -> str:
    """Make the pictures, read them, write table.md, scores.json and grid.png; returns the table."""
    if config.limit < 1 or config.seeds < 1:
        raise ValueError(f"--limit {config.limit} --seeds {config.seeds}: give 1 pair and 1 seed or more")
    custom = with_adapter(config.base, config.weights, config.adapter)
    readers, world = load_readers(config.readers, config.base), World.named(config.world)
    pairs = toyland_pairs(config.limit, world, custom.base.default_size)
    made = {name: pictures(custom, pairs, apart, config) for name, apart in RUNS.items()}
    found: dict[str, list[Sequence[Segmentation]]] = {}
    found |= {name: [halves(picture, readers) for picture in run] for name, run in made.items()}
    found[CEILING] = [
        tuple(Segmentation(image=p.picture, mask=m, score=1.0, method="exact") for m in p.masks) for p in pairs
    ]
    others = readers.identity(toy_distractors(world, 0))
    right = {name: hits(pairs, two, readers, others) for name, two in found.items()}
    sheet(pairs, made).save(config.out / "grid.png")
    lines = ["| run | each subject found | both found |", "|---|---|---|"]
    scores = {}
    for name, hit in right.items():
        groups = [i % len(pairs) for i in range(len(hit))]
        each = bootstrap(hit.mean(1).tolist(), groups)
        both = bootstrap(hit.all(1).astype(float).tolist(), groups)
        lines.append(f"| {name} | {percent(each)} | {percent(both)} |")
        scores[name] = {"each": vars(each), "both": vars(both)}
    quality = ", ".join(f"{name} {value:.3f}" for name, value in readers.quality.items())
    notes = [
        f"{len(pairs)} pairs of held-out subjects, {config.seeds} seeds; 95 % bootstrap intervals over pairs",
        f"found first among {DISTRACTORS} others and the partner by the identity reader ({quality})",
    ]
    table = "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"
    (config.out / "table.md").write_text(table, encoding="utf-8")
    (config.out / "scores.json").write_text(json.dumps({"notes": notes, "scores": scores}, indent=1) + "\n")
    return table


def percent(x: Interval) -> str:
    """An interval of shares in percent."""
    return f"{x.mean:.0%} [{100 * x.low:.0f}, {100 * x.high:.0f}]"


def sheet(pairs: Sequence[Pair], made: dict[str, list[Image.Image]], rows: int = 8) -> Image.Image:
    """Both references, then a picture of each run, for the first pairs: two to a row."""
    pictures, captions = [], []
    for i, pair in enumerate(pairs[:rows]):
        pictures += [*(r.on_plain(size=CELL) for r in pair.references), *(run[i] for run in made.values())]
        captions += [*pair.nouns, *made]
    return contact_sheet(pictures, captions, columns=2 * (2 + len(made)), tile=CELL)


def pairs_command(arguments: Sequence[str]) -> str:
    """`python -m train.evaluation pairs …`: the table."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluation pairs", description=__doc__.split("\n\n")[0])
    given = TwoSubjectsConfig()
    add_toyland_options(parser, given, ("toyland", "toyland2"))
    parser.add_argument("--adapter", type=Path, help="adapter file; default the one beside the base's weights")
    parser.add_argument("--limit", type=int, default=given.limit, help="pairs of subjects")
    parser.add_argument("--seeds", type=int, default=given.seeds, help="pictures of each pair")
    parser.add_argument("--readers", type=Path, help="Toyland's judges (train.evaluation.readers)")
    return evaluate_pairs(from_options(TwoSubjectsConfig, parser.parse_args(arguments)))
