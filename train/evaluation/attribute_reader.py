"""What a Toyland picture shows, read by a small convolutional network that has seen renders alone.

    python -m train.evaluation.attribute_reader --minutes 12 --pool runs/base-cpu/pool  → runs/readers/

A reader trained in this way stands beside the base's weights, so that scores can be compared from one day to the next.
Place, style and the set of species are read off every picture; the other attributes off pictures of one subject, where
it is plain whose they are, and colours only where the style shows any. The network never sees a generated picture, so
its readings of one are evidence; its own accuracy on renders of held-out subjects is kept in the file.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from torchvision.transforms import functional as TF
from tqdm import tqdm

from customcontrast.precision import autocast
from customcontrast.tensor_files import write_tensors
from train.base.networks import label_values
from train.base.pool import read_shard, shard_paths
from train.common.options import minutes, world_of
from train.data.adapter_pool import read_records
from train.evaluation.command import ATTRIBUTES, judge
from train.toyland import ToyScene, World, attributes, render, sample_scene, sample_subject

DEFAULT = Path("runs/readers/attributes.safetensors")  # where a new one goes
BATCH = 64  # pictures in a step
SIDE = 96  # px that the first network looks at
COLORLESS = ("sketch",)  # styles that show no colours
COLORS = ("color_1", "color_2", "accessory_color")
IGNORE = -100  # class index where a label does not apply
Labels = dict[str, Any]  # of `toyland.attributes`


@dataclass(frozen=True)
class Shape:
    """Sizes of a reader's network; a file without them holds the first one."""

    side: int = SIDE  # px that it looks at
    width: int = 32  # channels of the first layer
    widths: tuple[int, ...] = (2, 4, 6, 6)  # of the blocks, in `width`
    patch: int = 2  # step of the first layer in px
    norm: str = "group"  # or "batch", which learns several times as much of the same pictures


FIRST = Shape()
SHAPES = {"first": FIRST, "second": Shape(side=128, width=64, widths=(2, 3, 4), patch=4, norm="batch")}


def norm_layer(kind: str, channels: int) -> nn.Module:
    """A norm of feature maps: "batch", or "group" in eight groups."""
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(8, channels)


class _Residual(nn.Module):
    """Halve the side, change the width, then one residual block: (B, in, S, S) → (B, out, S/2, S/2)."""

    def __init__(self, inputs: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), norm_layer(norm, outputs), nn.SiLU())
        self.block = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, 1), norm_layer(norm, outputs), nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1), norm_layer(norm, outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return F.silu(x + self.block(x))


class AttributeReader(nn.Module):
    """Pixels (B, 3, H, W) in [0, 1] → {attribute: (B, values) logits}; `features` are the space of distances."""

    def __init__(self, values: dict[str, list[str]], shape: Shape = FIRST) -> None:
        super().__init__()
        self.values, self.shape = values, shape
        width, step = shape.width, shape.patch
        widths = [width * wide for wide in shape.widths]
        first = nn.Conv2d(3, width, 3, 2, 1) if step == 2 else nn.Conv2d(3, width, step, step)
        self.stem = nn.Sequential(first, norm_layer(shape.norm, width), nn.SiLU())
        pairs = zip((width, *widths), widths, strict=False)
        self.body = nn.Sequential(*(_Residual(a, b, shape.norm) for a, b in pairs))
        self.heads = nn.ModuleDict({name: nn.Linear(2 * widths[-1], len(of)) for name, of in values.items()})
        self.quality: dict[str, float] = {}  # accuracy of each attribute on renders of held-out subjects

    @property
    def side(self) -> int:
        """Of the pictures that it looks at, px."""
        return self.shape.side

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 2 × the last width): mean and maximum over the picture of the last layer."""
        if pixels.shape[-2:] != (self.side, self.side):
            pixels = F.interpolate(pixels, size=(self.side, self.side), mode="bilinear", antialias=True)
        z = self.body(self.stem(pixels * 2 - 1))
        return torch.cat([z.mean((2, 3)), z.amax((2, 3))], 1)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return self.read(self.features(pixels))

    def read(self, features: Tensor) -> dict[str, Tensor]:
        """`features` of B pictures → {attribute: (B, values) logits}."""
        return {name: head(features).float() for name, head in self.heads.items()}


# ------------------------------------------------------------------------------------------ what is right


def targets(labels: Sequence[Labels], values: dict[str, list[str]]) -> dict[str, Tensor]:
    """Labels of N pictures → {attribute: (N,) index or IGNORE}; species is (N, species) of 0 and 1."""
    out: dict[str, Tensor] = {}
    for name, options in values.items():
        if name == "species":
            shown = [{s["species"] for s in row["subjects"]} for row in labels]
            out[name] = torch.tensor([[float(o in row) for o in options] for row in shown])
        else:
            out[name] = torch.tensor([_index(row, name, options) for row in labels])
    return out


def _index(row: Labels, name: str, options: list[str]) -> int:
    if name in ("background", "style"):
        return options.index(row[name])
    if len(row["subjects"]) > 1 or (name in COLORS and row["style"] in COLORLESS):
        return IGNORE
    value = row["subjects"][0][name]
    return IGNORE if value is None else options.index(value)


def reader_loss(logits: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Mean over attributes of the cross-entropy; for the species the binary one, summed over species."""
    terms = []
    for name, x in logits.items():
        if name == "species":
            terms.append(F.binary_cross_entropy_with_logits(x, wanted[name], reduction="sum") / len(x))
        elif (wanted[name] != IGNORE).any():
            terms.append(F.cross_entropy(x, wanted[name], ignore_index=IGNORE))
    return torch.stack(terms).mean()


