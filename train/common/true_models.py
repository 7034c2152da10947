"""SD-1.5 and SDXL at their true size, without their weights: the published architectures, on any device.

On the meta device a model has shapes and types but no memory: for counting. On a CPU or GPU it gets random weights:
for time, memory and the whole path, not for pictures worth looking at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import transformers
from diffusers import AutoencoderKL, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

from customcontrast.adapter import Adapter
from customcontrast.attention import install_processors
from customcontrast.base_model import BaseModel
from customcontrast.config import EncoderConfig
from customcontrast.ip_adapter import IPAdapterConfig
from customcontrast.specs import BASES
from customcontrast.warm_start import WarmAdapter

M = TypeVar("M", bound=nn.Module)

UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
TEXTS: dict[str, tuple[tuple[Any, dict[str, Any]], ...]] = {
    "sd15": ((transformers.CLIPTextModel, CLIP_L | {"projection_dim": 768}),),
    "sdxl": (
        (transformers.CLIPTextModel, CLIP_L | {"projection_dim": 768}),
        (transformers.CLIPTextModelWithProjection, CLIP_BIG_G | {"projection_dim": 1280, "hidden_act": "gelu"}),
    ),
}
VIT_L_14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}
VIT_H_14 = VIT_L_14 | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "projection_dim": 1024}
VIT_BIG_G_14 = VIT_L_14 | {
    "hidden_size": 1664,
    "intermediate_size": 8192,
    "num_hidden_layers": 48,
    "projection_dim": 1280,
}
VISION = {c["hidden_size"]: c for c in (VIT_L_14, VIT_H_14 | {"hidden_act": "gelu"}, VIT_BIG_G_14)}  # by their width
PLUS = {  # the published IP-Adapter-plus files, by base: image width 1280, 16 tokens, 4 blocks
    "sd15": IPAdapterConfig("plus", 1280, 768, 16, tokens=16, dim=768, depth=4, heads=12),
    "sdxl": IPAdapterConfig("plus", 1280, 2048, 70, tokens=16, dim=1280, depth=4, heads=20),
}
PUBLISHED = {  # sizes of what `init` can name: (name, base)
    **{(name, base): sizes for base, sizes in PLUS.items() for name in ("ip-adapter-plus", "ip-adapter-plus-face")},
    ("ip-adapter-full-face", "sd15"): IPAdapterConfig("full", 1280, 768, 16),
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
SCALING = {"sd15": 0.18215, "sdxl": 0.13025}  # of the latents
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
VOCABULARY, LENGTH = 49_408, 77  # CLIP's text tokens: how many there are, and how many a prompt has
WORDS = "a an the of bear cat dog toy photo painting on in at with red blue beach forest city snow wearing hat and"
PERIOD = 1_000_003  # a prime: random weights repeat after so many, and no two rows of a matrix are alike


def word_tokens(words: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges of a byte-pair encoding that knows these words: bytes, then their letters joined one by one."""
    letters = sorted(ByteLevel.alphabet())
    tokens, merges = letters + [letter + "</w>" for letter in letters], []
    for word in words.split():
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
            tokens.append(parts[0])
    merges.append(("!", "!</w>"))  # one token, as in CLIP's own vocabulary
    return [*dict.fromkeys(tokens), "!!</w>"], list(dict.fromkeys(merges))


def tokenizer(pad: str = "<|endoftext|>") -> transformers.CLIPTokenizer:
    """A CLIP tokenizer of the true size, made offline: bytes, the words above, fillers, start 49406 and end 49407."""
    tokens, merges = word_tokens(WORDS)
    tokens += [f"<|filler{i}|>" for i in range(VOCABULARY - 2 - len(tokens))] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab, merges, model_max_length=LENGTH, pad_token=pad)


