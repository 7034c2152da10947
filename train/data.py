"""From frames of subjects to training batches.

One sample = a target frame x with its mask M and a caption that names only the class noun, a reference frame r ≠ x of
the same subject, segmented (R), and a positive frame r⁺ ≠ r, segmented. Sources of frames are in `train.sources`.

No state. Which subjects, frames, captions and drops a sample has is a function of (seed, index), and which indices a
step has is a function of (step, process): a resumed run sees what an unbroken one sees, and nobody counts.

    python -m train.data prepare --config toyland       render the pool and cache what is frozen, resumable
    python -m train.data prepare --source mvimgnet --input FOLDER --output FOLDER      pack photographs into shards
"""

from __future__ import annotations

import argparse
import random
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from train.config import ConfigError
from train.toyland.captions import article

if TYPE_CHECKING:
    from customcontrast.bases import BaseModel
    from train.config import AdapterTrainConfig

DROPS = ("none", "text", "subject", "both", "token", "visual")


@dataclass(frozen=True)
class Sample:
    """What one training example is made of. Pictures are uint8 (3, ·, ·); a cached source gives features instead."""

    subject: str  # stable id: two samples of one subject are never each other's negatives
    caption: str  # names the subject by its class noun alone; looks come from R
    noun: tuple[int, int]  # character span of that noun in the caption
    mask: Tensor  # M, bool (1, H, W)
    image: Tensor | None = None  # x, (3, H, W)
    reference: Tensor | None = None  # R, (3, C, C) on white
    positive: Tensor | None = None  # R⁺, (3, C, C) on white
    latent: Tensor | None = None  # cached: z_0 of x, (c, h, w)
    reference_states: tuple[Tensor, ...] | None = None  # cached: three CLIP layers of R, each (N, d_I)
    positive_states: tuple[Tensor, ...] | None = None  # cached: the same of R⁺
    embedding: Tensor | None = None  # cached: CLIP image embedding of R, (e,)
    layout: Tensor | None = None  # where the subject is and how it is seen (`Layout.numbers`), (NUMBERS,)
    drop: str = "none"  # one of DROPS


@dataclass(frozen=True)
class Batch:
    """B samples. The frozen features are None until `with_features`."""

    subjects: Tensor  # LongTensor (B,), a hash of the id, equal on every process
    captions: list[str]
    nouns: list[tuple[int, int]]
    masks: Tensor  # bool (B, 1, H, W)
    drop_text: Tensor  # bool (B,): the empty prompt instead of the caption
    drop_subject: Tensor  # bool (B,): no S*, and λ = 0
    images: Tensor | None = None  # uint8 (B, 3, H, W)
    references: Tensor | None = None  # uint8 (B, 3, C, C)
    positives: Tensor | None = None
    latents: Tensor | None = None  # z_0 (B, c, h, w)
    reference_states: tuple[Tensor, ...] | None = None  # 3 × (B, N, d_I)
    positive_states: tuple[Tensor, ...] | None = None
    embeddings: Tensor | None = None  # (B, e)
    layouts: Tensor | None = None  # (B, NUMBERS)
    drop_token: Tensor | None = None  # bool (B,): no S*, the visual branch alone; None = nowhere
    drop_visual: Tensor | None = None  # bool (B,): λ = 0, S* alone; None = nowhere

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device) -> Batch:
        """All tensors on `device`."""
        return replace(self, **{f.name: _move(getattr(self, f.name), device) for f in fields(self)})

    def select(self, rows: Sequence[int]) -> Batch:
        """These rows, in this order."""
        index = torch.as_tensor(list(rows), dtype=torch.long)
        return replace(self, **{f.name: _pick(getattr(self, f.name), index) for f in fields(self)})


class Source(Protocol):
    """Frames of subjects."""

    def __len__(self) -> int:
        """Number of distinct subjects."""

    def draw(self, index: int, rng: random.Random) -> Sample:
        """A sample of subject `index`; every choice comes from `rng`."""


class Samples(Dataset):
    """An endless, shuffled sequence of samples: item `index` depends on (source, seed, index) alone.

    Each run of len(source) indices is one epoch: a permutation of all subjects, so that a batch holds no subject
    twice (but where it straddles two epochs). captions "noun" leaves nothing of a caption but its class noun.
    """

    def __init__(
        self, source: Source, seed: int = 0, drop: float = 0.05, captions: str = "given", branch: float = 0.0
    ) -> None:
        if len(source) == 0:
            raise ValueError("source holds no subject; see train.sources for what a source needs")
        self.source, self.seed, self.drop, self.captions = source, seed, drop, captions
        self.branch = branch
        self._order: tuple[int, list[int]] = (-1, [])

    def __getitem__(self, index: int) -> Sample:
        epoch, place = divmod(index, len(self.source))
        if self._order[0] != epoch:
            order = list(range(len(self.source)))
            random.Random(f"{self.seed}-order-{epoch}").shuffle(order)
            self._order = (epoch, order)
        rng = random.Random(f"{self.seed}-sample-{index}")
        drop = draw_drop(rng, self.drop, self.branch)
        sample = replace(self.source.draw(self._order[1][place], rng), drop=drop)
        return noun_alone(sample) if self.captions == "noun" else sample


