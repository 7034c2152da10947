"""The fine-tuned stream: textual inversion and DreamBooth with LoRA, each on one subject's reference picture.

Both say "… noun S* …" with S* a few token embeddings, the same in all layers and at all t. Textual inversion learns
these embeddings and nothing else (Gal et al. 2022). DreamBooth keeps them fixed as the rare identifier and learns
low-rank updates of the UNet's attention projections (Ruiz et al. 2023, Hu et al. 2021; peft's LoRA).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn

from customcontrast.attention import install_processors, unet_forward
from customcontrast.base_model import BaseModel
from customcontrast.conditioning.prompt import TokenizedPrompt
from customcontrast.conditioning.text_context import TextContext, encode_contexts, encode_prompt, subject_state
from customcontrast.multi_subject import silent_timesteps
from customcontrast.sampling import make_scheduler, starting_noise, step_options, to_pictures
from customcontrast.segmentation import Segmentation
from train.adapter import losses
from train.adapter.step import Noise
from train.data.frozen_features import latents_of

METHODS = ("textual-inversion", "dreambooth-lora")
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]  # of every attention layer, self and cross


@dataclass(frozen=True)
class FineTuneConfig:
    """How one subject is learned."""

    method: str = METHODS[0]  # one of METHODS
    steps: int = 200  # optimiser steps on this subject
    batch: int = 4  # rows of a step: half the whole picture, half the subject on white
    learning_rate: float = 5e-3  # textual inversion wants about 5e-3, LoRA about 1e-3
    tokens: int = 4  # token embeddings of S*
    rank: int = 8  # of the LoRA updates

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"FineTuneConfig: method={self.method!r}; choose one of {', '.join(METHODS)}")
        if min(self.steps, self.batch, self.tokens, self.rank) < 1:
            raise ValueError(f"FineTuneConfig: {self} has a number below 1; steps, batch, tokens and rank are counts")


@dataclass(frozen=True, eq=False)
class FineTuned:
    """One learned subject: the base to call (with LoRA where the method has it) and S* for each text encoder."""

    base: BaseModel
    tokens: list[Tensor]  # (1, 1, n, d_text) for each text encoder
    noun: str
    losses: list[float]  # L_diff of every step

    def context(self, prompt: TokenizedPrompt) -> TextContext:
        """The prompt with S* in it: one context for all layers."""
        return encode_contexts(self.base, [prompt], [self.tokens])


def fine_tune(base: BaseModel, reference: Segmentation, noun: str, config: FineTuneConfig, seed: int = 0) -> FineTuned:
    """Learn the subject of `reference` by Eq. 1. `base` itself is not changed."""
    prompt = encode_prompt(base, f"a <{noun}>", [noun], config.tokens)
    generator = torch.Generator().manual_seed(seed)
    tokens = [t.to(base.device) for t in first_tokens(base, noun, config.tokens, generator)]
    if config.method == METHODS[0]:
        trained: list[nn.Parameter | Tensor] = [t.requires_grad_() for t in tokens]
    else:
        base = replace(base, unet=with_lora(base.unet, config.rank, seed))
        trained = [p for p in base.unet.parameters() if p.requires_grad]
    subject = FineTuned(base, tokens, noun, [])
    install_processors(base.unet)
    scheduler = DDPMScheduler.from_config(base.scheduler.config)
    z_0 = latents_of(base, pictures_of(reference, base.default_size))
    z = z_0[torch.arange(config.batch) % len(z_0)]
    size = (z.shape[-2], z.shape[-1])
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
    for step in range(config.steps):
        noise = Noise.draw(z.shape, scheduler.config.num_train_timesteps, (seed, step), base.device)
        one = subject.context(prompt)
        pooled = None if one.pooled is None else one.pooled.expand(config.batch, -1)
        context = TextContext(one.hidden.expand(config.batch, -1, -1, -1), pooled)
        state = subject_state(base, context, [prompt] * config.batch, size=size)
        z_t = scheduler.add_noise(z, noise.epsilon, noise.t)
        prediction = unet_forward(base, z_t.to(base.dtype), noise.t, state)
        loss = losses.diffusion_loss(prediction, losses.diffusion_target(scheduler, z, noise.epsilon, noise.t))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{config.method}: L_diff is {loss.item()} at step {step}; lower learning_rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        subject.losses.append(loss.item())
    for t in (*tokens, *base.unet.parameters()):
        t.requires_grad_(False)
    return subject


def first_tokens(base: BaseModel, noun: str, count: int, generator: torch.Generator) -> list[Tensor]:
    """S* before training: the noun's mean embedding and as much noise again, (1, 1, n, d_text) a text encoder."""
    found = []
    for tokenizer, encoder in zip(base.tokenizers, base.text_encoders, strict=True):
        table = _embedding_table(encoder).detach().float().cpu()
        ids = tokenizer(noun, add_special_tokens=False).input_ids
        noise = torch.randn(count, table.shape[1], generator=generator) * table.std()
        found.append((table[ids].mean(0) + noise)[None, None])
    return found


