"""Numbers and pictures for an adapter.

    python -m train.evaluate adapter --base toyland --benchmark toyland --limit 20
    python -m train.evaluate adapter --base sd15 --adapter FILE --benchmark /path/to/dreambench

`adapter` makes one picture per subject and task with the adapter, and again from the text alone (the floor); on
Toyland it also scores the real render of what was asked (the ceiling). It writes pictures/, scores.json, table.md and
grid.png. Pictures that are there already are not made again, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw
from tqdm import tqdm

from customcontrast.bases import BASES, BaseModelError
from customcontrast.checkpoint import CheckpointError
from customcontrast.config import RecordConfig
from customcontrast.imageio import load_picture
from customcontrast.pipeline import CustomContrast
from customcontrast.segmentation import Segmentation, SegmentationError, Segmenter
from train.benchmark import Case, Task, ceiling, folder_cases, toyland_cases
from train.metrics import (
    Backbones,
    Score,
    cosine,
    identity_rank,
    markdown,
    pretrained_backbones,
    to_json,
    toyland_backbones,
)
from train.readers import DEFAULT, Readers, load_readers
from train.sources import reference_scene, render_references
from train.toyland import World, sample_subject

RUNS = ("adapter", "text only (floor)", "real render (ceiling)")
DISTRACTORS = 50
CELL = 112  # px of a picture in the grid


@dataclass(frozen=True, eq=False)
class Made:
    """One picture of the benchmark and the subject found in it."""

    case: Case
    task: Task
    picture: Image.Image
    segmentation: Segmentation | None  # None: nothing was found; the whole picture is compared


def adapter_command(arguments: Sequence[str]) -> int:
    """`python -m train.evaluate adapter …`"""
    parser = argparse.ArgumentParser(prog="python -m train.evaluate adapter", description=__doc__.split("\n\n")[0])
    parser.add_argument("--base", default="toyland", choices=sorted(BASES))
    parser.add_argument("--weights", help="folder or hub id of the base; default its own")
    parser.add_argument("--adapter", type=Path, help="adapter file; default the one beside the base's weights")
    parser.add_argument("--benchmark", default="toyland", help="toyland, or a folder with a sub-folder per subject")
    parser.add_argument("--limit", type=int, default=20, help="subjects")
    parser.add_argument("--world", default="small", help="part of Toyland: small or full")
    parser.add_argument("--readers", type=Path, default=DEFAULT, help="Toyland's judges, from train.readers")
    parser.add_argument("--clip", default="openai/clip-vit-large-patch14", help="CT and CI of real pictures")
    parser.add_argument("--dino", default="facebook/dinov2-base", help="DI of real pictures")
    parser.add_argument("--steps", type=int, help="denoising steps; default the base's own")
    parser.add_argument("--guidance", type=float, help="guidance scale; default the base's own")
    parser.add_argument("--subject-scale", type=float, default=1.0, help="λ of Eq. 3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"))
    options = parser.parse_args(arguments)
    try:
        table = evaluate_adapter(options)
    except (BaseModelError, CheckpointError, FileNotFoundError, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    print(table)
    return 0


def evaluate_adapter(options: argparse.Namespace) -> str:
    """Make the pictures, score them, write the report; returns its Markdown."""
    custom = CustomContrast.load(options.base, options.weights, options.adapter)
    if custom.adapter is None:
        raise ValueError(f"there is no adapter beside the weights of {options.base!r}; pass --adapter FILE")
    toys = options.benchmark == "toyland"
    readers = load_readers(options.readers) if toys else None
    world = getattr(World, options.world)()
    weights = Path(options.weights or custom.base.spec.weights)
    if toys:
        cases = toyland_cases(options.limit, world, options.seed)
        backbones = toyland_backbones(custom.base, weights, readers.identity)
    else:
        cases = folder_cases(Path(options.benchmark), options.limit)
        backbones = pretrained_backbones(options.clip, options.dino, custom.base.device)

    find = finder(readers)
    out = options.out
    made = {
        RUNS[0]: list(pictures(custom, cases, options, out / "pictures" / "adapter", find, with_subject=True)),
        RUNS[1]: list(pictures(custom, cases, options, out / "pictures" / "text", find, with_subject=False)),
    }
    if toys:
        made[RUNS[2]] = [real(case, task, custom.base.default_size) for case in cases for task in case.tasks]
    distractors = toy_distractors(world, options.seed) if toys else []
    runs = {name: score(rows, backbones, distractors) for name, rows in made.items()}

    notes = [f"{len(cases)} subjects never seen in training, {len(cases[0].tasks)} prompts each, seed {options.seed}"]
    if toys:
        notes.append(f"retrieval: the subject found first among {DISTRACTORS} others, by the identity reader")
        notes += [f"readers on held-out subjects: {name} {value:.3f}" for name, value in readers.quality.items()]
    metadata = custom.adapter.metadata
    about = {key: metadata[key] for key in ("step", "revision", "ablation") if key in metadata} | {"notes": notes}
    table = markdown(runs, backbones.names, notes)
    (out / "table.md").write_text(table, encoding="utf-8")
    (out / "scores.json").write_text(to_json(runs, backbones.names, about), encoding="utf-8")
    grid(cases, made).save(out / "grid.png")
    return table


# ----------------------------------------------------------------------------------------------------- pictures


def pictures(
    custom: CustomContrast,
    cases: Sequence[Case],
    options: argparse.Namespace,
    folder: Path,
    find: Callable[[Image.Image], Segmentation | None],
    with_subject: bool,
) -> Iterator[Made]:
    """One picture per subject and task; those in `folder` made with the same settings are read instead."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = (options.steps, options.guidance, options.subject_scale if with_subject else 0, options.seed)
    weights = digest(options.adapter or "", custom) if with_subject else ""
    rows = [(case, task) for case in cases for task in case.tasks]
    for case, task in tqdm(rows, desc="with the subject" if with_subject else "from text alone", unit="picture"):
        key = hashlib.sha256(repr((settings, weights, task.prompt, case.subject)).encode()).hexdigest()[:10]
        path = folder / f"{case.subject}-{task.category}-{key}.png"
        if not path.exists():
            subjects = [custom.subject(case.reference, case.noun)] if with_subject else []
            result = custom.generate(
                task.prompt if with_subject else task.text,
                subjects,
                num_inference_steps=options.steps,
                guidance_scale=options.guidance,
                subject_scale=options.subject_scale,
                seed=options.seed,
                record=RecordConfig(maps=False),
            )
            result.images[0].save(path)
        picture = load_picture(path)
        yield Made(case, task, picture, find(picture))


