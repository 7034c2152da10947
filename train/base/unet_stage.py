"""Stage “unet”: the latent denoiser."""

from pathlib import Path

import torch
from torch import Tensor

from customcontrast.layout_channels import channels
from customcontrast.precision import autocast
from train.base.base_config import PretrainConfig
from train.base.latents import encode_pool, latent_scale, latents_path, read_latents
from train.base.networks import (
    clip_trainer,
    denoising_loss,
    export_stage,
    lateness,
    make_scheduler,
    make_unet,
    noise_weight,
    text_mask,
    tokenize,
)
from train.base.pictures import FIRST_SHARDS, Pictures
from train.base.stage import Stage, start_from


def train_unet(config: PretrainConfig, run: Path, device: str, minutes: float | None, limit: int | None) -> bool:
    """Train the denoiser by Eq. 1 with the v-target and min-SNR weights.

    Latents are encoded once, captions in each step by the frozen text tower. Returns whether the stage is finished.
    """
    trainer, tokenizer = clip_trainer(config, run)
    encode_pool(config, run, device, None, FIRST_SHARDS)  # `latents` may be encoding the others meanwhile
    data = Pictures(
        run / "pool", tokenizer, limit, ready=lambda shard: latents_path(shard).exists(), plain=config.unet.plain
    )
    text = export_stage("clip", trainer, config, run)
    text = text.clip.text_model.to(device).eval().requires_grad_(False)
    latents = read_latents(data.order)
    scale = latent_scale(run, latents)
    torch.manual_seed(0)
    model = make_unet(config)
    if (run / "unet_start.safetensors").exists() and not (run / "unet.safetensors").exists():
        start_from(model, run / "unet_start.safetensors")
    stage = Stage("unet", model.to(device), config.unet_stage, run, seed=3, device=device)
    noise = make_scheduler()
    empty = tokenize(tokenizer, [""])[0]
    alphas = noise.alphas_cumprod.to(device)

    def refresh() -> None:
        nonlocal latents
        known = len(data.order)
        data.refresh()
        if len(data.order) > known:
            latents = torch.cat([latents, read_latents(data.order[known:])])

    def loss_at(step: int, g: torch.Generator) -> tuple[Tensor, dict]:
        batch = config.unet_stage.batch
        rows = torch.randint(len(data), (batch,), generator=g)
        mirrored = torch.randint(latents.shape[1], (batch,), generator=g)
        phrasing = torch.randint(data.ids.shape[1], (batch,), generator=g)
        ids = data.ids[rows, phrasing].long()
        ids[torch.rand(batch, generator=g) < config.unet.drop_caption] = empty
        z = latents[rows, mirrored].float() * scale
        eps = torch.randn(z.shape, generator=g)
        t = torch.randint(noise.config.num_train_timesteps, (batch,), generator=g)
        layout = None
        if config.unet.layout:
            known = torch.rand(batch, generator=g) >= config.unet.drop_layout
            chosen = torch.where(mirrored.bool()[:, None], data.mirrored_layouts[rows], data.layouts[rows])
            layout = channels(chosen * known[:, None], *z.shape[-2:]).to(device)
        mask = text_mask(ids, tokenizer.eos_token_id) if config.unet.mask_padding else None
        if mask is not None:  # no longer than the batch's longest prompt
            longest = int(mask.sum(1).max())
            ids, mask = ids[:, :longest], mask[:, :longest].to(device)
        z, eps, t, ids = (x.to(device) for x in (z, eps, t, ids))
        with torch.no_grad(), autocast(device):
            context = text(ids).last_hidden_state
        error = denoising_loss(model, noise, z, eps, t, context, mask, layout)
        snr = alphas[t] / (1 - alphas[t])
        late = lateness(step / config.unet_stage.steps, config.unet.finish)
        loss = (error * noise_weight(snr, config.unet.snr_gamma, late)).mean() * 4
        return loss, {"v": error.mean().item()}

    return stage.run(loss_at, minutes, on_save=refresh)
