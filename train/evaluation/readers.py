"""Toyland's own judges, trained on renders: who is this (in DINO's place), and where is it (in Grounded SAM's place).

    python -m train.evaluation.readers --minutes 26      → runs/readers/toyland.safetensors

Readers trained in this way stand beside the base's weights, so that scores can be compared from one day to the next.
`IdentityReader` embeds a segmented subject so that frames of one subject are near over views, poses, light and places,
and look-alikes (same species, same colours) are not. `MaskReader` finds the subject in a picture of any style. Both
are judged on held-out subjects, and their scores are printed beside every evaluation.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import functional as TF

from customcontrast.precision import autocast
from customcontrast.segmentation import Segmentation
from customcontrast.tensor_files import write_tensors
from train.common.options import minutes, world_of
from train.data.adapter_pool import read_records
from train.data.toyland_source import reference_scene, render_references, target_scene
from train.evaluation.attribute_reader import fit, moved, norm_layer
from train.evaluation.command import READERS, judge
from train.toyland import ToySubject, World, render, sample_subject
from train.toyland.subjects import EARS, EYES, SIZES, TAILS

IDENTITY_SIDE, MASK_SIDE = 64, 96  # px the readers see
DEFAULT = Path("runs/readers/toyland.safetensors")  # where new ones go


def _block(inputs: int, outputs: int, stride: int, norm: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1), norm_layer(norm, outputs), nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1), norm_layer(norm, outputs), nn.SiLU(),
    )  # fmt: skip


class IdentityReader(nn.Module):
    """A segmented subject on white (B, 3, 64, 64) in [0, 1] → a unit vector (B, 96)."""

    def __init__(self, norm: str = "group") -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 160)
        self.trunk = nn.Sequential(*(_block(a, b, 2, norm) for a, b in itertools.pairwise(widths)))
        self.head = nn.Linear(2 * 160, 96)

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x * 2 - 1)
        return F.normalize(self.head(torch.cat([h.mean((2, 3)), h.amax((2, 3))], dim=1)).float(), dim=1)


class MaskReader(nn.Module):
    """A picture (B, 3, 96, 96) in [0, 1] → logits of the subject's mask (B, 1, 96, 96)."""

    def __init__(self, norm: str = "group") -> None:
        super().__init__()
        widths = (16, 32, 64, 96)
        self.down = nn.ModuleList(
            _block(a, b, s, norm) for a, b, s in zip((3, *widths), (*widths, 128), (1, 2, 2, 2, 2), strict=True)
        )
        turned = (128, 96, 64, 32, 16)
        self.up = nn.ModuleList(_block(a + b, b, 1, norm) for a, b in itertools.pairwise(turned))
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips, h = [], x * 2 - 1
        for block in self.down:
            h = block(h)
            skips.append(h)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            h = block(torch.cat([F.interpolate(h, size=skip.shape[-2:], mode="nearest"), skip], dim=1))
        return self.out(h)


