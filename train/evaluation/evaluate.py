"""Numbers and pictures for an adapter.

    python -m train.evaluation adapter --base toyland --benchmark toyland --limit 20
    python -m train.evaluation adapter --base sd15 --adapter FILE --benchmark /path/to/dreambench
    python -m train.evaluation base                (a base from text alone)
    python -m train.evaluation pairs               (two subjects in one picture)
    python -m train.evaluation paired              (a base's pictures against renders of the same scenes)
    python -m train.evaluation photographs         (photographs drawn by an embedded base: in their colour?)

`adapter` makes one picture per subject and task with the adapter, and again from the text alone (the floor); on
Toyland it also scores the real render of what was asked (the ceiling). It writes pictures/, scores.json, table.md and
grid.png. Pictures that are there already are not made again, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from customcontrast.base_model import BaseModel
from customcontrast.config import LocationConfig
from customcontrast.errors import BaseModelError, CheckpointError, SegmentationError
from customcontrast.pipeline import CustomContrast
from customcontrast.segmentation import Segmentation, Segmenter
from customcontrast.specs import BASES
from customcontrast.subject import Segmented, WholePicture
from customcontrast.visualize.drawing import label
from train.common.options import from_options
from train.evaluation import attribute_reader
from train.evaluation.clip_judge import load_judge
from train.evaluation.command import with_adapter
from train.evaluation.drawings import Drawing, drawn
from train.evaluation.evaluation_config import EvaluationConfig
from train.evaluation.grounded_sam import DETECTOR, SAM, GroundedSAM
from train.evaluation.metrics import (
    CLIP,
    Backbones,
    Score,
    cosine,
    identity_rank,
    markdown,
    pretrained_backbones,
    to_json,
    toyland_backbones,
)
from train.evaluation.paired_renders import paired_command
from train.evaluation.photographs import photographs_command
from train.evaluation.probe import probe_command
from train.evaluation.readers import Readers, load_readers
from train.evaluation.tasks import (
    DISTRACTORS,
    Case,
    Task,
    ceiling,
    folder_cases,
    read_prompts,
    toy_distractors,
    toyland_cases,
)
from train.evaluation.text_to_image import base_command
from train.evaluation.timesteps import timesteps_command
from train.evaluation.two_subjects import pairs_command
from train.toyland import World

RUNS = ("adapter", "text only (floor)", "real render (ceiling)")
Find = Callable[[Image.Image, str], Segmentation | None]  # a picture and the class noun of the subject in it
EDITED_REFERENCES = "references in a style and shape and wearing something, none of it asked for"
CELL = 112  # px of a picture in the grid
GRID = 12  # subjects in it
TOYLAND = 20  # subjects of Toyland where no number is asked for
PORTION = 64  # pictures that are scored at once


@dataclass(frozen=True, eq=False)
class Made:
    """One picture of the benchmark and the subject found in it."""

    case: Case
    task: Task
    picture: Image.Image
    segmentation: Segmentation | None  # None: nothing was found; the whole picture is compared
    seed: int = 0  # of its noise


@dataclass(frozen=True, eq=False)
class Bench:
    """What is asked of a method, and who judges: the same for an adapter and for the baselines."""

    cases: list[Case]
    backbones: Backbones
    find: Find
    others: Tensor | None  # distractors as the identity reader sees them, (D, d); None = retrieval is not asked
    notes: list[str]

    @classmethod
    def of(cls, base: BaseModel, config: EvaluationConfig) -> Bench:
        """The benchmark that `config` names, with its judges on the device of `base`."""
        world = World.named(config.world)
        if config.benchmark != "toyland":
            return cls._of_folder(base, config)
        if config.prompts:
            raise ValueError("--prompts needs --benchmark FOLDER: Toyland's prompts come with renders of what they ask")
        edited = config.references == "edited"
        readers = load_readers(config.readers, config.base)
        ct = load_judge(Path(config.clip), base.tokenizers[0]) if config.clip else None
        if ct is not None and config.attributes is None:
            attributes = ct.reader
        else:
            attributes = attribute_reader.load_reader(config.attributes, config.base)
        cases = toyland_cases(config.limit or TOYLAND, world, config.seed, edited)
        sees = functools.partial(attribute_reader.shows, attributes)
        spaces = None if ct is None else ct.spaces()
        backbones = toyland_backbones(base, Path(config.weights or base.spec.weights), readers.identity, sees, spaces)
        asked = sorted({name for case in cases for task in case.tasks for name in task.edit})
        notes = [
            _asked(cases, config.picture_seeds),
            f"retrieval: the subject found first among {DISTRACTORS} others, by the identity reader",
            *(f"readers on held-out subjects: {name} {value:.3f}" for name, value in readers.quality.items()),
            "edits: the share of edits seen by the attribute reader, which on held-out renders reads rightly: "
            + ", ".join(f"{name} {attributes.quality[name]:.3f}" for name in asked if name in attributes.quality),
        ]
        if ct is not None:
            notes.append(
                f"CT: of held-out renders the judge tells {ct.told:.3f} from eight prompts with one thing changed"
            )
        if edited:
            notes.append(f"{EDITED_REFERENCES}; leaks: the share of it that is read off the picture")
            notes.append("CI, DI and retrieval: against a portrait of the subject")
        others = readers.identity(toy_distractors(world, config.seed, DISTRACTORS))
        return cls(cases, backbones, finder(readers), others, notes)

    @classmethod
    def _of_folder(cls, base: BaseModel, config: EvaluationConfig) -> Bench:
        if not Path(config.benchmark).is_dir():
            raise ValueError(f"--benchmark {config.benchmark}: there is no such folder; give one, or toyland")
        if config.references == "edited":
            raise ValueError(f"--references edited needs --benchmark toyland, not {config.benchmark}")
        find = finder(None, config.grounding, base.device)
        asked = read_prompts(config.prompts) if config.prompts else None
        own = find if config.grounding else None  # else a reference keeps the mask that lies beside it
        cases = folder_cases(Path(config.benchmark), config.limit, prompts=asked, find=own)
        backbones = pretrained_backbones(config.clip or CLIP, config.dino, base.device, config.reward)
        found = " and ".join(config.grounding) or "our segmentation"
        notes = [_asked(cases, config.picture_seeds), f"references and generated subjects found by: {found}"]
        return cls(cases, backbones, find, None, notes)


def _asked(cases: Sequence[Case], seeds: Sequence[int]) -> str:
    said = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    return f"{len(cases)} subjects never seen in training, {len(cases[0].tasks)} prompts each, {said}"


def adapter_command(arguments: Sequence[str]) -> str:
    """`python -m train.evaluation adapter …`: the table."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluation adapter", description=__doc__.split("\n\n")[0])
    given = EvaluationConfig()
    parser.add_argument("--base", default=given.base, choices=sorted(BASES))
    parser.add_argument("--weights", help="folder or hub id of the base; default its own")
    parser.add_argument(
        "--adapter",
        type=Path,
        help="adapter file, a published one by name (ip-adapter-plus) or owner/name:path; default beside the weights",
    )
    parser.add_argument(
        "--benchmark", default=given.benchmark, help="toyland, or a folder with a sub-folder per subject"
    )
    parser.add_argument("--limit", type=int, help=f"subjects; default all of a folder, {TOYLAND} of Toyland")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="a folder's: YAML {category: [prompts with {}]}, all asked of each"
    )
    add_references(parser, given.references)
    parser.add_argument(
        "--whole-references",
        action="store_true",
        help="show the whole reference picture, not the cut-out: IP-Adapter as published (with --no-location-masks)",
    )
    parser.add_argument(
        "--no-location-masks", dest="location_masks", action="store_false", help="do not locate subjects"
    )
    parser.add_argument("--world", default=given.world, help="part of Toyland: small, demo or full")
    parser.add_argument(
        "--readers",
        type=Path,
        help="Toyland's judges (train.evaluation.readers); default those of the base's world",
    )
    parser.add_argument(
        "--attributes",
        type=Path,
        help="who sees edits (train.evaluation.attribute_reader); default that of the base's world",
    )
    parser.add_argument(
        "--clip",
        help=f"CT and CI of real pictures, hub id or folder; default {CLIP}. Toyland's CT, and "
        "edits without --attributes: a judge's file (train.evaluation.clip_judge); default the base's own CLIP",
    )
    parser.add_argument("--dino", default=given.dino, help=f"DI of real pictures; default {given.dino}")
    parser.add_argument("--reward", help="IR of real pictures: ImageReward-v1.0 or a checkpoint file; default none")
    parser.add_argument(
        "--grounding",
        nargs="*",
        metavar="MODEL",
        help="real pictures: find subjects with Grounded SAM, as the paper does (optional: a Grounding DINO, a SAM)",
    )
    parser.add_argument("--steps", type=int, help="denoising steps; default the base's own")
    parser.add_argument("--guidance", type=float, help="guidance scale; default the base's own")
    parser.add_argument("--guidance-end", type=float, help="share of the steps with guidance")
    parser.add_argument("--subject-guidance", type=float, help="scale of the guidance on subjects")
    parser.add_argument("--subject-guidance-end", type=float, help="share of the steps, from the first, with it")
    parser.add_argument("--subject-scale", type=float, default=given.subject_scale, help="lambda of Eq. 3")
    parser.add_argument("--seed", type=int, default=given.seed)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=given.seeds, help="several pictures of each prompt, one a seed"
    )
    parser.add_argument("--floor", type=Path, help="where the pictures from text alone are; several runs can share it")
    parser.add_argument("--out", type=Path, default=given.out)
    options = parser.parse_args(arguments)
    grounding = options.grounding  # None: not asked for; fewer than two names: the paper's models for the others
    models = () if grounding is None else (*grounding, *(DETECTOR, SAM)[len(grounding) :])
    return evaluate_adapter(from_options(EvaluationConfig, options, grounding=models))


