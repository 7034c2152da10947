"""Photographs drawn by an embedded base, each as the kind that is nearest to it: are they in its colour?

    python -m train.evaluation photographs --base toyland2 --folder /path/to/dreambench

One picture of each subject is cut out; its kind is its class noun where the base draws that, else what the base's CLIP
sees. It is drawn in three places. Colour is that of the largest of a few clusters in L*a*b*, in the cut-out and in what
the mask reader finds in the picture. Beside the differences stand those to the other subjects' photographs, which a
picture of nobody would have, and those of a render of the kind in the colours of the palette that come nearest: what
the world can show.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.cluster import KMeans
from torchvision.transforms.functional import to_pil_image

from customcontrast.base_model import BaseModel
from customcontrast.specs import BASES
from customcontrast.visualize import contact_sheet
from train.common.options import from_options
from train.evaluation.command import with_adapter, write_report
from train.evaluation.drawings import Drawing, drawn
from train.evaluation.metrics import bootstrap, cosine, toyland_spaces
from train.evaluation.paired_renders import to_lab
from train.evaluation.readers import load_readers
from train.evaluation.tasks import Case, folder_cases
from train.toyland import ToySubject, World, render, sample_scene
from train.toyland.captions import article

PLACES = {"studio": "on a plain background", "beach": "on the beach", "snow": "in the snow"}  # and how a prompt says it
SECOND = ("white", "black", "gray")  # second colours of the renders; all of the palette would take four times as long
RENDER = 64  # px of them
NEAR = 15.0  # ΔE (CIE 1976) up to which a colour counts as the photograph's
CLUSTERS = 4  # colours that a subject is taken to have
PIXELS = 4000  # of a subject that are clustered


@dataclass(frozen=True)
class PhotographsConfig:
    """How photographs are drawn and judged. A field is the option of its name, and its default the option's."""

    folder: Path  # a sub-folder for each subject
    base: str = "toyland2"  # an embedded one: it has kinds, and CLIP's head beside its weights
    weights: str | None = None  # folder of the base; None = the shipped one
    adapter: Path | None = None  # adapter file; None = the one beside the base's weights
    world: str = "demo"  # part of Toyland that the base has learned: a classmethod of train.toyland.World
    readers: Path | None = None  # who finds subjects (`train.evaluation.readers`); None = those of the base's world
    limit: int | None = None  # subjects; None = all
    steps: int | None = None  # denoising steps; None = the base's own
    seed: int = 0  # of the pictures' noise
    out: Path = Path("runs/photographs")  # folder of the report

    def __post_init__(self) -> None:
        if not BASES[self.base].kinds:
            raise ValueError(f"--base {self.base}: it names no kinds to draw a photograph as; give toyland or toyland2")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit {self.limit}: give 1 subject or more")
        if not self.folder.is_dir():
            raise ValueError(f"--folder {self.folder}: there is no such folder; give one with a sub-folder per subject")


def dominant_color(picture: Image.Image, mask: np.ndarray) -> np.ndarray:
    """Centre of the largest cluster of colours inside the mask (H, W) of a picture of its size: (3,), L*a*b*.

    The same for the same picture. An empty mask stands for the whole picture.
    """
    pixels = np.asarray(picture.convert("RGB"))[mask if mask.any() else slice(None)].reshape(-1, 3)
    pixels = pixels[np.linspace(0, len(pixels) - 1, min(len(pixels), PIXELS)).astype(int)]
    lab = to_lab(pixels / 255)
    count = min(CLUSTERS, len(np.unique(pixels, axis=0)))
    found = KMeans(count, n_init=3, random_state=0).fit(lab)
    return found.cluster_centers_[np.bincount(found.labels_).argmax()]


def nearest_kind(base: BaseModel, weights: Path, cases: Sequence[Case]) -> list[str]:
    """The kind that each is drawn as: its noun where the base draws that, else what the base's CLIP sees in it."""
    spaces, kinds = toyland_spaces(base, weights), base.spec.kinds
    text = spaces.text([f"a photo of {article(kind)}" for kind in kinds])
    image = spaces.image([case.reference.on_plain() for case in cases])
    seen = [cosine(row.expand_as(text), text).argmax() for row in image]
    return [case.noun if case.noun in kinds else kinds[k] for case, k in zip(cases, seen, strict=True)]


