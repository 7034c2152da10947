"""What the frozen VAE and image encoder say of a batch's pictures: latents and CLIP layers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import center_crop

from train.data.samples import Batch, required

if TYPE_CHECKING:
    from customcontrast.base_model import BaseModel

_MODES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers of the resamplings that CLIP uses


def to_pixels(pictures: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) → float in [−1, 1], as the VAE reads it."""
    return pictures.float() / 127.5 - 1.0


def clip_pixels(base: BaseModel, pictures: Tensor) -> Tensor:
    """Segmented subjects, uint8 (B, 3, C, C), as the base's own CLIPImageProcessor would make them → (B, 3, S, S).

    On the device that they are on: through the processor they would go to the CPU and back. Where C is S already, as
    `crop_size` has it, the values are the processor's up to float32's rounding (1e-6); where they are resized first,
    up to 2 grey levels of 255, because the processor rounds in between in another way.
    """
    config = base.image_processor
    side, crop = int(config.size.get("shortest_edge") or config.size["height"]), config.crop_size
    x = pictures.to(base.device)
    if config.do_resize and x.shape[-1] != side:
        x = F.interpolate(x.float(), (side, side), mode=_MODES[int(config.resample)], antialias=True)
        x = x.round().clamp(0, 255)
    if config.do_center_crop and (crop["height"], crop["width"]) != tuple(x.shape[-2:]):
        x = center_crop(x, [crop["height"], crop["width"]])
    x = x.float() * config.rescale_factor
    mean, std = (_constant(tuple(values), x.device) for values in (config.image_mean, config.image_std))
    return ((x - mean) / std).to(base.image_encoder.dtype)


@functools.lru_cache(maxsize=16)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value for each channel (C, 1, 1), sent to the device once."""
    return torch.tensor(values, device=device)[:, None, None]


@torch.no_grad()
def clip_features(
    base: BaseModel, pictures: Tensor, layers: Sequence[int] | None = None
) -> tuple[tuple[Tensor, ...], Tensor]:
    """uint8 (B, 3, C, C) → (three CLIP layers (B, N, d_I), image embeddings (B, e)), in one pass.

    layers: which; None = the base's.
    """
    output = base.image_encoder(clip_pixels(base, pictures), output_hidden_states=True)
    return tuple(output.hidden_states[i] for i in layers or base.image_layers), output.image_embeds


@torch.no_grad()
def latents_of(base: BaseModel, pictures: Tensor) -> Tensor:
    """z_0 of uint8 pictures (B, 3, H, W), by `BaseModel.encode` → (B, C, h, w), float32."""
    return base.encode(to_pixels(pictures))


@torch.no_grad()
def with_features(base: BaseModel, batch: Batch) -> Batch:
    """Fill in what the frozen VAE and CLIP say, where the source had no cache."""
    batch = batch.to(base.device)
    found: dict[str, Any] = {}
    if batch.latents is None and batch.images is not None:
        found["latents"] = latents_of(base, batch.images)
    if batch.reference_states is None:
        references = required(batch.references, "Batch.references")
        found["reference_states"], found["embeddings"] = clip_features(base, references)
        if batch.contrast is None:  # else the pairs have positives of their own
            found["positive_states"], _ = clip_features(base, required(batch.positives, "Batch.positives"))
    if batch.contrast is not None:
        found["contrast"] = with_features(base, batch.contrast)
    return replace(batch, **found)