def noun_alone(sample: Sample) -> Sample:
    """The sample with "a bear" for its caption: what a picture without a caption can say of its subject."""
    noun = sample.caption[slice(*sample.noun)]
    text = article(noun)
    return replace(sample, caption=text, noun=(len(text) - len(noun), len(text)))


def draw_drop(rng: random.Random, p: float, branch: float = 0.0) -> str:
    """Drop the text, the subject, or both, each with probability p; S* or the visual branch, each with `branch`."""
    x = rng.random()
    if p > 0 and x < 3 * p:
        return DROPS[1 + int(x / p)]
    x -= 3 * p
    return DROPS[4 + int(x / branch)] if branch > 0 and x < 2 * branch else "none"


class StepSampler(Sampler[list[int]]):
    """Lists of sample indices, one for each micro-step from `start` on; process `rank` of `world` has its own.

    Micro-step k takes indices k·B·W … (k+1)·B·W − 1, of which each process has B in a row: W processes of B samples
    eat the same sequence as one of W·B.
    """

    def __init__(self, batch: int, start: int, stop: int, rank: int = 0, world: int = 1) -> None:
        self.batch, self.start, self.stop, self.rank, self.world = batch, start, stop, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for k in range(self.start, self.stop):
            first = (k * self.world + self.rank) * self.batch
            yield list(range(first, first + self.batch))

    def __len__(self) -> int:
        return max(0, self.stop - self.start)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples; a picture or a feature that one of them lacks is None for all."""

    def stack(name: str) -> Tensor | None:
        values = [getattr(s, name) for s in samples]
        return None if any(v is None for v in values) else torch.stack(values)

    def states(name: str) -> tuple[Tensor, ...] | None:
        values = [getattr(s, name) for s in samples]
        if any(v is None for v in values):
            return None
        return tuple(torch.stack(layer) for layer in zip(*values, strict=True))

    return Batch(
        subjects=torch.tensor([zlib.crc32(s.subject.encode()) for s in samples]),
        captions=[s.caption for s in samples],
        nouns=[s.noun for s in samples],
        masks=torch.stack([s.mask for s in samples]),
        drop_text=torch.tensor([s.drop in ("text", "both") for s in samples]),
        drop_subject=torch.tensor([s.drop in ("subject", "both") for s in samples]),
        images=stack("image"),
        references=stack("reference"),
        positives=stack("positive"),
        latents=stack("latent"),
        reference_states=states("reference_states"),
        positive_states=states("positive_states"),
        embeddings=stack("embedding"),
        layouts=stack("layout"),
        drop_token=torch.tensor([s.drop == "token" for s in samples]),
        drop_visual=torch.tensor([s.drop == "visual" for s in samples]),
    )


def make_loader(samples: Samples, sampler: StepSampler, workers: int = 0) -> DataLoader:
    """Batches in the sampler's order, whatever the number of workers."""
    return DataLoader(
        samples,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def in_order(loader: DataLoader) -> Iterator[Batch]:
    """The loader's batches. What goes wrong in a loader process ends in one sentence.

    Raises ConfigError that a process met, or ChildProcessError when one died.
    """
    try:
        yield from loader
    except ConfigError as error:  # from a loader process it comes with that one's traceback around it
        raise ConfigError(str(error).strip().splitlines()[-1].removeprefix("train.config.ConfigError: ")) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        why = str(error).strip().splitlines()[0]
        raise ChildProcessError(
            f"data.workers: a loader process died ('{why}'), often for want of memory; the same command goes on from "
            "the last checkpoint, with fewer processes by --set data.workers=N."
        ) from error


# ------------------------------------------------------------------------------------------- what is frozen


def to_pixels(pictures: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) → float in [−1, 1], as the VAE reads it."""
    return pictures.float() / 127.5 - 1.0


def clip_pixels(base: BaseModel, pictures: Tensor) -> Tensor:
    """Segmented subjects, uint8 (B, 3, C, C), through the base's own CLIP preprocessing → (B, 3, S, S)."""
    pixels = base.image_processor(images=list(pictures.cpu()), return_tensors="pt")["pixel_values"]
    return pixels.to(base.device, base.image_encoder.dtype)


@torch.no_grad()
def clip_features(base: BaseModel, pictures: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """uint8 (B, 3, C, C) → (three CLIP layers (B, N, d_I), image embeddings (B, e)), in one pass."""
    output = base.image_encoder(clip_pixels(base, pictures), output_hidden_states=True)
    return tuple(output.hidden_states[i] for i in base.image_layers), output.image_embeds


@torch.no_grad()
def latents_of(base: BaseModel, pictures: Tensor) -> Tensor:
    """z_0 of uint8 pictures (B, 3, H, W): the posterior's mean, scaled as the UNet reads it → (B, C, h, w), float32.

    The mean, not a sample: Toyland's autoencoder has no meaningful posterior width, Stable Diffusion's is negligible,
    and a cache then holds exactly what encoding again would give.
    """
    pixels = to_pixels(pictures).to(base.device, base.vae.dtype)
    z = base.vae.encode(pixels).latent_dist.mode().float()
    mean, std = (getattr(base.vae.config, key, None) for key in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:  # some autoencoders carry statistics per channel
        z = (z - z.new_tensor(mean)[:, None, None]) / z.new_tensor(std)[:, None, None]
    return z * base.vae.config.scaling_factor


@torch.no_grad()
def with_features(base: BaseModel, batch: Batch) -> Batch:
    """Fill in what the frozen VAE and CLIP say, where the source had no cache."""
    batch = batch.to(base.device)
    found: dict[str, object] = {}
    if batch.latents is None:
        found["latents"] = latents_of(base, batch.images)
    if batch.reference_states is None:
        found["reference_states"], found["embeddings"] = clip_features(base, batch.references)
        found["positive_states"], _ = clip_features(base, batch.positives)
    return replace(batch, **found)


def _move(value: object, device: torch.device) -> object:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        return tuple(v.to(device, non_blocking=True) for v in value)
    return value


def _pick(value: object, index: Tensor) -> object:
    if isinstance(value, Tensor):
        return value[index.to(value.device)]
    if isinstance(value, list):
        return [value[i] for i in index.tolist()]
    if isinstance(value, tuple):
        return tuple(v[index.to(v.device)] for v in value)
    return value


# --------------------------------------------------------------------------------------------------- command


def make_source(config: AdapterTrainConfig, base: BaseModel, progress: bool = True) -> Source:
    """The source that `config.data` names, prepared (pool: rendered and cached) if it is not yet."""
    from train import sources  # late: sources import Sample from here

    return sources.make(config.data, base, progress)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m train.data prepare`: a Toyland pool by --config, or photographs by --source, --input, --output."""
    parser = argparse.ArgumentParser(prog="python -m train.data", description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["prepare"])
    parser.add_argument("--source", choices=["toyland", "mvimgnet", "openimages", "folder"], default="toyland")
    parser.add_argument("--config", default="toyland", help="toyland: preset or YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. data.subjects=500")
    parser.add_argument("--input", type=Path, help="photographs: root of the data set")
    parser.add_argument("--output", type=Path, help="photographs: folder of the shards")
    parser.add_argument("--size", type=int, default=768, help="photographs: shorter side that is kept, px")
    parser.add_argument("--views", type=int, help="photographs: usable views a subject needs (openimages: 1, else 2)")
    parser.add_argument("--captions", metavar="BLIP", help="photographs: hub id or folder of a BLIP that words them")
    options = parser.parse_args(arguments)
    if options.source == "toyland":
        try:
            return _prepare_pool(options.config, options.set)
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            return 2
    if options.size < 32 or (options.views is not None and options.views < 1):
        parser.error(f"--size {options.size} --views {options.views}: give 32 px or more, and 1 view or more")
    if options.input is None or options.output is None:
        parser.error(f"--source {options.source} needs --input FOLDER and --output FOLDER")
    views = options.views or (1 if options.source == "openimages" else 2)
    try:
        return _prepare_shards(options.source, options.input, options.output, options.size, views, options.captions)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _prepare_pool(name: str, settings: list[str]) -> int:
    from customcontrast.bases import load_base
    from train.config import load_config

    config = load_config(name, settings)
    source = make_source(config, load_base(config.base, config.weights))
    print(f"{config.data.source}: {len(source)} subjects ready in {config.data.path}")
    return 0


def _prepare_shards(source: str, folder: Path, output: Path, size: int, views: int, captions: str | None) -> int:
    from train import photos, shards
    from train.captioning import Captioner

    subjects = photos.list_subjects(source, folder)
    captioner = Captioner.load(captions) if captions else None
    filters = shards.FilterConfig(views=views)
    tars = shards.write_shards(subjects, output, filters, shards.ShardConfig(size=size), captioner=captioner)
    left_out = list(shards.skipped_views(output))
    for row in left_out[:20]:
        print(f"left out: {row['subject']} {row['picture']}: {row['why']}")
    print(f"{source}: {len(subjects)} subjects listed, {len(tars)} shards in {output}, {len(left_out)} left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