def differences(own: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ΔE of drawn subjects (N, P, 3) to their photographs (N, 3), and to the others: (N, P) and (N, P, N − 1)."""
    apart = np.linalg.norm(drawn[:, :, None] - own, axis=-1)  # (N, P, N)
    others = [np.delete(apart[n], n, axis=-1) for n in range(len(own))]
    return np.diagonal(apart, axis1=0, axis2=2).T, np.stack(others)


def rendered_colors(kind: str, world: World) -> np.ndarray:
    """Dominant colours of renders of a plain subject of this kind in each main colour and in PLACES: (S, P, 3)."""
    rng, rows = random.Random(kind), []
    plain: dict[str, Any] = {"style": world.styles[0], "shape": world.shapes[0], "accessory": "none", "azimuth": 20.0}
    for pair in itertools.product(world.colors, SECOND):
        if len(set(pair)) == 2:
            subject = ToySubject(kind, *pair, "plain")
            scenes = [sample_scene(rng, world, subjects=(subject,), background=place, **plain) for place in PLACES]
            made = render(scenes, RENDER)
            pictures = [to_pil_image(image) for image in made.images]
            masks = made.masks[:, 0].numpy()
            rows.append([dominant_color(picture, mask) for picture, mask in zip(pictures, masks, strict=True)])
    return np.array(rows)


def nearest_renders(own: np.ndarray, kinds: Sequence[str], world: World) -> np.ndarray:
    """ΔE to photographs (N, 3) of the render of each one's kind that is nearest over all places: (N, P)."""
    colors = {kind: rendered_colors(kind, world) for kind in dict.fromkeys(kinds)}
    apart = [np.linalg.norm(colors[kind] - color, axis=-1) for kind, color in zip(kinds, own, strict=True)]  # (S, P)
    return np.stack([of[of.mean(1).argmin()] for of in apart])


def evaluate_photographs(config: PhotographsConfig) -> str:
    """Make the pictures, measure them, write table.md, scores.json and sheet.png; returns the table.

    Raises ValueError where there is no adapter, no subject, or fewer than two of them.
    """
    world = World.named(config.world)
    custom = with_adapter(config.base, config.weights, config.adapter)
    cases = folder_cases(config.folder, config.limit)
    if len(cases) < 2:
        raise ValueError(f"--folder {config.folder} holds {len(cases)} subject; give 2 or more, to compare them")
    kinds = nearest_kind(custom.base, Path(config.weights or custom.base.spec.weights), cases)
    readers, options = load_readers(config.readers, config.base), {"num_inference_steps": config.steps}
    drawings = [
        Drawing(case.subject, f"{article(f'<{kind}>')} {place}", config.seed, ((case.reference, kind),), options)
        for case, kind in zip(cases, kinds, strict=True)
        for place in PLACES.values()
    ]
    pictures = drawn(custom, drawings, config.out / "pictures", "photographs")
    rows = [(case, kind, [next(pictures) for _ in PLACES]) for case, kind in zip(cases, kinds, strict=True)]
    own = [dominant_color(case.reference.image, case.reference.mask) for case in cases]
    seen = [[dominant_color(picture, readers.segment(picture).mask) for picture in made] for *_, made in rows]
    mine, others = differences(np.array(own), np.array(seen))
    whose = np.repeat([case.subject for case, *_ in rows], len(PLACES)).tolist()
    best = nearest_renders(np.array(own), kinds, world)
    shares = ((mine <= NEAR).astype(float), (others <= NEAR).mean(-1), (best <= NEAR).astype(float))
    near, far, most = (bootstrap(share.ravel().tolist(), whose) for share in shares)
    lines = [
        "| | to its photograph | to those of the others | the nearest colours, rendered |",
        "|---|---|---|---|",
        f"| dominant colour within ΔE {NEAR:.0f} | {near} | {far} | {most} |",
        f"| ΔE, median | {np.median(mine):.1f} | {np.median(others):.1f} | {np.median(best):.1f} |",
        "",
        f"- {len(cases)} photographs, {len(PLACES)} pictures each, seed {config.seed}",
        "- in brackets: 95 % bootstrap interval over subjects",
        f"- {', '.join(f'{case.subject}: {kind}' for case, kind, _ in rows)}",
    ]
    scores = [
        {"subject": case.subject, "kind": kind, "difference": d.tolist(), "others": o.tolist(), "rendered": b.tolist()}
        for (case, kind, _), d, o, b in zip(rows, mine, others, best, strict=True)  # (P,), (P, N - 1), (P,)
    ]
    table = write_report(config.out, "\n".join(lines), "scores.json", scores)
    sheet(rows).save(config.out / "sheet.png")
    return table


def sheet(cases: Sequence[tuple[Case, str, list[Image.Image]]]) -> Image.Image:
    """Each photograph beside its pictures, two subjects to a row, with the kind that it was drawn as."""
    pictures = [picture for case, _, made in cases for picture in (case.reference.on_plain(), *made)]
    captions = [text for case, kind, _ in cases for text in (f"{case.subject}, as a {kind}", *PLACES.values())]
    return contact_sheet(pictures, captions, columns=2 * (1 + len(PLACES)), tile=160)


def photographs_command(arguments: Sequence[str]) -> str:
    """`python -m train.evaluation photographs …`: the table."""
    parser = argparse.ArgumentParser(
        prog="python -m train.evaluation photographs", description=__doc__.split("\n\n")[0]
    )
    given = PhotographsConfig(Path())  # the working folder
    embedded = [name for name, spec in BASES.items() if spec.kinds]
    parser.add_argument("--folder", type=Path, required=True, help="a sub-folder with pictures for each subject")
    parser.add_argument("--base", default=given.base, choices=embedded)
    parser.add_argument("--weights", help="folder of the base; default the shipped one")
    parser.add_argument("--adapter", type=Path, help="adapter file; default the one beside the base's weights")
    parser.add_argument("--world", default=given.world, help="part of Toyland that the base has learned")
    parser.add_argument("--readers", type=Path, help="who finds subjects in pictures")
    parser.add_argument("--limit", type=int, help="subjects; default all")
    parser.add_argument("--steps", type=int, help="denoising steps; default the base's own")
    parser.add_argument("--seed", type=int, default=given.seed)
    parser.add_argument("--out", type=Path, default=given.out)
    return evaluate_photographs(from_options(PhotographsConfig, parser.parse_args(arguments)))
