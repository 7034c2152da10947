"""The frozen base as training needs it: what is recomputed, and in which type its autoencoder works."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

from customcontrast.base_model import BaseModel


def make_ready(base: BaseModel, gradient_checkpointing: bool) -> None:
    """Set a freshly loaded base up for training, in place.

    gradient_checkpointing: of the UNet and of every text encoder, whose B · L rows of SDXL's second one keep 8 GB.
    Both libraries checkpoint in training mode alone; neither has dropout there.
    SDXL's autoencoder works in float32: its encoder leaves the range of float16 and loses digits in bfloat16.
    """
    if gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
        base.unet.train()
        for encoder in base.text_encoders:
            encoder.activation_checkpointing_enable({"use_reentrant": False})
            encoder.train()
    if base.vae.dtype != torch.float32 and base.spec.pooled:
        base.vae.to(torch.float32)
    if base.device.type == "cpu":  # there the fused kernel's backward pass is the slower one, as is its mask
        for attention in base.unet.modules():
            if isinstance(attention, Attention) and type(attention.processor) is AttnProcessor2_0:
                attention.set_processor(AttnProcessor())
        for encoder in base.text_encoders:
            encoder.set_attn_implementation("eager")
