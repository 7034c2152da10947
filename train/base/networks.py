"""The parts of Toyland's embedded base model at a preset's size, and their averaged weights after a stage."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from customcontrast.encoder.image_features import evenly_spaced
from customcontrast.layout import LAYOUT_CHANNELS
from customcontrast.precision import autocast
from customcontrast.toyland.autoencoder import PatchAutoencoder
from train.base.base_config import PretrainConfig
from train.base.stage import Model, Stage
from train.base.tokenizer import load_or_build
from train.toyland import World, describe, sample_scene, vocabulary
from train.toyland.subjects import BUILD

BUILD_VALUES = {name: [str(i) for i in range(count)] for name, count in BUILD.items()}
CLIP_MEAN, CLIP_STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids (N, max_tokens) of N texts, padded with the end token and truncated."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def clip_pixels(images: Tensor, side: int | None = None) -> Tensor:
    """uint8 (B,3,H,W) to CLIP's normalised pixels, (B,3,side,side); side None: as they are."""
    if side is not None and images.shape[-1] != side:
        images = F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)
    mean = torch.tensor(CLIP_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std


def clip_side(config: PretrainConfig) -> int:
    """Side of what the image tower sees, px."""
    return config.clip.image_size or config.pool.size


def text_mask(ids: Tensor, end: int) -> Tensor:
    """Which tokens of ids (B, N) are the prompt's own, (B, N) bool: all up to the first end token, itself included."""
    return (ids == end).cumsum(1) - (ids == end).long() == 0


def make_clip(config: PretrainConfig, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Both towers at the preset's size, with random weights."""
    c = config.clip
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    both = {
        "hidden_size": c.width, "intermediate_size": 4 * c.width, "num_attention_heads": c.heads,
        "projection_dim": c.projection,
    }  # fmt: skip
    text = both | special | {
        "num_hidden_layers": c.text_layers, "max_position_embeddings": c.max_tokens, "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = both | {
        "num_hidden_layers": c.vision_layers, "image_size": clip_side(config), "patch_size": c.patch,
    }  # fmt: skip
    model_config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=c.projection)
    return CLIPModel._from_config(model_config, attn_implementation="eager")


class ClipTrainer(nn.Module):
    """CLIP with linear attribute heads on both pooled outputs.

    In a world of few words the heads teach the fine attributes (pattern, second colour) that separate too few of a
    batch's pairs. They are dropped on export. labels: {attribute: its values}; width: of both towers.

    seen: more of them, of pictures alone: what no caption says. depths: hidden states of the image tower whose mean
    patch has heads of its own, so that patches tell what the pooled output tells: adapters read them.
    """

    def __init__(
        self,
        clip: CLIPModel,
        labels: dict[str, list[str]],
        width: int,
        seen: dict[str, list[str]] | None = None,
        depths: tuple[int, ...] = (),
    ):
        super().__init__()
        self.clip, self.labels, self.depths = clip, labels | (seen or {}), depths
        self.image_heads = _heads(self.labels, width)
        self.text_heads = _heads(labels, width)
        self.patch_heads = cast("Sequence[nn.ModuleDict]", nn.ModuleList(_heads(self.labels, width) for _ in depths))

    def forward(self, pixels: Tensor, ids: Tensor, targets: dict[str, Tensor], paired: Tensor) -> tuple[Tensor, dict]:
        """pixels (B,3,S,S); ids (B,N); targets {label: (B,) index or -100}; paired (B,) bool: rows with a caption.

        Returns (contrastive + attribute loss, terms).
        """
        tower = self.clip.vision_model(pixels, output_hidden_states=bool(self.depths))
        vision = tower.pooler_output
        patches = [tower.hidden_states[depth][:, 1:].mean(dim=1) for depth in self.depths]
        text = self.clip.text_model(ids[paired]).pooler_output
        v = F.normalize(self.clip.visual_projection(vision[paired]).float(), dim=-1)
        u = F.normalize(self.clip.text_projection(text).float(), dim=-1)
        logits = self.clip.logit_scale.exp().clamp(max=100) * v @ u.T
        own = torch.arange(len(v), device=v.device)
        contrast = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        seen, read, finer = [], [], []
        for name, target in targets.items():
            seen.append(_labelled(self.image_heads[name](vision).float(), target))
            if name in self.text_heads:
                read.append(_labelled(self.text_heads[name](text).float(), target[paired]))
            finer += [_labelled(h[name](x).float(), target) for h, x in zip(self.patch_heads, patches, strict=True)]
        patched = torch.stack(finer).mean() if finer else contrast.new_zeros(())
        attributes = torch.stack(seen).mean() + torch.stack(read).mean() + patched
        hits = (logits.argmax(1) == own).float().mean()
        terms = {
            "contrast": contrast,
            "seen": torch.stack(seen).mean(),
            "read": torch.stack(read).mean(),
            "patches": patched,
            "top1": hits,
        }
        return contrast + attributes, {k: x.item() for k, x in terms.items()}


def _heads(labels: dict[str, list[str]], width: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in labels.items()})


