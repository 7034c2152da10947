"""A CLIP that judges CT on Toyland: it tells a prompt from the same prompt with one thing changed.

    python -m train.evaluation.clip_judge --minutes 50 --pool runs/adapter-pool2   → runs/readers/clip.safetensors
    python -m train.evaluation adapter --base toyland2 --world demo --clip runs/readers/clip.safetensors

A base's own CLIP was made to condition pictures. It knows places, and next to nothing of styles, shapes and what is
worn, so pictures of an average subject please it more than renders of what was asked. This one has the attribute
reader's convolutional network for pictures and a small transformer for texts, and learns from renders alone: by
contrast within a batch (Radford et al. 2021) and against captions of the same picture in which one thing is another
(as in Yuksekgonul et al. 2023). Its network for pictures goes on learning attributes, so that it also sees edits. How
well it does both on renders of held-out subjects is kept in the file. No generated picture is ever shown to it, and no
base is conditioned by it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedTokenizerBase

from customcontrast.precision import autocast
from customcontrast.specs import BASES, WEIGHTS
from customcontrast.tensor_files import SafetensorError, write_tensors
from train.common.options import minutes, world_of
from train.evaluation.attribute_reader import (
    AttributeReader,
    Labels,
    Pictures,
    accuracy,
    described,
    fit,
    heldout_scenes,
    load_reader,
    moved,
    reader_like,
    reader_loss,
    rendered,
    targets,
    worn,
)
from train.evaluation.metrics import ClipSpaces, in_chunks
from train.toyland import Placement, ToyScene, ToySubject, World, describe, sample_scene
from train.toyland.subjects import BUILD

DEFAULT = Path("runs/readers/clip.safetensors")  # where a new one goes
BATCH = 64  # pictures in a step
CHANGED = 4  # captions of each picture in which one thing is another
DIMENSIONS = 128  # of the space that texts and pictures share, and width of the text tower
HEADS, LAYERS = 4, 2  # of the text tower
NOUN = 0.75  # share of captions that name the class noun alone, as prompts for a subject do


class ClipJudge(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] and token ids (B, N) → rows (B, DIMENSIONS) of one space, not normalised.

    reader: the network for pictures. tokenizer: of the texts; all words of the world should be its tokens.
    """

    def __init__(self, reader: AttributeReader, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.reader, self.tokenizer = reader, tokenizer
        config = CLIPTextConfig(
            hidden_size=DIMENSIONS,
            intermediate_size=4 * DIMENSIONS,
            num_attention_heads=HEADS,
            num_hidden_layers=LAYERS,
            projection_dim=DIMENSIONS,
            vocab_size=len(tokenizer),
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.text_model = CLIPTextModelWithProjection(config)
        seen = next(iter(reader.heads.values()))
        assert isinstance(seen, nn.Linear)
        self.project = nn.Linear(seen.in_features, DIMENSIONS, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.66))  # log of the logits' scale, CLIP's start
        self.told = 0.0  # share of renders of held-out subjects that are told from all that is changed (`measure`)

    def image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → (B, DIMENSIONS)."""
        return self.project(self.reader.features(pixels))

    def text(self, texts: Sequence[str]) -> Tensor:
        """B texts → (B, DIMENSIONS)."""
        rows = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.scale.device)
        return self.text_model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).text_embeds

    def spaces(self) -> ClipSpaces:
        """Its two sides for `train.evaluation.metrics`."""

        @torch.no_grad()
        def text(prompts: Sequence[str]) -> Tensor:
            return self.text(prompts).float()

        @torch.no_grad()
        def image(pictures: Sequence[Image.Image]) -> Tensor:
            sides = [pil_to_tensor(picture.convert("RGB"))[None].float() / 255 for picture in pictures]
            small = [F.interpolate(x, (self.reader.side,) * 2, mode="bilinear", antialias=True) for x in sides]
            return self.image(torch.cat(small)).float()

        return ClipSpaces(in_chunks(text), in_chunks(image))


# ------------------------------------------------------------------------------------------------- captions


def captioned(labels: Labels) -> ToyScene:
    """A scene with these labels of `toyland.attributes`: enough to describe it, not to render it."""
    placements = []
    for row in labels["subjects"]:
        build = dict(zip(BUILD, map(int, row["id"].rsplit("-", 1)[-1]), strict=True))
        subject = ToySubject(row["species"], row["color_1"], row["color_2"], row["pattern"], **build)
        worn_color = row["accessory_color"] or "red"
        placements.append(Placement(subject, row["shape"], row["accessory"], worn_color, pose=row["pose"]))
    return ToyScene(tuple(placements), background=labels["background"], style=labels["style"])


def changed(scene: ToyScene, rng: random.Random, world: World, full: bool = False) -> ToyScene:
    """The scene with one thing another: place, style, a kind, shape or thing worn, its colour.

    full: or a subject's colour or pattern, which a caption of the noun alone does not say.
    """
    which = rng.randrange(len(scene.placements))
    toy = scene.placements[which]
    subject, others = toy.subject, {p.subject.species for p in scene.placements}
    of_scene = {"background": world.backgrounds, "style": world.styles}
    of_toy = {"shape": world.shapes, "accessory": world.accessories}
    if toy.accessory != "none":
        of_toy["accessory_color"] = world.accessory_colors
    of_subject = {"species": tuple(kind for kind in world.species if kind not in others)}
    if full:
        of_subject["color_1"] = tuple(color for color in world.colors if color != subject.color_2)
        of_subject["pattern"] = world.patterns
    name = rng.choice([*of_scene, *of_toy, *of_subject])

    def another(options: Sequence[str], value: str) -> dict[str, Any]:
        return {name: rng.choice([option for option in options if option != value])}

    if name in of_scene:
        return replace(scene, **another(of_scene[name], getattr(scene, name)))
    if name in of_toy:
        toy = replace(toy, **another(of_toy[name], getattr(toy, name)))
    else:
        toy = replace(toy, subject=replace(subject, **another(of_subject[name], getattr(subject, name))))
    return replace(scene, placements=(*scene.placements[:which], toy, *scene.placements[which + 1 :]))


def captions(labels: Labels, rng: random.Random, world: World, count: int = CHANGED) -> list[str]:
    """A caption of the picture, and `count` captions of it with one thing changed."""
    scene, full = captioned(labels), rng.random() >= NOUN
    scenes = [scene, *(changed(scene, rng, world, full) for _ in range(count))]
    return [describe(s, rng, "full" if full else "noun").text for s in scenes]


def spread_scene(rng: random.Random, world: World) -> ToyScene:
    """A scene to learn from: places, styles, shapes and things worn about evenly, subjects near and far."""
    fixed: dict[str, Any] = {
        "style": rng.choice((world.styles[0], *world.styles)),
        "shape": rng.choice((world.shapes[0], *world.shapes)),
        "accessory": rng.choice((world.accessories[0], *world.accessories)),
    }
    return sample_scene(rng, world if rng.random() < 0.6 else replace(world, heights=None), **fixed)


# ------------------------------------------------------------------------------------------------- training


def contrast(pictures: Tensor, texts: Tensor, others: Tensor, same: Tensor, scale: Tensor | float) -> Tensor:
    """Mean of two cross-entropies: which text is a picture's, its changed ones among them; which picture is a text's.

    pictures, texts (B, d) of unit length, row by row together; others (B, K, d) changed texts of each picture; same
    (B, B) bool: rows of the same words, which are no mistake. scale: of the cosines.
    """
    own = torch.arange(len(pictures))
    twins = same & ~torch.eye(len(own), dtype=torch.bool)
    logits = (scale * pictures @ texts.T).masked_fill(twins, -torch.inf)
    changed_logits = scale * torch.einsum("bd,bkd->bk", pictures, others)
    by_picture = F.cross_entropy(torch.cat([logits, changed_logits], 1), own)
    return (by_picture + F.cross_entropy(logits.T, own)) / 2


def judge_loss(judge: ClipJudge, pixels: Tensor, labels: Sequence[Labels], rng: random.Random, world: World) -> Tensor:
    """`contrast` of pictures (B, 3, S, S) in [0, 1] with captions of their labels, and the attribute reader's loss."""
    rows = [captions(row, rng, world) for row in labels]
    own = [row[0] for row in rows]
    u = F.normalize(judge.text(own + [text for row in rows for text in row[1:]]).float(), dim=-1)
    z = judge.reader.features(pixels)
    v = F.normalize(judge.project(z).float(), dim=-1)
    same = torch.tensor([[a == b for b in own] for a in own])
    texts, others = u[: len(own)], u[len(own) :].view(len(own), -1, u.shape[-1])
    told = contrast(v, texts, others, same, judge.scale.exp().clamp(max=100))
    return told + reader_loss(judge.reader.read(z), targets(labels, judge.reader.values))


class SpreadPictures(Pictures):
    """Pictures whose new renders are of `spread_scene`."""

    def scene(self) -> ToyScene:
        """A new scene to render."""
        return spread_scene(self.rng, self.world)


def train_judge(judge: ClipJudge, pictures: Pictures, minutes: float, batch: int = BATCH, rate: float = 1e-3) -> int:
    """AdamW in place for `minutes` of processor time; the rate falls to 0. Returns the number of pictures seen."""
    generator, rng, seen = torch.Generator().manual_seed(0), random.Random(0), 0

    def loss_at(_: int) -> Tensor:
        nonlocal seen
        pixels, rows = pictures.batch(batch)
        seen += len(rows)
        with autocast("cpu"):
            x = worn(moved(pixels.float() / 255, generator), generator)
            return judge_loss(judge, x, rows, rng, pictures.world)

    fit(judge.train(), loss_at, minutes, "CLIP judge", decay=1e-2, warm=100, rate=rate)
    judge.requires_grad_(False).eval()
    return seen


@torch.no_grad()
def measure(judge: ClipJudge, world: World, count: int = 512, seed: int = 0) -> float:
    """The share of renders of held-out subjects to which their own prompt is nearer than eight with one thing changed.

    Prompts name the noun alone, in the plain wording.
    """
    rng = random.Random(f"clip judge {seed}")
    scenes = heldout_scenes(world, f"clip judge {seed}", count)
    images = rendered(scenes, judge.reader.side).float() / 255
    v = F.normalize(torch.cat([judge.image(part) for part in images.split(64)]), dim=-1)
    hits = []
    for scene, row in zip(scenes, v, strict=True):
        texts = [describe(s, None, "noun").text for s in (scene, *(changed(scene, rng, world) for _ in range(8)))]
        near = F.normalize(judge.text(texts), dim=-1) @ row
        hits.append(float(near[0] > near[1:].max()))
    return sum(hits) / len(hits)


def save_judge(judge: ClipJudge, path: Path, world: str, seen: int) -> None:
    """Weights in 16 bits; sizes, how well it judges and what it has seen in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in judge.state_dict().items()}
    about = described(judge.reader) | {"told": str(judge.told), "world": world, "pictures": str(seen)}
    write_tensors(weights, path, metadata=about)


def load_judge(path: Path, tokenizer: PreTrainedTokenizerBase) -> ClipJudge:
    """Read it back, with the tokenizer that it was trained with.

    Raises FileNotFoundError with the command that makes one, ValueError for a file that is none or of other words.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"--clip {path}: there is no such file; make one with `python -m train.evaluation.clip_judge`"
        )
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        judge = ClipJudge(reader_like(about), tokenizer)
        judge.told, judge.reader.quality = float(about["told"]), json.loads(about["quality"])
        judge.load_state_dict(weights)
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"--clip {path} is no CLIP judge of this base's words; give a file of "
            "`python -m train.evaluation.clip_judge --base …`"
        ) from error
    return judge.eval().requires_grad_(False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure on held-out subjects, save."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluation.clip_judge", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=minutes, default=50.0, help="of processor time")
    embedded = [name for name, spec in BASES.items() if spec.embedded]
    parser.add_argument(
        "--base", default="toyland2", choices=embedded, help="whose words it reads and whose attribute reader it is"
    )
    parser.add_argument("--world", default="demo", help="part of Toyland: small, demo or full")
    parser.add_argument("--pool", type=Path, action="append", default=[], help="a rendered pool to learn from")
    parser.add_argument("--fresh", type=int, default=BATCH // 4, help="new renders at each step")
    parser.add_argument("--out", type=Path, default=DEFAULT)
    options = parser.parse_args(arguments)
    world = world_of(parser, options.world)
    torch.manual_seed(0)
    try:
        reader = load_reader(base=options.base).requires_grad_(True)
        tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / options.base / "tokenizer")
        pictures = SpreadPictures(world, reader.side, options.pool, options.fresh)
    except (OSError, ValueError) as error:
        print(f"clip_judge: {error}", file=sys.stderr)
        return 2
    judge = ClipJudge(reader, tokenizer)
    seen = train_judge(judge, pictures, options.minutes)
    judge.told, judge.reader.quality = measure(judge, world), accuracy(judge.reader, world)
    save_judge(judge, options.out, options.world, seen)
    read = ", ".join(f"{name} {value:.3f}" for name, value in judge.reader.quality.items())
    print(f"{seen} pictures; held-out renders: {judge.told:.3f} told from what is changed; read: {read}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