def add_references(parser: argparse.ArgumentParser, default: str) -> None:
    """The option --references."""
    parser.add_argument(
        "--references",
        choices=["plain", "edited"],
        default=default,
        help="Toyland's: portraits, or subjects in another style and shape and wearing something (what of it leaks?)",
    )


def evaluate_adapter(config: EvaluationConfig) -> str:
    """Make the pictures, score them, write the report; returns its Markdown."""
    custom = with_adapter(config.base, config.weights, config.adapter)
    bench = Bench.of(custom.base, config)
    out, cases, find = config.out, bench.cases, bench.find
    floor = config.floor or out / "pictures" / "text"
    making: dict[str, Iterator[Made]] = {
        RUNS[0]: pictures(custom, cases, config, out / "pictures" / "adapter", find, with_subject=True),
        RUNS[1]: pictures(custom, cases, config, floor, find, with_subject=False),
    }
    if config.benchmark == "toyland":
        making[RUNS[2]] = (real(case, task, custom.base.default_size) for case in cases for task in case.tasks)
    backbones, notes = bench.backbones, bench.notes
    runs: dict[str, list[Score]] = {}
    made: dict[str, list[Made]] = {}  # for the grid: of the first seed and subjects
    shown = sum(len(case.tasks) for case in cases[:GRID])
    for name, rows in making.items():
        runs[name], made[name] = [], []
        for portion in batched(rows, PORTION):  # thousands of pictures do not lie in memory at once
            runs[name] += score(portion, backbones, bench.others)
            made[name] += portion[: max(0, shown - len(made[name]))]
    assert custom.adapter is not None  # `with_adapter` saw to it
    metadata = custom.adapter.metadata
    about = {key: metadata[key] for key in ("step", "revision", "ablation") if key in metadata} | how_shown(config)
    about["notes"] = notes = [*notes, *strictness(config)]
    table = markdown(runs, backbones.names, notes)
    (out / "table.md").write_text(table, encoding="utf-8")
    (out / "scores.json").write_text(to_json(runs, backbones.names, about), encoding="utf-8")
    grid(cases, made).save(out / "grid.png")
    return table


