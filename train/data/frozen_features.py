"""What the frozen VAE and image encoder say of a batch's pictures: latents and CLIP layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from train.data.samples import Batch

if TYPE_CHECKING:
    from customcontrast.base_model import BaseModel


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
