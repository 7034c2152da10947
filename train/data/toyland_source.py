"""Toyland rendered on the fly: scenes for one subject, and a source that renders three pictures a sample."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.data.augment import photographic, with_rim
from train.data.data_config import DataConfig
from train.data.references import segmented
from train.data.samples import Sample, as_pair, keys_of
from train.toyland import ToyScene, ToySubject, World, describe, render, sample_scene, sample_subject
from train.toyland.layouts import layout_of

PLAIN_SHARE = 0.85  # share of reference frames without a shape edit, and of those without an accessory


def target_scene(rng: random.Random, world: World, subject: ToySubject) -> ToyScene:
    """A scene for x: any background, style, shape, accessory and view."""
    return sample_scene(rng, world, subjects=(subject,))


def reference_scene(rng: random.Random, world: World, subject: ToySubject) -> ToyScene:
    """A scene for r or r⁺: a photograph in any place, light, pose and view, mostly in plain shape and bare."""
    scene = sample_scene(rng, world, subjects=(subject,), style=world.styles[0])
    plain: dict[str, Any] = {}
    if rng.random() < PLAIN_SHARE:
        plain["shape"] = world.shapes[0]
    if rng.random() < PLAIN_SHARE:
        plain["accessory"] = world.accessories[0]
    return replace(scene, placements=tuple(replace(p, **plain) for p in scene.placements))


def render_references(
    scenes: Sequence[ToyScene], render_size: int, crop: int, device: str = "cpu", seed: int | None = None
) -> Tensor:
    """Scenes → their segmented subjects R, uint8 (N, 3, crop, crop) on white, cut out along the exact masks.

    seed: distort them towards photographs (`train.data.augment`), which it decides; None: as rendered.
    """
    rendered = render(scenes, render_size, device=device)
    images, masks = rendered.images.cpu(), rendered.masks[:, :1].cpu()
    if seed is not None:
        g = torch.Generator().manual_seed(seed)
        images, masks = photographic(images, g), with_rim(masks, g)
    return torch.stack([segmented(image, mask[0], crop) for image, mask in zip(images, masks, strict=True)])


class ToylandSource:
    """Toyland rendered when it is asked for: three pictures a sample, never the same twice.

    heldout: of the subjects that no training sees.
    """

    def __init__(self, config: DataConfig, size: int, crop: int, heldout: bool = False) -> None:
        self.config, self.size, self.crop, self.heldout = config, size, crop, heldout
        self.world: World = World.named(config.world)

    def __len__(self) -> int:
        return self.config.subjects

    def subject_keys(self) -> np.ndarray:
        return keys_of(f"{self.config.world}-{i}" for i in range(len(self)))

    def pair(self, index: int, rng: random.Random) -> Sample:
        return as_pair(self.draw(index, rng))

    def draw(self, index: int, rng: random.Random) -> Sample:
        chosen = random.Random(f"adapter-{self.config.world}-{index}")
        subject = sample_subject(chosen, self.world, heldout=self.heldout)
        scene = target_scene(rng, self.world, subject)
        picture = render([scene], self.size)
        caption = describe(scene, rng, subject_words="noun")
        scenes = [reference_scene(rng, self.world, subject) for _ in range(2)]
        seed = rng.getrandbits(31) if self.config.photographs else None
        references = render_references(scenes, self.config.reference_size, self.crop, seed=seed)
        return Sample(
            subject=subject.id,
            caption=caption.text,
            noun=caption.nouns[0],
            mask=picture.masks[0],
            image=picture.images[0],
            reference=references[0],
            positive=references[1],
            layout=torch.tensor(layout_of(scene, picture.masks[0]).numbers()),
        )