class Readers(nn.Module):
    """Both readers, with what was measured of them. norm: of their layers, see `attribute_reader.Shape`."""

    def __init__(self, norm: str = "group") -> None:
        super().__init__()
        self.norm = norm
        self.identity_net, self.mask_net = IdentityReader(norm), MaskReader(norm)
        self.quality: dict[str, float] = {}  # held-out retrieval among 50, look-alike retrieval, mask IoU

    @torch.no_grad()
    def identity(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Segmented subjects on white (from `Segmentation.on_plain`) → unit vectors (N, 96)."""
        side = (IDENTITY_SIDE, IDENTITY_SIDE)
        pixels = [TF.to_tensor(p.convert("RGB").resize(side, Image.Resampling.BICUBIC)) for p in pictures]
        return torch.cat([self.identity_net(torch.stack(pixels[i : i + 64])) for i in range(0, len(pixels), 64)])

    @torch.no_grad()
    def segment(self, picture: Image.Image) -> Segmentation:
        """The subject of a generated picture. Where nothing is found the mask is the whole picture (score 0)."""
        small = picture.convert("RGB").resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BICUBIC)
        logits = self.mask_net(TF.to_tensor(small)[None])
        size = (picture.height, picture.width)
        p = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0, 0].sigmoid().numpy()
        mask = p > 0.5
        if mask.mean() < 0.005:
            return Segmentation(image=picture, mask=np.ones(size, bool), score=0.0, method="mask reader")
        return Segmentation(image=picture, mask=mask, score=float(p[mask].mean()), method="mask reader")


# --------------------------------------------------------------------------------------------------- training


def look_alike(rng: random.Random, world: World, subject: ToySubject) -> ToySubject:
    """Another subject that differs in one to three traits: what makes identity more than a class and a colour."""
    options: dict[str, Sequence[Any]] = {
        "color_1": [c for c in world.colors if c not in (subject.color_1, subject.color_2)],
        "color_2": [c for c in world.colors if c not in (subject.color_1, subject.color_2)],
        "pattern": [p for p in world.patterns if p != subject.pattern],
        "head": range(len(SIZES)),
        "girth": range(len(SIZES)),
        "legs": range(len(SIZES)),
        "ears": range(EARS),
        "tail": range(TAILS),
        "eyes": range(EYES),
    }
    while True:
        names = rng.sample(list(options), rng.randint(1, 3))
        traits = {name: rng.choice(list(options[name])) for name in names}
        if len({traits.get("color_1", subject.color_1), traits.get("color_2", subject.color_2)}) == 2:
            other = replace(subject, **traits)
            if other.id != subject.id:
                return other


def contrast(z: Tensor, subjects: Tensor, temperature: float = 0.07) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020): frames of one subject against all other frames. z (N, d)."""
    with torch.autocast(z.device.type, enabled=False):
        logits = z @ z.T / temperature
    self_ = torch.eye(len(z), dtype=torch.bool)
    logits = logits.masked_fill(self_, -1e9)
    same = (subjects[:, None] == subjects[None, :]) & ~self_
    log_p = logits - logits.logsumexp(1, keepdim=True)
    return -(log_p * same).sum(1).div(same.sum(1)).mean()


def jitter(x: Tensor, g: torch.Generator) -> Tensor:
    """What a generator's picture suffers: blur, noise, a shift of brightness. x (B, 3, S, S) in [0, 1]."""
    side = x.shape[-1]
    low = int(torch.randint(side // 2, side + 1, (1,), generator=g))
    small = F.interpolate(x, size=(low, low), mode="bilinear", antialias=True)
    x = F.interpolate(small, size=(side, side), mode="bilinear")
    gain = 0.9 + 0.2 * torch.rand(len(x), 1, 1, 1, generator=g)
    return (x * gain + 0.03 * torch.rand(1, generator=g) * torch.randn(x.shape, generator=g)).clamp(0, 1)


def identity_frames(
    rng: random.Random, world: World, families: int, views: int, heldout: bool | None
) -> tuple[Tensor, Tensor]:
    """Families of three look-alikes, `views` frames each: crops uint8 (N, 3, 64, 64) and subject numbers (N,)."""
    scenes, numbers = [], []
    for family in range(families):
        first = sample_subject(rng, world, heldout=heldout)
        for k, subject in enumerate((first, look_alike(rng, world, first), look_alike(rng, world, first))):
            scenes += [reference_scene(rng, world, subject) for _ in range(views)]
            numbers += [3 * family + k] * views
    return render_references(scenes, 112, IDENTITY_SIDE), torch.tensor(numbers)


def mask_frames(rng: random.Random, world: World, count: int, heldout: bool | None) -> tuple[Tensor, Tensor]:
    """Target pictures in all styles, uint8 (N, 3, 96, 96), with their masks bool (N, 96, 96)."""
    scenes = [target_scene(rng, world, sample_subject(rng, world, heldout=heldout)) for _ in range(count)]
    rendered = render(scenes, MASK_SIDE)
    return rendered.images, rendered.masks[:, 0]


class PoolFrames:
    """The same two kinds of frames, taken from a rendered pool (`toyland_source`): no rendering while learning."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("shard-*.safetensors"))
        if not paths:
            raise FileNotFoundError(f"there is no pool in {folder}; make it with `python -m train.data prepare`")
        self.shards = [load_file(path) for path in paths]
        records = [record for path in paths for record in read_records(path)]
        self.places = [(s, row) for s, shard in enumerate(self.shards) for row in range(len(shard["images"]))]
        kin: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for i, record in enumerate(records):
            kin[tuple(record["subject"].split("-")[:2])].append(i)  # species and main colour
        self.families = [family for family in kin.values() if len(family) >= 3]

    def identity(self, rng: random.Random, families: int, views: int) -> tuple[Tensor, Tensor]:
        """Families of three subjects of one species and main colour: crops uint8 (N, 3, 64, 64), numbers (N,)."""
        crops, numbers = [], []
        for k in range(families):
            for m, i in enumerate(rng.sample(rng.choice(self.families), 3)):
                shard, row = self.places[i]
                crops.append(self.shards[shard]["references"][row][:views])
                numbers += [3 * k + m] * len(crops[-1])
        small = F.interpolate(torch.cat(crops).float(), size=(IDENTITY_SIDE,) * 2, mode="bilinear", antialias=True)
        return small.round().to(torch.uint8), torch.tensor(numbers)

    def masks(self, rng: random.Random, count: int) -> tuple[Tensor, Tensor]:
        """Target pictures uint8 (N, 3, S, S) and their masks bool (N, S, S), S at most 96."""
        images, masks = [], []
        for _ in range(count):
            shard, row = rng.choice(self.places)
            tensors = self.shards[shard]
            target = rng.randrange(tensors["images"].shape[1])
            images.append(tensors["images"][row, target])
            masks.append(np.unpackbits(tensors["masks"][row, target].numpy(), axis=-1)[:, : images[-1].shape[-1]])
        side, both = (MASK_SIDE, MASK_SIDE), torch.from_numpy(np.stack(masks)).bool()
        if images[0].shape[-1] <= MASK_SIDE:
            return torch.stack(images), both
        small = F.interpolate(torch.stack(images).float(), size=side, mode="bilinear", antialias=True)
        covered = F.interpolate(both[:, None].float(), size=side, mode="bilinear", antialias=True)[:, 0]
        return small.round().to(torch.uint8), covered > 0.5


class Stock:
    """A growing stock of rendered frames; once `limit` chunks are there, they are used again and again."""

    def __init__(self, make: Callable[[int], tuple[Tensor, Tensor]], limit: int) -> None:
        self.make, self.limit = make, limit
        self.chunks: list[tuple[Tensor, Tensor]] = []

    def chunk(self, step: int) -> tuple[Tensor, Tensor]:
        """The chunk of this step."""
        while len(self.chunks) <= min(step, self.limit - 1):
            self.chunks.append(self.make(len(self.chunks)))
        return self.chunks[step if step < self.limit else random.Random(step).randrange(self.limit)]


class Fresh:
    """A new chunk every time."""

    def __init__(self, make: Callable[[int], tuple[Tensor, Tensor]]) -> None:
        self.chunk = make


def train_readers(
    world: World,
    minutes: float,
    pool: Path | None = None,
    limit: int = 150,
    progress: bool = True,
    norm: str = "batch",
) -> Readers:
    """Both readers, half of the time each; then measured on held-out subjects.

    pool: a folder of `toyland_source`'s shards to learn from; None renders up to `limit` chunks, then repeats. norm:
    see `attribute_reader.Shape`; batch norms want some hundred steps before they judge alone as they did in batches.
    """
    torch.manual_seed(0)
    readers = Readers(norm).train()
    frames: Fresh | Stock
    pictures: Fresh | Stock
    if pool is not None:
        ready = PoolFrames(pool)
        frames = Fresh(lambda i: ready.identity(random.Random(f"identity-{i}"), 12, 3))
        pictures = Fresh(lambda i: ready.masks(random.Random(f"mask-{i}"), 32))
    else:
        frames = Stock(lambda i: identity_frames(random.Random(f"identity-{i}"), world, 12, 3, False), limit)
        pictures = Stock(lambda i: mask_frames(random.Random(f"mask-{i}"), world, 32, False), limit)

    def identity_loss(step: int, g: torch.Generator) -> Tensor:
        chunks = [frames.chunk(2 * step + k) for k in range(2)]
        x = torch.cat([c[0] for c in chunks]).float() / 255
        numbers = torch.cat([chunks[0][1], chunks[1][1] + 1000])
        x = 1 - moved(1 - x, g, "zeros")  # what comes in at the rim is white, as around a cut-out
        x = torch.where(torch.rand(len(x), 1, 1, 1, generator=g) < 0.5, x.flip(-1), x)
        return contrast(readers.identity_net(jitter(x, g)), numbers)

    def mask_loss(step: int, g: torch.Generator) -> Tensor:
        x, m = pictures.chunk(step)
        x, m = (x.flip(-1), m.flip(-1)) if torch.rand((), generator=g) < 0.5 else (x, m)
        logits, m = readers.mask_net(jitter(x.float() / 255, g))[:, 0].float(), m.float()
        dice = 1 - 2 * (logits.sigmoid() * m).sum() / (logits.sigmoid().sum() + m.sum())
        return F.binary_cross_entropy_with_logits(logits, m) + dice

    _fit(readers.identity_net, identity_loss, minutes / 2, "identity reader", progress)
    _fit(readers.mask_net, mask_loss, minutes / 2, "mask reader", progress)
    readers.eval().requires_grad_(False)
    readers.quality = measure(readers, world)
    return readers


def _fit(
    net: nn.Module, loss_at: Callable[[int, torch.Generator], Tensor], minutes: float, name: str, progress: bool
) -> None:
    """`fit` in bfloat16 where the CPU has it; the generator of each step is its own."""

    def loss(step: int) -> Tensor:
        with autocast("cpu"):
            return loss_at(step, torch.Generator().manual_seed(step))

    fit(net, loss, minutes, name, decay=1e-3, warm=30, progress=progress)


@functools.lru_cache(maxsize=2)
def held_out_frames(world: World, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What readers are measured on: two views of 50 subjects, two of 25 × 3 look-alikes; pictures and their masks."""
    rng = random.Random(f"measure-{seed}")
    subjects = [sample_subject(rng, world, heldout=True) for _ in range(50)]
    scenes = [reference_scene(rng, world, s) for s in subjects for _ in range(2)]
    views = render_references(scenes, 112, IDENTITY_SIDE)
    crops, _ = identity_frames(rng, world, 25, 2, True)
    return views, crops, *mask_frames(rng, world, 48, True)


@torch.no_grad()
def measure(readers: Readers, world: World, seed: int = 0) -> dict[str, float]:
    """On held-out subjects: retrieval of another view among 50 subjects, among 3 look-alikes, and the masks' IoU."""
    views, crops, images, masks = held_out_frames(world, seed)
    z = readers.identity_net(views.float() / 255)
    found = (z[::2] @ z[1::2].T).argmax(1) == torch.arange(50)
    z = readers.identity_net(crops.float() / 255).view(25, 3, 2, -1)
    alike = torch.einsum("fad,fbd->fab", z[:, :, 0], z[:, :, 1]).argmax(2) == torch.arange(3)
    predicted = readers.mask_net(images.float() / 255)[:, 0] > 0
    iou = (predicted & masks).sum((1, 2)) / (predicted | masks).sum((1, 2)).clamp_min(1)
    return {
        "identity_among_50": float(found.float().mean()),
        "identity_among_3_look_alikes": float(alike.float().mean()),
        "mask_iou": float(iou.mean()),
    }


def save_readers(readers: Readers, path: Path, world: str) -> None:
    """16-bit safetensors with the measured quality in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in readers.state_dict().items()}
    about = {"quality": json.dumps(readers.quality), "world": world, "norm": readers.norm}
    write_tensors(weights, path, metadata=about)


def load_readers(path: Path | None = None, base: str = "toyland") -> Readers:
    """Read them back; None = those of the base's world. Raises FileNotFoundError with the command that makes them."""
    path = path or judge(base, READERS)
    if not path.is_file():
        raise FileNotFoundError(
            f"there are no readers in {path}; make them with `python -m train.evaluation.readers --minutes 8`"
        )
    with safe_open(path, "pt") as file:
        readers = Readers(file.metadata().get("norm", "group"))
        readers.quality = json.loads(file.metadata()["quality"])
        readers.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    return readers.eval().requires_grad_(False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluation.readers", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=minutes, default=8.0, help="of processor time")
    parser.add_argument("--world", default="small", help="part of Toyland: small, demo or full")
    parser.add_argument("--pool", type=Path, help="learn from this rendered pool instead of rendering")
    parser.add_argument("--out", type=Path, default=DEFAULT)
    options = parser.parse_args(arguments)
    world = world_of(parser, options.world)
    readers = train_readers(world, options.minutes, options.pool)
    save_readers(readers, options.out, options.world)
    print(json.dumps(readers.quality))
    return 0


if __name__ == "__main__":
    sys.exit(main())
