"""The fine-tuned stream: methods that learn a subject anew from its one reference picture.

All say "… noun S* …" with S* a few token embeddings, the same in all layers and at all t. Textual inversion learns
these embeddings and nothing else (Gal et al. 2022). DreamBooth keeps them fixed as the rare identifier and learns
low-rank updates of the UNet's attention projections (Ruiz et al. 2023, Hu et al. 2021; peft's LoRA). Custom Diffusion
learns them and the keys and values of the UNet's cross-attention, beside pictures of the class that the base itself
draws, so that the class stays what it was (Kumari et al. 2023).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from customcontrast.attention import install_processors, unet_forward
from customcontrast.base_model import BaseModel
from customcontrast.conditioning.prompt import TokenizedPrompt
from customcontrast.conditioning.text_context import TextContext, encode_contexts, encode_prompt, subject_state
from customcontrast.layout_channels import layout_channels
from customcontrast.multi_subject import silent_timesteps
from customcontrast.pipeline import CustomContrast
from customcontrast.sampling import make_scheduler, starting_noise, step_options, to_pictures
from customcontrast.segmentation import Segmentation
from train.adapter import losses
from train.adapter.step import Noise, without_subject
from train.data.frozen_features import latents_of

METHODS = ("textual-inversion", "dreambooth-lora", "custom-diffusion")
CROSS = (".attn2.to_k.", ".attn2.to_v.")  # what Custom Diffusion learns of the UNet
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]  # of every attention layer, self and cross


@dataclass(frozen=True)
class FineTuneConfig:
    """How one subject is learned."""

    method: str = METHODS[0]  # one of METHODS
    steps: int = 200  # optimiser steps on this subject
    batch: int = 4  # rows of a step: half the whole picture, half the subject on white
    class_pictures: int = 16  # that the base draws of the noun, for Custom Diffusion; as many rows of a step again
    learning_rate: float = 5e-3  # see `baselines.RATES`
    tokens: int = 4  # token embeddings of S*
    rank: int = 8  # of the LoRA updates

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"FineTuneConfig: method={self.method!r}; choose one of {', '.join(METHODS)}")
        if min(self.steps, self.batch, self.tokens, self.rank, self.class_pictures) < 1:
            raise ValueError(
                f"FineTuneConfig: {self} has a number below 1; steps, batch, tokens, rank and class_pictures are counts"
            )


@dataclass(frozen=True, eq=False)
class FineTuned:
    """One learned subject: the base to call (with what the method learned of its UNet) and S* for each encoder."""

    base: BaseModel
    tokens: list[Tensor]  # (1, 1, n, d_text) for each text encoder
    noun: str
    learned: tuple[str, ...]  # names of what was trained
    losses: list[float]  # L_diff of every step

    def context(self, prompts: Sequence[TokenizedPrompt]) -> TextContext:
        """The prompts with S* in those that have a place for it: one context for all layers."""
        rows = [tokens.expand(len(prompts), -1, -1, -1) for tokens in self.tokens]
        return encode_contexts(self.base, prompts, [rows])


def fine_tune(base: BaseModel, reference: Segmentation, noun: str, config: FineTuneConfig, seed: int = 0) -> FineTuned:
    """Learn the subject of `reference` by Eq. 1. `base` itself is not changed.

    A base that takes layouts is told none here: how the subject is turned in the reference is unknown.
    """
    prompts = [encode_prompt(base, f"a <{noun}>", [noun], config.tokens)] * config.batch
    pictures = pictures_of(reference, base.default_size)
    shown, others = latents_of(base, pictures), None
    generator = torch.Generator().manual_seed(seed)
    tokens = [t.to(base.device) for t in first_tokens(base, noun, config.tokens, generator)]
    learned: dict[str, Tensor] = {}
    if config.method == "dreambooth-lora":
        base = replace(base, unet=with_lora(base.unet, config.rank, seed))
    else:
        learned = {f"S* of text encoder {i}": t.requires_grad_() for i, t in enumerate(tokens)}
    if config.method == "custom-diffusion":
        others = latents_of(base, class_pictures(base, noun, config.class_pictures, seed))
        prompts += [without_subject(base, f"a {noun}", config.tokens)] * config.batch
        base = replace(base, unet=with_free_keys_and_values(base.unet))
    if config.method != "textual-inversion":
        learned |= {name: p for name, p in base.unet.named_parameters() if p.requires_grad}
    subject = FineTuned(base, tokens, noun, tuple(learned), [])
    install_processors(base.unet)
    scheduler = DDPMScheduler.from_config(base.scheduler.config)
    optimizer = torch.optim.AdamW(learned.values(), lr=config.learning_rate, weight_decay=0.0)
    for step in range(config.steps):
        z = shown[torch.arange(config.batch) % len(shown)]
        if others is not None:
            z = torch.cat([z, others[(step * config.batch + torch.arange(config.batch)) % len(others)]])
        noise = Noise.draw(z.shape, scheduler.config.num_train_timesteps, (seed, step), base.device)
        state = subject_state(base, subject.context(prompts), prompts, size=(z.shape[-2], z.shape[-1]))
        z_t = scheduler.add_noise(z, noise.epsilon, noise.t)
        prediction = unet_forward(base, z_t.to(base.dtype), noise.t, state)
        loss = losses.diffusion_loss(prediction, losses.diffusion_target(scheduler, z, noise.epsilon, noise.t))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{config.method}: L_diff is {loss.item()} at step {step}; lower learning_rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        subject.losses.append(loss.item())
    for t in learned.values():
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


def with_free_keys_and_values(unet: nn.Module) -> nn.Module:
    """A copy of `unet` of which the cross-attention's keys and values alone are trainable."""
    copied = copy.deepcopy(unet).requires_grad_(False)
    for name, parameter in copied.named_parameters():
        parameter.requires_grad_(any(part in name for part in CROSS))
    return copied


def class_pictures(base: BaseModel, noun: str, count: int, seed: int) -> Tensor:
    """What the base draws of "a noun" from text alone, uint8 (count, 3, side, side)."""
    drawn = CustomContrast(base).generate(f"a {noun}", num_images=count, seed=seed).images
    return torch.stack([pil_to_tensor(picture) for picture in drawn])


def pictures_of(reference: Segmentation, side: int) -> Tensor:
    """What there is to learn from: the whole picture and the subject on white, uint8 (2, 3, side, side)."""
    shown = [reference.image.convert("RGB"), reference.on_plain().convert("RGB")]
    return torch.stack([pil_to_tensor(p.resize((side, side), Image.Resampling.BICUBIC)) for p in shown])


@torch.no_grad()
def generate(
    subject: FineTuned, text: str, steps: int | None = None, guidance: float | None = None, seed: int = 0
) -> Image.Image:
    """A picture of `text` (class noun in <brackets>), with the pipeline's guidance and drawn layout."""
    base = subject.base
    install_processors(base.unet)
    guidance = base.default_guidance if guidance is None else guidance
    prompt = encode_prompt(base, text, [subject.noun], subject.tokens[0].shape[2])
    context, empty = subject.context([prompt]), encode_contexts(base, [encode_prompt(base, "")])
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
    layout = None if base.layout_prior is None else layout_channels([base.layout_prior.draw(text, seed)], side, side)
    for t in scheduler.timesteps:
        z_in = scheduler.scale_model_input(torch.cat([z, z]), t)
        without, with_prompt = unet_forward(base, z_in, t, state, layout).chunk(2)
        scale = 1.0 if t.item() in unguided else guidance
        z = scheduler.step(without + scale * (with_prompt - without), t, z, **options).prev_sample
    return to_pictures(base.decode(z))[0]
