"""Figure 7: what the encoder's features group by. Held-out subjects seen from several views, as t-SNE and as numbers.

    python -m train.evaluation.atlas --adapter ours=customcontrast/weights/toyland/adapter.safetensors \\
        --adapter ELITE-like=FILE

For each adapter the visual CLS v and, where it has one, the textual CLS u (mean over steps and layers) of every view.
Numbers: how often the nearest other picture shows the same subject from another view, and how much of the features'
variance is explained by the subject and by the view. The ELITE-like encoder of the paper is visual only and trained by
reconstruction only: `python -m train.experiments.ablation` makes it as ID 0. With --parts the same for each thing that
the encoder makes: v and u, which only the losses see, and S+ and f_tv, which the denoiser sees. Writes features.json,
table.md and a picture of each, and with --atlas the file by which the page shows a visitor's subject among these.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from customcontrast.adapter import Adapter
from customcontrast.adapter_files import load_adapter
from customcontrast.base_model import BaseModel, load_base
from customcontrast.errors import PictureError, SegmentationError
from customcontrast.folders import make_folder
from customcontrast.segmentation import Segmenter
from customcontrast.specs import BASES
from customcontrast.toyland.feature_atlas import FILE, TIMES, Atlas, encoder_features, unit
from customcontrast.visualize import tsne, tsne_plot
from train.common.options import from_options
from train.data.folder import segment
from train.data.folder_layout import pictures_in, subject_places
from train.data.frozen_features import clip_features
from train.data.references import crop_size
from train.data.toyland_source import reference_scene, render_references
from train.toyland import World, sample_subject

PLOTTED = 12  # subjects in the picture
THUMB = 64  # px, side of a subject's picture in an atlas


@dataclass(frozen=True)
class AtlasConfig:
    """Whose features are compared on what. A field is the option of its name, and its default the option's."""

    adapter: tuple[str, ...] = ()  # "NAME=FILE" of each
    base: str = "toyland"  # one of customcontrast.specs.BASES
    weights: str | None = None  # folder or hub id of the base; None = its own
    world: str = "small"  # part of Toyland: a classmethod of train.toyland.World
    folder: Path | None = None  # real views, a sub-folder a subject (`from_folder`); None = Toyland's
    subjects: int = 24  # at least 2
    views: int = 6  # of each subject, at least 2
    parts: bool = False  # also v, u, S+ and f_tv apart
    seed: int = 0  # of subjects, views and t-SNE
    atlas: Path | None = None  # file for the page, of the first adapter; None = none
    out: Path = Path("runs/features")  # folder of the report


@dataclass(frozen=True)
class Explained:
    """Shares of the features' total variance; what is left is their interplay."""

    subject: float
    view: float
    interplay: float


@dataclass(frozen=True)
class Report:
    """Numbers of one set of features."""

    neighbour: float  # share of pictures whose nearest other picture shows the same subject
    chance: float  # the same for random features
    explained: Explained
    common: float  # ‖mean‖² of the rows at length 1: 1 = all point the same way, 0 = the ways cancel out


