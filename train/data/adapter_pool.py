"""A pool of Toyland pictures for the adapter, rendered once into safetensors shards.

What the frozen base says of its pictures is cached beside them, so that a training step does not encode them again.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from customcontrast.errors import ConfigError
from customcontrast.tensor_files import write_tensors
from train.data.data_config import DataConfig
from train.data.frozen_features import clip_features, latents_of
from train.data.references import segmented
from train.data.samples import Sample, as_pair, keys_of
from train.data.toyland_source import reference_scene, render_references, target_scene
from train.toyland import ToyScene, World, attributes, describe, render, sample_subject
from train.toyland.layouts import layout_of

if TYPE_CHECKING:
    from customcontrast.base_model import BaseModel


SHARD = 32  # subjects in a shard of the pool


PHRASINGS = 4  # captions kept for each target frame


def pool_shard(index: int, config: DataConfig, size: int, crop: int) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Shard `index`: tensors of SHARD subjects and one JSON record for each; depends on its arguments alone.

    images uint8 (G, A, 3, H, W); masks uint8 (G, A, H, W/8), packed bits; references uint8 (G, F, 3, C, C).
    """
    world: World = World.named(config.world)
    first = index * SHARD
    count = min(SHARD, config.subjects - first)
    subjects = [sample_subject(random.Random(f"adapter-{config.world}-{first + g}"), world) for g in range(count)]
    targets: list[ToyScene] = []
    references: list[ToyScene] = []
    records: list[dict[str, Any]] = []
    for g, subject in enumerate(subjects):
        rng = random.Random(f"pool-{config.world}-{first + g}")
        mine = [target_scene(rng, world, subject) for _ in range(config.targets)]
        if not config.same_frame:
            references += [reference_scene(rng, world, subject) for _ in range(config.references)]
        targets += mine
        records.append({"subject": subject.id, "targets": [_record(scene, rng) for scene in mine]})
    pictures = render(targets, size)
    places = [layout_of(scene, masks).numbers() for scene, masks in zip(targets, pictures.masks, strict=True)]
    for g, record in enumerate(records):
        for k, target in enumerate(record["targets"]):
            target["layout"] = places[g * config.targets + k]
    bits = np.packbits(pictures.masks[:, 0].numpy(), axis=-1)
    if config.same_frame:
        pairs = zip(pictures.images, pictures.masks[:, 0], strict=True)
        crops = torch.stack([segmented(image, mask, crop) for image, mask in pairs])
    else:
        seed = index if config.photographs else None
        crops = render_references(references, config.reference_size, crop, seed=seed)
    tensors = {
        "images": pictures.images.unflatten(0, (count, config.targets)),
        "masks": torch.from_numpy(bits).unflatten(0, (count, config.targets)),
        "references": crops.unflatten(0, (count, config.references)),
    }
    return tensors, records


def _record(scene: ToyScene, rng: random.Random) -> dict[str, Any]:
    captions = [describe(scene, rng, subject_words="noun") for _ in range(PHRASINGS)]
    words = [{"text": c.text, "noun": list(c.nouns[0])} for c in captions]
    return {"captions": words, "attributes": attributes(scene)}


def pool_fingerprint(config: DataConfig, size: int, crop: int) -> dict[str, Any]:
    """What a pool was made with; another setting needs another folder."""
    names = ("world", "reference_size", "targets", "references")
    made = {name: getattr(config, name) for name in names} | {"size": size, "crop": crop}
    return made | {name: True for name in ("same_frame", "photographs") if getattr(config, name)}