def correct(logits: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """{attribute: (N,) 1 right, 0 wrong, nan where it does not apply}. Species: the n likeliest are the n shown."""
    out = {}
    for name, x in logits.items():
        if name == "species":
            true = wanted[name].bool()
            worst = x.masked_fill(~true, torch.inf).amin(1)
            best_other = x.masked_fill(true, -torch.inf).amax(1)
            out[name] = (worst > best_other).float()
        else:
            right = (x.argmax(1) == wanted[name]).float()
            out[name] = right.masked_fill(wanted[name] == IGNORE, torch.nan)
    return out


@torch.no_grad()
def _logits(reader: AttributeReader, images: Tensor) -> dict[str, Tensor]:
    """images (N, 3, H, W) uint8 → {attribute: (N, values)}."""
    parts = [reader(part.float() / 255) for part in images.split(64)]
    return {name: torch.cat([p[name] for p in parts]) for name in reader.values}


def read(reader: AttributeReader, images: Tensor, labels: Sequence[Labels]) -> dict[str, Tensor]:
    """images (N, 3, H, W) uint8 and what they should show → `correct` of them."""
    return correct(_logits(reader, images), targets(labels, reader.values))


def shows(reader: AttributeReader, pictures: Sequence[Image.Image], wanted: Sequence[Labels]) -> list[dict[str, float]]:
    """For each picture, of {attribute: value} wanted of it, {attribute: 1.0 where it is read off it, else 0.0}.

    The pictures are of one size. Raises ValueError for a value that the reader was not taught.
    """
    for name, value in {item for row in wanted for item in row.items()}:
        if value not in reader.values.get(name, ()):
            raise ValueError(
                f"attributes: the reader was never taught {name} {value!r}, so it cannot say whether a picture shows "
                "it; train one on this world: python -m train.evaluation.attribute_reader --world …"
            )
    logits = _logits(reader, torch.stack([TF.pil_to_tensor(picture.convert("RGB")) for picture in pictures]))
    told = {name: [of[i] for i in logits[name].argmax(1)] for name, of in reader.values.items()}
    return [{name: float(told[name][i] == value) for name, value in row.items()} for i, row in enumerate(wanted)]


# ------------------------------------------------------------------------------------------------- training


def worn(pixels: Tensor, generator: torch.Generator, sharp: bool = False) -> Tensor:
    """What pictures suffer that are not renders: softened, a little noisy, mirrored. (B, 3, S, S) in [0, 1].

    sharp: not softened, so that the reader holds softness against a picture.
    """
    side = pixels.shape[-1]
    small = int(torch.randint(side // 2, side + 1, (1,), generator=generator))
    if small < 0.9 * side and not sharp:
        soft = F.interpolate(pixels, size=(small, small), mode="bilinear", antialias=True)
        pixels = F.interpolate(soft, size=(side, side), mode="bilinear")
    strength = 0.06 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    mirrored = torch.rand(len(pixels), 1, 1, 1, generator=generator) < 0.5
    pixels = torch.where(mirrored, pixels.flip(-1), pixels)
    return (pixels + strength * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)


def moved(pixels: Tensor, generator: torch.Generator, rim: str = "reflection") -> Tensor:
    """Each picture a little larger or smaller, turned and shifted. (B, 3, S, S) to the same.

    rim: what comes in, as `grid_sample` calls it: the picture mirrored, or "zeros".
    So a picture that comes again is not the same picture, and what it shows is not learned by heart.
    """

    def draw(most: float) -> Tensor:
        return most * (2 * torch.rand(len(pixels), generator=generator) - 1)

    angle, scale = draw(0.15), torch.exp(draw(0.15))
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([cos, -sin, draw(0.12), sin, cos, draw(0.12)], 1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode=rim, align_corners=False)


def heldout_scenes(world: World, seed: str, count: int, p_two: float = 0.2) -> list[ToyScene]:
    """Scenes of held-out subjects: places, styles, shapes and things to wear evenly, two subjects in `p_two`."""
    rng, scenes = random.Random(seed), []
    for i in range(count):
        subjects = [sample_subject(rng, world, heldout=True)]
        while len(subjects) < 1 + (i < p_two * count):
            other = sample_subject(rng, world, heldout=True)
            subjects += [other] if other.species != subjects[0].species else []
        fixed = {
            "background": world.backgrounds[i % len(world.backgrounds)],
            "style": world.styles[(i // 3) % len(world.styles)],
            "shape": world.shapes[0] if i % 2 else world.shapes[(i // 2) % len(world.shapes)],
            "accessory": world.accessories[0] if i % 3 == 0 else world.accessories[(i // 3) % len(world.accessories)],
        }
        scenes.append(sample_scene(rng, world, subjects=tuple(subjects), **fixed))
    return scenes


def rendered(scenes: Sequence[ToyScene], side: int = SIDE) -> Tensor:
    """(N, 3, side, side) uint8."""
    return torch.cat([render(scenes[i : i + 16], side).images for i in range(0, len(scenes), 16)])


class Pictures:
    """What the reader learns from: rendered pools, and new renders that join them as it goes.

    pools: folders of shards of the base's or the adapter's pool. fresh: new renders at each batch; every one of them is
    in that batch, and the rest is drawn from all that are there. Raises FileNotFoundError for a pool without shards,
    ValueError where there is neither a pool nor a fresh render.
    """

    def __init__(self, world: World, side: int, pools: Sequence[Path], fresh: int) -> None:
        if not pools and fresh < 1:
            raise ValueError("fresh is 0 and no pool is named, so there is nothing to learn from; give one of them")
        self.world, self.side, self.fresh = world, side, fresh
        self.images: list[Tensor] = []
        self.labels: list[Labels] = []
        for pool in pools:
            if not (paths := shard_paths(pool)):
                raise FileNotFoundError(f"there is no shard in {pool}; make some with `python -m train.base pool`")
            for images, labels in map(_labelled, paths):
                self.images += _small(images, side).unbind()
                self.labels += labels
        self.rng = random.Random(0)

    def scene(self) -> ToyScene:
        """A new scene to render."""
        return sample_scene(self.rng, self.world)

    def batch(self, count: int) -> tuple[Tensor, list[Labels]]:
        """(count, 3, side, side) uint8 and what they show."""
        old = [self.rng.randrange(len(self.images)) for _ in range(count - self.fresh)] if self.images else []
        scenes = [self.scene() for _ in range(self.fresh)]
        chosen = old + list(range(len(self.images), len(self.images) + len(scenes)))
        if scenes:
            self.images += rendered(scenes, self.side).unbind()
            self.labels += [attributes(scene) for scene in scenes]
        return torch.stack([self.images[i] for i in chosen]), [self.labels[i] for i in chosen]


def _labelled(path: Path) -> tuple[Tensor, list[Labels]]:
    """Pictures (N, 3, S, S) uint8 of a shard of the base's or the adapter's pool, and what they show."""
    if path.with_suffix(".json").is_file():
        shard = read_shard(path)
        return shard.images, [record["labels"] for record in shard.records]
    labels = [target["attributes"] for record in read_records(path) for target in record["targets"]]
    with safe_open(path, "pt") as file:
        return file.get_tensor("images").flatten(0, 1), labels


def fit(
    net: nn.Module,
    loss_at: Callable[[int], Tensor],
    minutes: float,
    name: str,
    decay: float,
    warm: int,
    rate: float = 2e-3,
    progress: bool = True,
) -> None:
    """AdamW for `minutes` of processor time on the loss of each step, from 0; the rate falls to 0 with the time.

    decay: weight decay. warm: steps in which the rate rises to `rate`. name: of the bar.
    """
    net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay)
    start, step, mean = time.process_time(), 0, None
    bar = tqdm(total=round(60 * minutes), desc=name, unit="s", disable=not progress)
    while (done := (time.process_time() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / warm) * (1 - done)
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        bar.n = round(60 * minutes * done)
        bar.set_postfix(step=step, loss=f"{mean:.3f}")
    bar.close()


def train_reader(
    reader: AttributeReader, pictures: Pictures, minutes: float, batch: int = BATCH, sharp: bool = False
) -> int:
    """AdamW in place for `minutes` of processor time, in bfloat16 where the CPU has it; the rate falls to 0.

    sharp: see `worn`.

    Returns the number of pictures seen.
    """
    generator, seen = torch.Generator().manual_seed(0), 0

    def loss_at(_: int) -> Tensor:
        nonlocal seen
        pixels, rows = pictures.batch(batch)
        seen += len(rows)
        with autocast("cpu"):
            logits = reader(worn(moved(pixels.float() / 255, generator), generator, sharp))
        return reader_loss(logits, targets(rows, reader.values))

    fit(reader.train(), loss_at, minutes, "attribute reader", decay=1e-2, warm=50)
    reader.eval().requires_grad_(False)
    return seen


def _small(images: Tensor, side: int) -> Tensor:
    """Pictures uint8 (N, 3, S, S) at the reader's side, so that no step has to make them smaller."""
    if images.shape[-1] == side:
        return images
    small = F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def accuracy(reader: AttributeReader, world: World, count: int = 512) -> dict[str, float]:
    """The share of each attribute read right off renders of held-out subjects, in scenes spread evenly."""
    scenes = heldout_scenes(world, "reader accuracy", count)
    hits = read(reader, rendered(scenes, reader.side), [attributes(s) for s in scenes])
    return {name: float(x.nanmean()) for name, x in hits.items()}


def described(reader: AttributeReader) -> dict[str, str]:
    """What a reader is, without its weights, for the metadata of a file: values, sizes, quality."""
    shape, values = json.dumps(asdict(reader.shape)), json.dumps(reader.values)
    return {"values": values, "quality": json.dumps(reader.quality), "shape": shape}


def reader_like(about: Mapping[str, str]) -> AttributeReader:
    """An untrained reader of what `described` said, of FIRST sizes where it names none. Raises KeyError."""
    sizes = json.loads(about.get("shape", "{}"))
    shape = Shape(**sizes | {"widths": tuple(sizes["widths"])}) if sizes else FIRST
    return AttributeReader(json.loads(about["values"]), shape)


def save_reader(reader: AttributeReader, path: Path, seen: int) -> None:
    """Weights in 16 bits; what they read, how well, and after how many pictures, in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() for k, v in reader.state_dict().items()}
    write_tensors(weights, path, metadata=described(reader) | {"pictures": str(seen)})


def load_reader(path: Path | None = None, base: str = "toyland") -> AttributeReader:
    """Read it back; None = that of the base's world. Raises FileNotFoundError with the command that makes it."""
    path = path or judge(base, ATTRIBUTES)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no reader in {path}; make it with `python -m train.evaluation.attribute_reader`"
        )
    with safe_open(path, "pt") as file:
        about = file.metadata()
        reader = reader_like(about)
        reader.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    reader.quality = json.loads(about["quality"])
    return reader.eval().requires_grad_(False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure on held-out subjects, save."""
    parser = argparse.ArgumentParser(
        prog="python -m train.evaluation.attribute_reader", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--minutes", type=minutes, default=12.0, help="of processor time")
    parser.add_argument("--world", default="small", help="part of Toyland: small, demo or full")
    parser.add_argument("--net", choices=SHAPES, default="second", help="sizes of the network")
    parser.add_argument("--side", type=int, help="px that it looks at; default the network's own")
    parser.add_argument("--sharp", action="store_true", help="learn from sharp renders alone")
    parser.add_argument("--pool", type=Path, action="append", default=[], help="a rendered pool to learn from")
    parser.add_argument("--fresh", type=int, help="new renders at each step (default: 64, with a pool 0)")
    parser.add_argument("--out", type=Path, default=DEFAULT)
    options = parser.parse_args(arguments)
    world = world_of(parser, options.world)
    torch.manual_seed(0)
    shape = SHAPES[options.net]
    reader = AttributeReader(label_values(world), replace(shape, side=options.side or shape.side))
    fresh = options.fresh if options.fresh is not None else 0 if options.pool else BATCH
    try:
        pictures = Pictures(world, reader.side, options.pool, fresh)
    except (FileNotFoundError, ValueError) as error:
        print(f"attribute_reader: {error}", file=sys.stderr)
        return 2
    seen = train_reader(reader, pictures, options.minutes, sharp=options.sharp)
    reader.quality = accuracy(reader, world)
    save_reader(reader, options.out, seen)
    print(f"{seen} pictures; held-out renders: " + ", ".join(f"{k} {v:.3f}" for k, v in reader.quality.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