def across_views(subjects: int, views: int, world: World, crop: int, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Held-out subjects as segmented references, uint8 (subjects, views, 3, crop, crop), and their ids.

    View k has the same azimuth, pose and light for all subjects, so that a feature of the view alone would group by k.
    """
    rng = random.Random(f"features-{seed}")
    found = [sample_subject(rng, world, heldout=True) for _ in range(subjects)]
    shape, bare = world.shapes[0], world.accessories[0]
    seen = [reference_scene(random.Random(f"view-{seed}-{k}"), world, found[0]) for k in range(views)]
    scenes = []
    for subject in found:
        for scene in seen:
            placement = replace(scene.placements[0], subject=subject, shape=shape, accessory=bare)
            scenes.append(replace(scene, placements=(placement,)))
    pictures = render_references(scenes, 160, crop)
    return pictures.unflatten(0, (subjects, views)), [subject.id for subject in found]


def from_folder(folder: Path, subjects: int, views: int, crop: int) -> tuple[Tensor, list[str]]:
    """Real views, uint8 (S, V, 3, crop, crop) on white, and the subjects' names: a sub-folder is a subject, a
    file's name is the view, as where every object was photographed from the same angles ("000.jpg", "045.jpg", …).

    Taken are the first `subjects` sub-folders that have the first `views` names that most of them share. Pictures are
    segmented as in `train.data.folder`. Raises ValueError where fewer than two subjects share two views.
    """
    places = subject_places(folder)
    names = Counter(path.stem for place in places for path in pictures_in(place))
    shared = sorted(name for name, count in names.items() if count >= 2)
    shared = sorted(sorted(shared, key=lambda name: -names[name])[:views])
    segmenter = Segmenter()
    rows: list[Tensor] = []
    found: list[str] = []
    for place in places if shared else ():
        paths = {path.stem: path for path in pictures_in(place)}
        if len(found) == subjects or not all(name in paths for name in shared):
            continue
        try:
            cut = [segment(paths[name], segmenter).on_plain(size=crop).convert("RGB") for name in shared]
        except (PictureError, SegmentationError):
            continue
        rows.append(torch.stack([pil_to_tensor(picture) for picture in cut]))
        found.append(place.name)
    if len(found) < 2 or len(shared) < 2:
        raise ValueError(
            f"--folder {folder}: {len(found)} sub-folders share {len(shared)} names of pictures; 2 of each are needed, "
            "such as bear/000.jpg, bear/045.jpg, cat/000.jpg, cat/045.jpg"
        )
    return torch.stack(rows), found


def encoded(base: BaseModel, adapter: Adapter, pictures: Tensor) -> Iterator[Tensor]:
    """Pictures uint8 (N, 3, C, C) -> f_I of 16 of them at a time, (≤ 16, 3·patches, d)."""
    for portion in pictures.split(16):
        states, _ = clip_features(base, portion, adapter.config.image_layers)
        yield adapter.encoder.encode_image(states)


@torch.no_grad()
def picture_features(base: BaseModel, adapter: Adapter, pictures: Tensor, times: Sequence[int] = TIMES) -> Tensor:
    """`customcontrast.toyland.feature_atlas.encoder_features` of pictures uint8 (N, 3, C, C), in portions."""
    return torch.cat([encoder_features(adapter, f_I, times) for f_I in encoded(base, adapter, pictures)])


@torch.no_grad()
def part_features(
    base: BaseModel, adapter: Adapter, pictures: Tensor, times: Sequence[int] = TIMES
) -> dict[str, Tensor]:
    """What the encoder makes of pictures uint8 (N, 3, C, C), part by part, each (N, ·) with rows of length 1.

    visual CLS v and textual CLS u: what Eq. 4 compares. S+ (the text branch's) and f_tv (the visual branch's): every
    layer at length 1, as in Eq. 7, the layers joined; means over `times`. A part that the adapter lacks is left out.
    """
    portions: dict[str, list[Tensor]] = {}
    for f_I in encoded(base, adapter, pictures):
        sums: dict[str, Tensor] = {}
        for t in times:
            out = adapter.encoder(f_I, torch.full((len(f_I),), t, device=f_I.device))
            found = {"visual CLS": out.visual_cls, "visual tokens": unit(out.visual_tokens.flatten(2)).flatten(1)}
            if out.text_cls is not None:
                s = torch.cat(out.text_tokens, dim=-1).flatten(2)
                found |= {"textual CLS": out.text_cls.mean(1), "S+": unit(s).flatten(1)}
            sums = {name: unit(x) + sums.get(name, 0) for name, x in found.items()}
        for name, x in sums.items():
            portions.setdefault(name, []).append(unit(x).cpu())
    return {name: torch.cat(rows) for name, rows in portions.items()}


def make_atlas(features: Tensor, pictures: Tensor, names: Sequence[str], seed: int = 0) -> Atlas:
    """features: (S·V, d); pictures: uint8 (S, V, 3, C, C); names: S -> what the page shows a new subject among."""
    subjects, views = pictures.shape[:2]
    small = [to_pil_image(p).resize((THUMB, THUMB)) for p in pictures[:, 0]]
    rows = features.numpy().astype(np.float32)
    places = tsne(rows.astype(np.float64), seed).astype(np.float32)
    numbers = np.repeat(np.arange(subjects, dtype=np.int64), views)
    return Atlas(rows, places, numbers, np.stack([np.asarray(p) for p in small]), tuple(names))


def explained(features: Tensor) -> Explained:
    """Two-way analysis of variance of features (S, V, d): every subject in every view, once."""
    x = features.double()
    grand = x.mean((0, 1), keepdim=True)
    by_subject, by_view = x.mean(1, keepdim=True) - grand, x.mean(0, keepdim=True) - grand
    total = (x - grand).square().sum().clamp(min=1e-12)
    subject = (by_subject.square().sum() * x.shape[1] / total).item()
    view = (by_view.square().sum() * x.shape[0] / total).item()
    return Explained(subject, view, 1 - subject - view)


def report(features: Tensor) -> Report:
    """Numbers of features (S, V, d), S ≥ 2 and V ≥ 2."""
    subjects, views, _ = features.shape
    flat = unit(features.flatten(0, 1))
    likeness = flat @ flat.T
    likeness.fill_diagonal_(-2)
    owner = torch.arange(subjects).repeat_interleave(views)
    hits = (owner[likeness.argmax(1)] == owner).float().mean().item()
    common = flat.mean(0).square().sum().item()
    return Report(hits, (views - 1) / (subjects * views - 1), explained(features), common)


def table(reports: dict[str, Report], subjects: int, views: int, where: str = "") -> str:
    """Markdown. where: the name of a folder of real views; "" = held-out subjects of Toyland."""
    lines = [
        f"{subjects} {f'subjects of {where}' if where else 'held-out subjects'} from {views} views each.",
        "",
        "| features | nearest picture shows the same subject | by chance | variance by subject | by view | by both "
        "| common direction |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in reports.items():
        e = r.explained
        lines.append(
            f"| {name} | {r.neighbour:.0%} | {r.chance:.0%} | {e.subject:.0%} | {e.view:.0%} | {e.interplay:.0%} "
            f"| {r.common:.0%} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m train.evaluation.atlas`"""
    parser = argparse.ArgumentParser(prog="python -m train.evaluation.atlas", description=__doc__.split("\n\n")[0])
    given = AtlasConfig()
    parser.add_argument("--base", default=given.base, choices=sorted(BASES))
    parser.add_argument("--weights", help="folder or hub id of the base; default its own")
    parser.add_argument("--adapter", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--world", default=given.world, help="part of Toyland: small, demo or full")
    parser.add_argument(
        "--folder", type=Path, help="real views instead of Toyland's: a sub-folder a subject, files named by the view"
    )
    parser.add_argument("--subjects", type=int, default=given.subjects)
    parser.add_argument("--views", type=int, default=given.views)
    parser.add_argument("--parts", action="store_true", help="also v, u, S+ and f_tv apart")
    parser.add_argument("--seed", type=int, default=given.seed)
    parser.add_argument(
        "--atlas",
        type=Path,
        metavar="FILE",
        help=f"also write features and places of the first adapter, which the page shows: {FILE} beside the adapter",
    )
    parser.add_argument("--out", type=Path, default=given.out)
    options = parser.parse_args(arguments)
    if options.subjects < 2 or options.views < 2:
        parser.error(f"--subjects {options.subjects} --views {options.views}: both must be 2 or more")
    unnamed = [text for text in options.adapter if "=" not in text]
    if unnamed:
        parser.error(f"--adapter {unnamed[0]!r}: write NAME=FILE")
    try:
        print(compare(from_options(AtlasConfig, options)))
    except (ValueError, OSError) as error:
        print(f"features: {error}", file=sys.stderr)
        return 2
    return 0


def compare(config: AtlasConfig) -> str:
    """Make the features, write table.md, features.json, a picture of each and the atlas; returns the table."""
    base = load_base(config.base, config.weights)
    if config.folder:
        pictures, ids = from_folder(config.folder, config.subjects, config.views, crop_size(base))
    else:
        world = World.named(config.world)
        pictures, ids = across_views(config.subjects, config.views, world, crop_size(base), config.seed)
    make_folder(config.out, "--out")
    sets = {"CLIP image embedding": unit(clip_features(base, pictures.flatten(0, 1))[1]).cpu()}
    for text in config.adapter:
        name, _, file = text.partition("=")
        adapter = load_adapter(file, base)
        if not isinstance(adapter, Adapter):
            raise ValueError(f"--adapter {text}: an IP-Adapter has no encoder to take features from; give one of ours")
        sets[name] = picture_features(base, adapter, pictures.flatten(0, 1))
        if config.parts:
            made = part_features(base, adapter, pictures.flatten(0, 1))
            sets |= {f"{name}, {part}": features for part, features in made.items()}
    shape = (pictures.shape[0], pictures.shape[1])
    reports = {name: report(features.unflatten(0, shape)) for name, features in sets.items()}
    for name, features in sets.items():
        _plot(features, shape, name).save(config.out / f"{name.lower().replace(', ', '-').replace(' ', '-')}.png")
    if config.atlas:
        config.atlas.parent.mkdir(parents=True, exist_ok=True)
        first = config.adapter[0].partition("=")[0]
        make_atlas(sets[first], pictures, ids, config.seed).write(config.atlas)
    text = table(reports, *shape, where=str(config.folder.name) if config.folder else "")
    (config.out / "table.md").write_text(text, encoding="utf-8")
    about = {"subjects": ids, "views": shape[1], "seed": config.seed}
    numbers = {name: asdict(r) for name, r in reports.items()}
    (config.out / "features.json").write_text(json.dumps(about | {"reports": numbers}, indent=1), encoding="utf-8")
    return text


def _plot(features: Tensor, shape: tuple[int, int], name: str) -> Image.Image:
    """The first subjects, as many as there are shapes to tell them apart."""
    count = min(shape[0], PLOTTED)
    subjects = np.repeat(np.arange(count), shape[1])
    views = np.tile(np.arange(shape[1]), count)
    return tsne_plot(features[: len(views)].numpy(), list(subjects), list(views), title=name)


if __name__ == "__main__":
    sys.exit(main())