def build_pool(config: DataConfig, size: int, crop: int, progress: bool = True) -> None:
    """Render the shards that are missing. A larger `data.subjects` later extends a pool.

    Raises ConfigError when the folder holds a pool made with other settings.
    """
    folder = Path(config.path)
    try:
        World.named(config.world)
    except ValueError as error:
        raise ConfigError(f"data.{error}") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"data.path {config.path!r} cannot be used ({error}); choose another folder") from error
    settings, made_with = pool_fingerprint(config, size, crop), folder / "pool.json"
    if made_with.exists() and _parsed(made_with.read_text(errors="replace")) != settings:
        raise ConfigError(
            f"data.path {config.path!r} holds a pool made with {made_with.read_text(errors='replace').strip()[:200]}, "
            f"not {json.dumps(settings)}; choose another data.path, or delete the folder"
        )
    made_with.write_text(json.dumps(settings))
    shards = range(-(-config.subjects // SHARD))
    missing = [i for i in shards if not _complete(_shard_path(folder, i), min(SHARD, config.subjects - i * SHARD))]
    for index in tqdm(missing, desc="render pool", unit="shard", disable=not progress or not missing):
        tensors, records = pool_shard(index, config, size, crop)
        _save(tensors, _shard_path(folder, index), {"records": json.dumps(records)})


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.safetensors"


def _complete(path: Path, subjects: int) -> bool:
    try:
        with safe_open(path, "pt") as file:
            whole = set(file.keys()) == {"images", "masks", "references"} and "records" in (file.metadata() or {})
            return whole and file.get_slice("images").get_shape()[0] >= subjects
    except (SafetensorError, OSError):  # missing or damaged: it is made again
        return False


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write beside, then rename: a kill never leaves half a shard."""
    write_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)


@dataclass(frozen=True)
class Cache:
    """Folders with what a frozen base says of a pool; their names hold a hash of the weights that say it."""

    latents: Path  # z_0 of the targets, by the VAE's encoder
    states: Path  # three CLIP layers and the embedding of the references, by the image encoder

    @classmethod
    def of(cls, folder: Path, base: BaseModel) -> Cache:
        """The cache of this very base. A new VAE decoder or UNet leaves it valid."""
        scale = repr((base.vae.config.scaling_factor, getattr(base.vae.config, "latents_mean", None)))
        vae = _digest(scale, *(m for m in (base.vae.encoder, getattr(base.vae, "quant_conv", None)) if m is not None))
        clip = _digest(repr(base.image_layers), base.image_encoder)
        return cls(folder / f"latents-{vae}", folder / f"clip-{clip}")


def _digest(text: str, *models: nn.Module) -> str:
    digest = hashlib.sha256(text.encode())
    for model in models:
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.no_grad()
def cache_features(cache: Cache, config: DataConfig, base: BaseModel, progress: bool = True, chunk: int = 64) -> None:
    """Fill in the shards that `cache` lacks, 16-bit."""
    paths = [_shard_path(Path(config.path), i) for i in range(-(-config.subjects // SHARD))]
    for out, encode in ((cache.latents, _encode_latents), (cache.states, _encode_states)):
        out.mkdir(exist_ok=True)
        missing = [path for path in paths if not _fresh(out / path.name, path)]
        for path in tqdm(missing, desc=f"cache {out.name}", unit="shard", disable=not progress or not missing):
            tensors = encode(base, load_file(path), chunk)
            _save({name: tensor.half() for name, tensor in tensors.items()}, out / path.name)


def _encode_latents(base: BaseModel, shard: dict[str, Tensor], chunk: int) -> dict[str, Tensor]:
    images = shard["images"]
    parts = images.flatten(0, 1).split(chunk)
    latents = torch.cat([latents_of(base, part).cpu() for part in parts])
    return {"latents": latents.unflatten(0, images.shape[:2])}


def _encode_states(base: BaseModel, shard: dict[str, Tensor], chunk: int) -> dict[str, Tensor]:
    references = shard["references"]
    passes = [clip_features(base, part) for part in references.flatten(0, 1).split(chunk)]
    tensors = {"embeddings": torch.cat([embeddings.cpu() for _, embeddings in passes])}
    for i in range(len(base.image_layers)):
        tensors[f"states_{i}"] = torch.cat([states[i].cpu() for states, _ in passes])
    return {name: tensor.unflatten(0, references.shape[:2]) for name, tensor in tensors.items()}


def _fresh(cached: Path, shard: Path) -> bool:
    try:
        with safe_open(cached, "pt") as file:
            whole = {"latents"} == set(file.keys()) or "embeddings" in file.keys()  # noqa: SIM118 - not a dict
        return whole and cached.stat().st_mtime >= shard.stat().st_mtime
    except (SafetensorError, OSError):  # missing or damaged: it is made again
        return False


class PoolSource:
    """Shards of a pool in memory, with cached features where there is a cache."""

    def __init__(self, folder: Path, config: DataConfig, cache: Cache | None = None) -> None:
        self.config = config
        count = -(-config.subjects // SHARD)
        paths = [_shard_path(folder, i) for i in range(count)]
        self.shards = [load_file(path) for path in paths]
        self.records = [record for path in paths for record in read_records(path)][: config.subjects]
        self.features: list[dict[str, Tensor]] | None = None
        if cache is not None:
            both = ((load_file(cache.latents / path.name), load_file(cache.states / path.name)) for path in paths)
            self.features = [latents | states for latents, states in both]

    def __len__(self) -> int:
        return len(self.records)

    def subject_keys(self) -> np.ndarray:
        return keys_of(record["subject"] for record in self.records)

    def pair(self, index: int, rng: random.Random) -> Sample:
        return as_pair(self.draw(index, rng))

    def draw(self, index: int, rng: random.Random) -> Sample:
        target = rng.randrange(self.config.targets)
        reference, positive = rng.sample(range(self.config.references), 2)
        if self.config.same_frame:
            target = reference
        return self.sample(index, target, reference, positive, rng.randrange(PHRASINGS))

    def sample(self, index: int, target: int, reference: int, positive: int, phrasing: int = 0) -> Sample:
        """The sample of these very frames."""
        shard, row = divmod(index, SHARD)
        tensors, record = self.shards[shard], self.records[index]
        caption = record["targets"][target]["captions"][phrasing]
        bits = np.unpackbits(tensors["masks"][row, target].numpy(), axis=-1)
        size = tensors["images"].shape[-1]
        sample = Sample(
            subject=record["subject"],
            caption=caption["text"],
            noun=tuple(caption["noun"]),
            mask=torch.from_numpy(bits[None, :, :size].astype(bool)),
            image=tensors["images"][row, target],
            reference=tensors["references"][row, reference],
            positive=tensors["references"][row, positive],
            layout=torch.tensor(layout) if (layout := record["targets"][target].get("layout")) else None,
        )
        if self.features is None:
            return sample
        cached = self.features[shard]
        layers = sorted(name for name in cached if name.startswith("states_"))
        return replace(
            sample,
            latent=cached["latents"][row, target].float(),
            reference_states=tuple(cached[name][row, reference].float() for name in layers),
            positive_states=tuple(cached[name][row, positive].float() for name in layers),
            embedding=cached["embeddings"][row, reference].float(),
        )


def read_records(path: Path) -> list[dict[str, Any]]:
    """The JSON records of a shard's subjects."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["records"])
