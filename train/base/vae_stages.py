"""Stages “vae” and “decoder”: the autoencoder, then its decoder alone."""

from pathlib import Path

import torch
from torch import Tensor

from customcontrast.precision import autocast
from customcontrast.toyland.autoencoder import PatchAutoencoder
from train.base.base_config import PretrainConfig
from train.base.networks import (
    export_stage,
    make_vae,
)
from train.base.pictures import FIRST_SHARDS, Pictures
from train.base.stage import Stage
from train.data.frozen_features import to_pixels


def train_vae(config: PretrainConfig, run: Path, device: str, minutes: float | None, limit: int | None) -> bool:
    """Train the autoencoder by L1 and squared error of pixels, and L1 of their differences (edges).

    It starts from the principal components of 8 × 8 patches. Returns whether the stage is finished.
    """
    torch.manual_seed(0)
    model = make_vae(config)
    if not (run / "vae.safetensors").exists():
        model.start_from_components(
            to_pixels(Pictures(run / "pool", limit=FIRST_SHARDS).images[:2000]), config.vae.evenness
        )
    stage = Stage("vae", model.to(device), config.vae_stage, run, seed=2, device=device)
    return _run_vae(stage, config, run, minutes, limit)


def train_decoder(config: PretrainConfig, run: Path, device: str, minutes: float | None, limit: int | None) -> bool:
    """Continue training the decoder alone: the latents do not change, so the denoiser can be trained meanwhile."""
    model = export_stage("vae", make_vae(config), config, run).to(device)
    model.encoder.requires_grad_(False)
    stage = Stage("decoder", model, config.decoder_stage, run, seed=5, device=device)
    return _run_vae(stage, config, run, minutes, limit)


def _run_vae(
    stage: Stage[PatchAutoencoder], config: PretrainConfig, run: Path, minutes: float | None, limit: int | None
) -> bool:
    data = Pictures(run / "pool", limit=limit)
    model, device = stage.model, stage.device

    def loss_at(step: int, g: torch.Generator) -> tuple[Tensor, dict]:
        rows = torch.randint(len(data), (stage.config.batch,), generator=g)
        x = to_pixels(data.images[rows].to(device))
        loud = config.vae.grain * torch.randn(1, generator=g).abs().item()
        with autocast(device):
            z = model.encode(x).latent_dist.mode()
            grain = torch.randn(z.shape, generator=g).to(device)
            y = model.decode(z + loud * grain).sample.float()
        error = y - x
        dx, dy = error.diff(dim=-1).abs().mean(), error.diff(dim=-2).abs().mean()
        square = error.pow(2).mean()
        loss = error.abs().mean() + 2 * square + 0.5 * (dx + dy) + 1e-4 * z.float().pow(2).mean()
        return loss, {"psnr": (10 * torch.log10(4 / square)).item(), "std": z.float().std().item()}

    return stage.run(loss_at, minutes, on_save=data.refresh)
