"""f_I before projection: hidden states of three CLIP image layers, coarse to fine (section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor


class EncodesPictures(Protocol):
    """The parts of a base model that encode reference pictures."""

    image_processor: Any
    image_encoder: Any
    device: torch.device

    @property
    def image_layers(self) -> tuple[int, ...]:
        """The CLIP image layers of f_I, coarse to fine."""


def evenly_spaced(depth: int, count: int = 3) -> tuple[int, ...]:
    """The last of `depth` CLIP layers and `count`−1 earlier ones, evenly spaced, coarse to fine.

    Hidden state 0 is the patch embedding, so layer i's output is hidden state i: 24 layers -> (24, 16, 8).
    Raises ValueError where there are fewer layers than `count`.
    """
    if depth < count:
        raise ValueError(f"evenly_spaced: a CLIP image encoder of {depth} layers has no {count} layers to take.")
    return tuple(round(depth * (count - i) / count) for i in range(count))


def preprocess(base: EncodesPictures, pictures: Sequence[Image.Image]) -> Tensor:
    """Prepare segmented subjects R (RGB pictures on white) for the CLIP image encoder: pixel values (B, 3, S, S)."""
    pictures = [picture.convert("RGB") for picture in pictures]
    pixels = base.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
    return pixels.to(base.device, base.image_encoder.dtype)


@torch.no_grad()
def extract(
    base: EncodesPictures, pictures: Sequence[Image.Image] | Tensor, layers: Sequence[int] | None = None
) -> tuple[Tensor, ...]:
    """Hidden states of the frozen CLIP image encoder, one per entry of `layers` (default: the base's three).

    pictures: B segmented subjects R on a plain ground, or their pixel values (B, 3, S, S) from `preprocess`.
    Returns a tuple of (B, N, d_I), coarse to fine; N counts CLIP's class token too.
    """
    pixels = pictures if isinstance(pictures, Tensor) else preprocess(base, pictures)
    hidden = base.image_encoder.vision_model(pixels, output_hidden_states=True).hidden_states
    return tuple(hidden[i] for i in (base.image_layers if layers is None else layers))


@torch.no_grad()
def embed(base: EncodesPictures, pictures: Sequence[Image.Image] | Tensor) -> Tensor:
    """CLIP image embeddings (B, d_proj), not normalised; S_ij of Eq. 7 is their cosine.

    pictures: as in `extract`.
    """
    pixels = pictures if isinstance(pictures, Tensor) else preprocess(base, pictures)
    return base.image_encoder(pixels).image_embeds
