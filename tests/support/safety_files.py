"""A safety checker as it is published, at toy width: real classes, its thresholds set so that it flags as told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig

from customcontrast.safety import SafetyChecker

NEVER, ALWAYS = 2.0, -2.0  # thresholds of a cosine


def tiny_checker(flagged: Image.Image | None = None, others: Sequence[Image.Image] = (), threshold: float = NEVER):
    """A checker with this threshold for all concepts, or one that flags a picture and none of the others."""
    torch.manual_seed(5)
    vision = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 24, "patch_size": 8}
    config = CLIPConfig(vision_config=vision, text_config=vision, projection_dim=16)
    model = StableDiffusionSafetyChecker(config).requires_grad_(False).eval()
    for weight in model.vision_model.parameters():
        if weight.ndim > 1:
            weight.normal_(std=0.5)  # at its own start it hardly tells one picture from another
    model.concept_embeds.normal_()
    model.special_care_embeds.normal_()
    model.special_care_embeds_weights.fill_(NEVER)
    model.concept_embeds_weights.fill_(threshold)
    if flagged is not None:
        pixels = SafetyChecker(model).processor(images=[flagged, *others], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            embeds = torch.nn.functional.normalize(model.visual_projection(model.vision_model(pixels)[1]))
        nearest = (embeds[1:] @ embeds[0]).max().item() if len(embeds) > 1 else 0.0
        assert nearest < 0.99, "these pictures look alike to a random encoder; take others"
        model.concept_embeds[3] = embeds[0]
        model.concept_embeds_weights[3] = (1 + nearest) / 2
    return model


def save_published(model: StableDiffusionSafetyChecker, folder: Path, variant: str = "") -> Path:
    """The checker under its published keys, where the encoder is one level deeper, with a buffer of old releases."""
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    inner = "vision_model."
    weights = {inner + key if key.startswith(inner) else key: value for key, value in model.state_dict().items()}
    weights[f"{inner}{inner}embeddings.position_ids"] = torch.arange(10)[None]
    name = f"model{f'.{variant}' if variant else ''}.safetensors"
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / name, {"format": "pt"})
    return folder