# ----------------------------------------------------------------------------------------------------- pictures


def pictures(
    custom: CustomContrast,
    cases: Sequence[Case],
    config: EvaluationConfig,
    folder: Path,
    find: Find,
    with_subject: bool,
) -> Iterator[Made]:
    """One picture per seed, subject and task; those in `folder` made with the same settings are read instead."""
    location = LocationConfig(enabled=config.location_masks)
    rows = [(seed, case, task) for seed in config.picture_seeds for case in cases for task in case.tasks]
    whole, drawings = config.whole_references, []
    references = {id(case): WholePicture(case.reference.image) if whole else case.reference for case in cases}
    for seed, case, task in rows:
        name, prompt = f"{case.subject}-{task.category}", task.prompt
        options: dict[str, Any] = {"location": location, **config.sampling}
        shown: tuple[tuple[Segmented, str], ...] = ((references[id(case)], case.noun),)
        if not with_subject:  # runs that differ in what a subject does share these
            prompt, shown = task.text, ()
            options = {key: value for key, value in config.sampling.items() if not key.startswith("subject")}
        drawings.append(Drawing(name, prompt, seed, shown, options))
    label = "with the subject" if with_subject else "from text alone"
    for (seed, case, task), picture in zip(rows, drawn(custom, drawings, folder, label), strict=True):
        yield Made(case, task, picture, find(picture, case.noun), seed)


