"""One Toyland picture: diffusers' pipeline, its IP-Adapter, and ours, at the same steps, size and guidance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from customcontrast import CustomContrast, Segmenter
from customcontrast.bases import load_base
from customcontrast.config import LocationConfig, RecordConfig
from customcontrast.imageio import load_picture

EXAMPLE = Path(__file__).parents[2] / "examples" / "bear.png"


def pipeline() -> StableDiffusionPipeline:
    """Toyland in diffusers' own pipeline, with stock attention processors."""
    base = load_base("toyland", device="cpu")
    pipe = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoders[0],
        tokenizer=base.tokenizers[0],
        unet=base.unet,
        scheduler=base.scheduler,
        safety_checker=None,
        feature_extractor=base.image_processor,
        image_encoder=base.image_encoder,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def add_ip_adapter(pipe: StableDiffusionPipeline, tokens: int = 4) -> None:
    """An IP-Adapter of true layout with random weights: ImageProjection, to_k_ip and to_v_ip in every attn2."""
    unet = pipe.unet
    context, seen = unet.config.cross_attention_dim, pipe.image_encoder.config.projection_dim
    weights, key = {}, 1
    for name in unet.attn_processors:
        if name.endswith("attn1.processor"):
            continue
        hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"{key}.{part}.weight"] = torch.randn(hidden, context) * 0.02
        key += 2
    projection = {
        "proj.weight": torch.randn(tokens * context, seen) * 0.02,
        "proj.bias": torch.zeros(tokens * context),
        "norm.weight": torch.ones(context),
        "norm.bias": torch.zeros(context),
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])


def contenders(steps: int) -> dict[str, Callable[[], object]]:
    """Each makes one picture; the reference of ours is segmented and encoded before, as for a second picture."""
    picture, (plain, ip) = load_picture(EXAMPLE), (pipeline(), pipeline())
    add_ip_adapter(ip)
    ours = CustomContrast.load("toyland", device="cpu")
    subject = ours.subject(Segmenter().auto(picture), "bear")
    size, guidance = ours.base.default_size, ours.base.default_guidance
    same = {"num_inference_steps": steps, "guidance_scale": guidance, "height": size, "width": size}

    def our(location: bool, maps: bool) -> Callable[[], object]:
        def call() -> object:
            ours.conditioner.kept.clear()  # S+ contexts are paid for in every round
            options = {"location": LocationConfig(enabled=location), "record": RecordConfig(maps=maps)}
            return ours.generate("a bear S* on the beach", [subject], **same, **options)

        return call

    return {
        "IP-Adapter (diffusers)": lambda: ip("a bear on the beach", ip_adapter_image=picture, **same),
        "plain pipeline (diffusers)": lambda: plain("a bear on the beach", **same),
        "ours, maps off": our(False, False),
        "ours, location masks": our(True, False),
        "ours, all maps": our(True, True),
    }