def make(build: Callable[[], M], device: str | torch.device = "meta", dtype: torch.dtype = torch.float32) -> M:
    """A frozen model in evaluation mode, its weights of `dtype` on `device`: random, or none on the meta device.

    Made on the meta device first, so that no other memory is used and no time is lost on initial values. Matrices get
    the standard deviation 1/√(3·inputs) of torch's own start, norms ones, biases zeros.
    """
    with torch.device("meta"):
        model = build().requires_grad_(False).eval()
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    if torch.device(device).type == "meta":
        return model
    model = model.to_empty(device=device)
    noise = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    for name, weight in model.named_parameters():
        if weight.ndim < 2 and name.endswith((".weight", ".bias")):
            weight.fill_(float(name.endswith(".weight")))
            continue
        flat, scale = weight.view(-1), (3 * (weight[0].numel() if weight.ndim > 1 else len(weight))) ** -0.5
        for start in range(0, len(flat), PERIOD):
            part = flat[start : start + PERIOD]
            torch.mul(noise[: len(part)], scale, out=part)
    for name, buffer in model.named_buffers():
        if not name.endswith("position_ids"):
            raise ValueError(f"make: {type(model).__name__} has the buffer {name!r}; say here what it should hold.")
        buffer.copy_(torch.arange(buffer.shape[-1]))
    return model


def unet(name: str, device: str | torch.device = "meta", dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """The UNet of "sd15" or "sdxl" alone."""
    return make(lambda: UNet2DConditionModel(**UNETS[name]), device, dtype)


def base_model(
    name: str,
    device: str | torch.device = "meta",
    dtype: torch.dtype = torch.float32,
    image_encoder: dict[str, Any] = VIT_L_14,
) -> BaseModel:
    """Everything of "sd15" or "sdxl", with our processors. SDXL's autoencoder is float32 where dtype is float16.

    image_encoder: fields of its CLIPVisionConfig, one of `VISION`.

    On the meta device `device` of the result is the CPU: there lie token ids and positions, which need values.
    """
    spec = BASES[name]
    ends = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1, "pad_token_id": VOCABULARY - 1}
    texts = [(cls, transformers.CLIPTextConfig(vocab_size=VOCABULARY, **config, **ends)) for cls, config in TEXTS[name]]
    vision, size = transformers.CLIPVisionConfig(**image_encoder), {"height": 224, "width": 224}
    side = UNETS[name]["sample_size"] * 8
    vae = VAE | {"sample_size": side, "scaling_factor": SCALING[name]}
    base = BaseModel(
        name=name,
        tokenizers=[tokenizer(pad) for pad in ("<|endoftext|>", "!")[: len(texts)]],  # as published
        text_encoders=[make(functools.partial(cls, config), device, dtype) for cls, config in texts],
        unet=unet(name, device, dtype),
        vae=make(
            lambda: AutoencoderKL(**vae), device, torch.float32 if spec.pooled and dtype == torch.float16 else dtype
        ),
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading")
        if spec.pooled
        else PNDMScheduler(**NOISE, skip_prk_steps=True),
        image_encoder=make(lambda: transformers.CLIPVisionModelWithProjection(vision), device, dtype),
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=size),
        default_size=side,
        default_steps=spec.steps,
        default_guidance=spec.guidance,
        default_guidance_end=spec.guidance_end,
        dtype=dtype,
        device=torch.device("cpu" if torch.device(device).type == "meta" else device),
        zero_empty_prompt=spec.pooled,
    )
    install_processors(base.unet)
    return base


def adapter_for(
    base: BaseModel,
    device: str | torch.device = "meta",
    dtype: torch.dtype | None = None,
    published: IPAdapterConfig | None = None,
) -> Adapter:
    """The adapter for such a base, its weights of `dtype` (None: the base's) as `make` makes them.

    published: sizes of the IP-Adapter that its visual branch starts as (`base` is then one with `penultimate`); what it
    says of no picture is without values.

    (`Adapter.create` reads values of the base's weights, which a base on the meta device does not have.)
    """
    facts = {
        "image_width": base.image_encoder.config.hidden_size,
        "image_layers": base.image_layers,
        "text_widths": tuple(encoder.config.hidden_size for encoder in base.text_encoders),
        "num_layers": len(base.cross_attention_layers),
        "num_train_timesteps": base.scheduler.config.num_train_timesteps,
        "fusion": "pa",
    }
    config = EncoderConfig.from_dict(facts | base.spec.encoder)
    layers, dtype = base.cross_attention_layers, dtype or base.dtype
    if published is None:
        return make(lambda: Adapter(config, layers, base.name), device, dtype)
    adapter = make(lambda: WarmAdapter(config, layers, base.name, published), device, dtype)
    rows, columns = base.image_patches
    adapter.black = torch.empty(1, rows * columns + 1, config.image_width, dtype=dtype, device=device)
    return adapter