def how_shown(config: EvaluationConfig) -> dict[str, object]:
    """How a method was shown its reference, for the scores."""
    return {"references": "whole" if config.whole_references else "cut", "location_masks": config.location_masks}


def strictness(config: EvaluationConfig) -> list[str]:
    """What is not our own way of showing a method its reference, for the notes of a table."""
    whole = ["references: the whole picture is shown, not the cut-out"] if config.whole_references else []
    return whole if config.location_masks else [*whole, "subjects are not located: no location masks"]


def batched(rows: Iterator[Made], count: int) -> Iterator[list[Made]]:
    """The rows, `count` at a time."""
    while portion := list(itertools.islice(rows, count)):
        yield portion


def finder(readers: Readers | None, grounding: Sequence[str] = (), device: torch.device | str = "cpu") -> Find:
    """How the subject of a generated picture is found: Toyland's mask reader, Grounded SAM, or our segmentation.

    grounding: hub ids or folders of Grounding DINO and SAM; () = our segmentation.
    """
    if readers is not None:
        return lambda picture, noun: readers.segment(picture)
    if grounding:
        detector, sam = grounding
        return GroundedSAM.load(detector, sam, device=device).segment
    segmenter = Segmenter()

    def find(picture: Image.Image, noun: str) -> Segmentation | None:
        try:
            return segmenter.auto(picture)
        except SegmentationError:
            return None

    return find


def real(case: Case, task: Task, side: int) -> Made:
    """The ceiling: the real render, with its exact mask."""
    truth = ceiling(case, task, side)
    if truth is None:
        raise ValueError(f"{task.prompt!r} comes with no scene, so there is nothing to render; ask for a Toyland task")
    picture, mask = truth
    return Made(case, task, picture, Segmentation(image=picture, mask=mask, score=1.0, method="exact"))


# ------------------------------------------------------------------------------------------------------- scores