def _labelled(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of the rows whose target is not -100; 0 where none is labelled, in place of nan."""
    total = F.cross_entropy(logits, target, reduction="sum")
    return total / (target != -100).sum().clamp(min=1)


def label_values(world: World) -> dict[str, list[str]]:
    """The classes of each attribute head."""
    colors = sorted(set(world.colors) | set(world.accessory_colors))
    return {
        "background": list(world.backgrounds), "style": list(world.styles), "species": list(world.species),
        "color_1": colors, "color_2": colors, "pattern": list(world.patterns), "shape": list(world.shapes),
        "accessory": list(world.accessories), "accessory_color": colors,
    }  # fmt: skip


def clip_trainer(config: PretrainConfig, run: Path, stage: str = "clip") -> tuple[ClipTrainer, CLIPTokenizer]:
    """An untrained ClipTrainer of this preset and stage, “clip” or “image”, and the run's tokenizer."""
    tokenizer, c = make_tokenizer(config, run), config.clip
    values = label_values(World.named(config.pool.world))
    torch.manual_seed(0)
    clip = make_clip(config, tokenizer)
    if stage != "image" or not c.details:
        return ClipTrainer(clip, values, c.width), tokenizer
    return ClipTrainer(clip, values, c.width, BUILD_VALUES, evenly_spaced(c.vision_layers)), tokenizer


def make_vae(config: PretrainConfig) -> PatchAutoencoder:
    """The autoencoder at the preset's size, with random weights."""
    c = config.vae
    return PatchAutoencoder(
        channels=c.channels, layers=c.layers, latent_channels=c.latents, groups=c.groups,
        sample_size=config.pool.size, block_out_channels=(c.channels[0], *c.channels),
    )  # fmt: skip


def make_unet(config: PretrainConfig) -> UNet2DConditionModel:
    """The denoiser at the preset's size, with random weights; cross-attention at every level."""
    c = config.unet
    levels = len(c.channels)
    unet = UNet2DConditionModel(
        sample_size=config.pool.size // 2 ** len(config.vae.channels),
        in_channels=config.vae.latents + (LAYOUT_CHANNELS if c.layout else 0),
        out_channels=config.vae.latents, layers_per_block=c.layers, block_out_channels=c.channels,
        down_block_types=("CrossAttnDownBlock2D",) * levels, up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=config.clip.width, attention_head_dim=c.heads, norm_num_groups=c.groups,
    )  # fmt: skip
    unet.set_attn_processor(AttnProcessor())  # on a CPU its backward is faster than the fused kernel's
    return unet


def lateness(done: float, finish: float) -> float:
    """Progress, 0..1, through the last `finish` share of a training.

    done: share of the whole training that has passed, 0..1. 1 where finish is 0.
    """
    return 1.0 if finish <= 0 else min(1.0, max(0.0, (done - 1 + finish) / finish))


def noise_weight(snr: Tensor, gamma: float, late: float | Tensor = 1.0) -> Tensor:
    """Weight of the v-error at these signal-to-noise ratios.

    late 1: min(SNR, γ) / (SNR + 1), Hang et al. 2023. late 0: min(SNR + 1, γ) / (SNR + 1), which gives high noise,
    where kind, colour and shape are decided, its full weight. In between, a mixture (see `lateness`).
    """
    return torch.lerp((snr + 1).clamp(max=gamma) / (snr + 1), snr.clamp(max=gamma) / (snr + 1), late)


def denoising_loss(
    model: nn.Module,
    noise: DDPMScheduler,
    z: Tensor,
    eps: Tensor,
    t: Tensor,
    context: Tensor,
    mask: Tensor | None = None,
    layout: Tensor | None = None,
) -> Tensor:
    """Eq. 1 with the v-target: mean squared error of each sample (B,).

    z latents and eps noise (B,C,h,w), t (B,), context (B,N,d), mask (B,N) bool: tokens that cross-attention may see,
    layout (B,13,h,w): channels concatenated to the noisy latents.
    """
    noisy = noise.add_noise(z, eps, t)
    if layout is not None:
        noisy = torch.cat([noisy, layout.to(noisy.dtype)], 1)
    with autocast(z.device.type):
        out = model(noisy, t, context, encoder_attention_mask=mask, return_dict=False)[0]
    return (out.float() - noise.get_velocity(z, eps, t)).pow(2).mean((1, 2, 3))


def make_scheduler() -> DDPMScheduler:
    """The noise schedule of training: v-prediction on SD's scaled-linear betas."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        prediction_type="v_prediction",
    )


def make_sampler() -> DPMSolverMultistepScheduler:
    """The scheduler for generation: the SDE variant of DPM-Solver++, whose noise in every step improves shapes."""
    return DPMSolverMultistepScheduler.from_config(
        make_scheduler().config, algorithm_type="sde-dpmsolver++", timestep_spacing="trailing", steps_offset=1
    )


def make_tokenizer(config: PretrainConfig, run: Path) -> CLIPTokenizer:
    """The run's tokenizer, built from captions of its world and all of Toyland's words, each of which is one token."""
    rng = random.Random("tokenizer")
    world = World.named(config.pool.world)
    texts = [describe(sample_scene(rng, world), rng).text for _ in range(20000 if config.pool.size > 32 else 500)]
    words = sorted(vocabulary()) * 40
    return load_or_build(run / "tokenizer", texts + words, config.clip.vocabulary, config.clip.max_tokens)


def export_stage(name: str, model: Model, config: PretrainConfig, run: Path) -> Model:
    """`model` with the averaged weights of stage `name`.

    Raises FileNotFoundError when that stage has no checkpoint yet.
    """
    if not (run / f"{name}.safetensors").exists():
        raise FileNotFoundError(f"stage {name!r} has no checkpoint in {run}; run `python -m train.base {name}` first")
    return Stage(name, model, getattr(config, f"{name}_stage"), run).load_ema()