def _embedding_table(text_encoder: Any) -> Tensor:
    return text_encoder.get_input_embeddings().weight


def with_lora(unet: nn.Module, rank: int, seed: int) -> nn.Module:
    """A copy of `unet` with peft's LoRA in its attention layers; only that is trainable, and at first it adds 0."""
    from peft import LoraConfig, inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=PROJECTIONS)
        return inject_adapter_in_model(lora, copy.deepcopy(unet))


def pictures_of(reference: Segmentation, side: int) -> Tensor:
    """What there is to learn from: the whole picture and the subject on white, uint8 (2, 3, side, side)."""
    shown = [reference.image.convert("RGB"), reference.on_plain().convert("RGB")]
    arrays = [np.asarray(p.resize((side, side), Image.Resampling.BICUBIC)) for p in shown]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def generate(
    subject: FineTuned, text: str, steps: int | None = None, guidance: float | None = None, seed: int = 0
) -> Image.Image:
    """A picture of `text` (class noun in <brackets>), with classifier-free guidance as in the pipeline."""
    base = subject.base
    guidance = base.default_guidance if guidance is None else guidance
    prompt = encode_prompt(base, text, [subject.noun], subject.tokens[0].shape[2])
    context, empty = subject.context(prompt), encode_contexts(base, [encode_prompt(base, "")])
    if base.zero_empty_prompt:
        pooled = None if empty.pooled is None else torch.zeros_like(empty.pooled)
        empty = TextContext(torch.zeros_like(empty.hidden), pooled)
    scheduler = make_scheduler(base.scheduler)
    scheduler.set_timesteps(steps or base.default_steps, device=base.device)
    side = base.default_size // base.scale_factor
    generators = [torch.Generator().manual_seed(seed)]
    z = starting_noise(generators, base.latent_channels, (side, side), base.device, base.dtype)
    z = z * scheduler.init_noise_sigma
    options = step_options(scheduler, generators)
    unguided = silent_timesteps(scheduler.timesteps, 0.0, base.default_guidance_end)
    state = subject_state(base, context, [prompt], size=(side, side), unconditional=empty)
    for t in scheduler.timesteps:
        without, with_prompt = unet_forward(base, scheduler.scale_model_input(torch.cat([z, z]), t), t, state).chunk(2)
        scale = 1.0 if t.item() in unguided else guidance
        z = scheduler.step(without + scale * (with_prompt - without), t, z, **options).prev_sample
    return to_pictures(base.decode(z))[0]


def trained_parameters(subject: FineTuned, config: FineTuneConfig) -> Sequence[str]:
    """Names of what the method learns, for the report."""
    if config.method == METHODS[0]:
        return [f"S* of text encoder {i}" for i in range(len(subject.tokens))]
    return [name for name, _ in subject.base.unet.named_parameters() if "lora_" in name]