def digest(path: object, custom: CustomContrast) -> str:
    """The adapter's weights in a few letters."""
    total = hashlib.sha256(repr(path).encode())
    for name, tensor in sorted(custom.adapter.state_dict().items()):
        total.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return total.hexdigest()[:12]


def finder(readers: Readers | None) -> Callable[[Image.Image], Segmentation | None]:
    """How the subject of a generated picture is found: Toyland's mask reader, or our segmentation."""
    if readers is not None:
        return readers.segment
    segmenter = Segmenter()

    def find(picture: Image.Image) -> Segmentation | None:
        try:
            return segmenter.auto(picture)
        except SegmentationError:
            return None

    return find


def real(case: Case, task: Task, side: int) -> Made:
    """The ceiling: the real render, with its exact mask."""
    picture, mask = ceiling(case, task, side)
    return Made(case, task, picture, Segmentation(image=picture, mask=mask, score=1.0, method="exact"))


def toy_distractors(world: World, seed: int) -> list[Image.Image]:
    """Segmented references of held-out subjects that are not in the benchmark."""
    rng = random.Random(f"distractors-{seed}")
    subjects = [sample_subject(rng, world, heldout=True) for _ in range(DISTRACTORS)]
    crops = render_references([reference_scene(rng, world, subject) for subject in subjects], 128, 96)
    return [Image.fromarray(crop.permute(1, 2, 0).numpy()) for crop in crops]


# ------------------------------------------------------------------------------------------------------- scores


def score(made: Sequence[Made], backbones: Backbones, distractors: Sequence[Image.Image] = ()) -> list[Score]:
    """CT, CI, DI and rank of every picture. CT reads the whole picture; CI and DI segmented against segmented."""
    references = [m.case.reference.on_plain() for m in made]
    subjects = [m.segmentation.on_plain() if m.segmentation else m.picture for m in made]
    ct = cosine(backbones.text([m.task.text for m in made]), backbones.image([m.picture for m in made]))
    ci = cosine(backbones.image(references), backbones.image(subjects))
    true, found = backbones.identity(references), backbones.identity(subjects)
    di = cosine(true, found)
    others = backbones.identity(distractors) if distractors else None
    rows = []
    for i, m in enumerate(made):
        rank = identity_rank(found[i], true[i], others) if others is not None else -1
        rows.append(Score(m.case.subject, m.task.category, m.task.text, float(ct[i]), float(ci[i]), float(di[i]), rank))
    return rows


def grid(cases: Sequence[Case], made: dict[str, list[Made]], rows: int = 12) -> Image.Image:
    """For the first subjects: the reference, then for every task the picture of each run side by side."""
    shown = list(cases)[:rows]
    tasks, runs = len(shown[0].tasks), len(made)
    sheet = Image.new("RGB", (CELL * (1 + tasks * runs), (CELL + 14) * len(shown)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, case in enumerate(shown):
        top = y * (CELL + 14)
        sheet.paste(case.reference.on_plain().resize((CELL, CELL)), (0, top))
        draw.text((2, top + CELL), "reference", fill="black")
        for k, task in enumerate(case.tasks):
            for r, run in enumerate(made.values()):
                x = CELL * (1 + k * runs + r)
                sheet.paste(run[y * tasks + k].picture.resize((CELL, CELL)), (x, top))
                label = task.text if r == 0 else list(made)[r].split(" (")[0]
                draw.text((x + 2, top + CELL), label[:20], fill="black")
    return sheet


# ----------------------------------------------------------------------------------------------------- commands

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"adapter": adapter_command}


def main(arguments: Sequence[str] | None = None) -> int:
    """Dispatch on the first word."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] not in COMMANDS:
        print(f"usage: python -m train.evaluate {{{','.join(COMMANDS)}}} …\n\n{__doc__}", file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    command, *rest = arguments
    return COMMANDS[command](rest)


if __name__ == "__main__":
    sys.exit(main())