def score(made: Sequence[Made], backbones: Backbones, others: Tensor | None = None) -> list[Score]:
    """CT, CI, DI and rank of every picture. CT reads the whole picture; CI and DI segmented against segmented.

    others: as in Bench. Each case's likeness is encoded once, however many pictures there are of it.
    """
    cases = list({id(m.case): m.case for m in made}.values())
    references = [case.likeness.on_plain() for case in cases]
    whose = torch.tensor([cases.index(m.case) for m in made])
    subjects = [m.segmentation.on_plain() if m.segmentation else m.picture for m in made]
    ct = cosine(backbones.text([m.task.text for m in made]), backbones.image([m.picture for m in made]))
    likeness = backbones.likeness or backbones.image
    ci = cosine(likeness(references)[whose], likeness(subjects))
    true, found = backbones.identity(references)[whose], backbones.identity(subjects)
    di = cosine(true, found)
    carried = [m.case.carried(m.task) for m in made]
    right = seen(made, [m.task.edit | own for m, own in zip(made, carried, strict=True)], backbones)
    leaks = seen(made, [m.case.leaks(m.task) for m in made], backbones)
    ir = backbones.reward([m.task.text for m in made], [m.picture for m in made]) if backbones.reward else None
    rows = []
    for i, m in enumerate(made):
        shown = right[i] or {}
        rank = identity_rank(found[i], true[i], others) if others is not None else -1
        score = Score(
            m.case.subject,
            m.task.category,
            m.task.text,
            ct=float(ct[i]),
            ci=float(ci[i]),
            di=float(di[i]),
            rank=rank,
            ir=None if ir is None else float(ir[i]),
            edit=float(all(shown[name] for name in m.task.edit)) if shown and m.task.edit else None,
            leaks=leaks[i],
            carried={name: shown[name] for name in carried[i]} if shown and carried[i] else None,
            seed=m.seed,
        )
        rows.append(score)
    return rows


def seen(made: Sequence[Made], wanted: Sequence[dict[str, str]], backbones: Backbones) -> list[dict[str, float] | None]:
    """What is wanted of each picture, {attribute: 1.0 where it is seen, 0.0 where not}; None where nothing is."""
    if backbones.sees is None or not any(wanted):
        return [None] * len(made)
    return [row or None for row in backbones.sees([m.picture for m in made], wanted)]


def grid(cases: Sequence[Case], made: dict[str, list[Made]], rows: int = GRID) -> Image.Image:
    """For the first subjects: the reference, then for every task the picture of each run side by side."""
    shown = list(cases)[:rows]
    tasks, runs, names = len(shown[0].tasks), len(made), [name.split(" (")[0] for name in made]
    step, gap, line = CELL + 20, 12, 15  # a row's height, between tasks, a line of text
    left = [CELL + gap + k * (CELL * runs + gap) for k in range(tasks)]
    sheet = Image.new("RGB", (left[-1] + CELL * runs, 2 * line + step * len(shown)), "white")
    label(sheet, CELL / 2, line, "reference", CELL, 11)
    for k, task in enumerate(shown[0].tasks):
        label(sheet, left[k] + CELL * runs / 2, 0, task.category, CELL * runs, 11, bold=True)
        for r, name in enumerate(names):
            label(sheet, left[k] + CELL * (r + 0.5), line, name, CELL, 10)
    for y, case in enumerate(shown):
        top = 2 * line + y * step
        sheet.paste(case.reference.on_plain(size=CELL), (0, top))
        for k, task in enumerate(case.tasks):
            for r, run in enumerate(made.values()):
                picture = run[y * tasks + k].picture.resize((CELL, CELL))
                sheet.paste(picture, (left[k] + CELL * r, top))
            label(sheet, left[k] + CELL * runs / 2, top + CELL + 2, task.text, CELL * runs, 11)
    return sheet


# ----------------------------------------------------------------------------------------------------- commands

COMMANDS: dict[str, Callable[[Sequence[str]], str]] = {
    "adapter": adapter_command,
    "base": base_command,
    "pairs": pairs_command,
    "paired": paired_command,
    "photographs": photographs_command,
    "timesteps": timesteps_command,
    "probe": probe_command,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Dispatch on the first word; prints the command's table, or one sentence and returns 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] not in COMMANDS:
        print(f"usage: python -m train.evaluation {{{','.join(COMMANDS)}}} …\n\n{__doc__}", file=sys.stderr)
        if arguments[:1] in (["-h"], ["--help"]):
            return 0
        print(f"evaluate: the command is {' '.join(arguments[:1])!r}; give {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command, *rest = arguments
    try:
        print(COMMANDS[command](rest))
    except (BaseModelError, CheckpointError, OSError, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
