"""The safety checker that Stable Diffusion is published with: which generated pictures are not shown.

A CLIP image encoder and 20 concepts as vectors in its space; a picture nearer to one of them than that concept's
threshold is flagged (CompVis, in diffusers `StableDiffusionSafetyChecker`). It misses things and flags harmless ones:
its makers say so, and nothing of it was measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image, ImageDraw
from torch import nn
from transformers import CLIPImageProcessor

from customcontrast.building import alone
from customcontrast.errors import HubError, out_of_memory
from customcontrast.hub import fp16_only, safety_folder
from customcontrast.sampling import on_device
from customcontrast.visualize.drawing import LINE, SOFT, font

LABEL = "Withheld by the\nsafety checker"
SKIPPED = "The safety checker withheld picture {}: it may be unsuitable. Try other words, or another seed."


class SafetyChecker:
    """Flags pictures. Threads may share one."""

    def __init__(self, model: StableDiffusionSafetyChecker) -> None:
        self.model = model.requires_grad_(False).eval()
        side = model.config.vision_config.image_size
        self.processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    @classmethod
    def load(
        cls,
        source: str | Path = "on",
        weights: str | Path = "",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> SafetyChecker:
        """From a folder, a hub id, or "on": see `hub.safety_folder`. Raises HubError with one sentence.

        Every weight must be in the file: one that is left random would flag at random.
        """
        folder = safety_folder(source, weights)
        variant = {"variant": "fp16"} if fp16_only(folder, half=True) else {}
        try:
            model, about = alone(StableDiffusionSafetyChecker.from_pretrained)(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **variant
            )
        except Exception as error:  # damaged files make transformers raise a dozen kinds of error
            if out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise HubError(f"safety_checker: {str(folder)!r} cannot be read ({reason}); download it again.") from error
        missing = sorted([*about["missing_keys"], *(key for key, *_ in about["mismatched_keys"])])
        if missing:
            raise HubError(
                f"safety_checker: {str(folder)!r} lacks {len(missing)} weights of the checker, the first is "
                f"{missing[0]!r}; put the published files there."
            )
        return cls(model.to(device))

    @torch.no_grad()
    def flags(self, pictures: Sequence[Image.Image], device: torch.device | None = None) -> list[bool]:
        """Whether each picture is flagged. device: where that is computed; None = where the checker is."""
        if not pictures:
            return []
        pixels = self.processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")
        weight = next(self.model.parameters())
        with on_device(device or weight.device, self.model):
            weight = next(self.model.parameters())
            given = pixels["pixel_values"].to(weight.device, weight.dtype)
            # It blackens what it is given as pictures, so it gets others.
            _, flagged = self.model(clip_input=given, images=np.zeros((len(pictures), 1)))
        return [bool(flag) for flag in flagged]


def as_checker(given: SafetyChecker | nn.Module | None) -> SafetyChecker | None:
    """A checker as it is; diffusers' own model (a pipeline's `safety_checker`) as one."""
    return SafetyChecker(given) if isinstance(given, nn.Module) else given


def placeholder(size: tuple[int, int]) -> Image.Image:
    """What is shown in place of a flagged picture of (width, height) px: plain, and labelled."""
    picture = Image.new("RGB", size, LINE)
    face = font(max(7, min(size[0] // 11, size[1] // 6)))
    middle = (size[0] / 2, size[1] / 2)
    ImageDraw.Draw(picture).multiline_text(middle, LABEL, font=face, fill=SOFT, anchor="mm", align="center")
    return picture
