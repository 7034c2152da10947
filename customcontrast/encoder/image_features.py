"""f_I before projection: hidden states of three CLIP image layers, coarse to fine (section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from customcontrast.images.resizing import reduced


class EncodesPictures(Protocol):
    """The parts of a base model that encode reference pictures."""

    image_processor: Any
    image_encoder: Any
    device: torch.device

    @property
    def image_layers(self) -> tuple[int, ...]:
        """The CLIP image layers of f_I, coarse to fine."""

    @property
    def image_side(self) -> int:
        """The side of what the image encoder was trained to read, px."""


def evenly_spaced(depth: int, count: int = 3) -> tuple[int, ...]:
    """The last of `depth` CLIP layers and `count`−1 earlier ones, evenly spaced, coarse to fine.

    Hidden state 0 is the patch embedding, so layer i's output is hidden state i: 24 layers -> (24, 16, 8).
    Raises ValueError where there are fewer layers than `count`.
    """
    if depth < count:
        raise ValueError(f"evenly_spaced: a CLIP image encoder of {depth} layers has no {count} layers to take.")
    return tuple(round(depth * (count - i) / count) for i in range(count))


def preprocess(base: EncodesPictures, pictures: Sequence[Image.Image], side: int | None = None) -> Tensor:
    """Prepare segmented subjects R (RGB pictures on white) for the CLIP image encoder: pixel values (B, 3, S, S).

    side: the reference resolution, the side in px at which a reference is seen; None = the encoder's own, S. With more,
    S grows to the next multiple of the patches' side, so that there are more tokens: the encoder's position embeddings
    are interpolated for them. With less, the picture is reduced to this side and then enlarged to the encoder's own:
    as many tokens, with less detail in them. Fewer tokens instead would be another kind of input than the adapter was
    trained on, where a blurred picture is not.
    """
    pictures = [picture.convert("RGB") for picture in pictures]
    size: dict[str, dict[str, int]] = {}
    if side is not None and side < base.image_side:
        pictures = [reduced(picture, side, reducing_gap=None) for picture in pictures]
    elif side is not None and side > base.image_side:
        S = tokens_on_a_side(base, side) * base.image_encoder.config.patch_size
        size = {"size": {"shortest_edge": S}, "crop_size": {"height": S, "width": S}}
    pixels = base.image_processor(images=pictures, return_tensors="pt", **size)["pixel_values"]
    return pixels.to(base.device, base.image_encoder.dtype)


def tokens_on_a_side(base: EncodesPictures, side: int | None = None) -> int:
    """Rows, and columns, of patches that the encoder divides a reference into at this reference resolution."""
    patch = base.image_encoder.config.patch_size
    return base.image_side // patch if side is None or side <= base.image_side else -(-side // patch)


def interpolated(base: EncodesPictures, pixels: Tensor) -> dict[str, bool]:
    """The encoder's option for pixel values that are larger than its own, {} for its own."""
    return {} if pixels.shape[-1] == base.image_side else {"interpolate_pos_encoding": True}


@torch.no_grad()
def extract(
    base: EncodesPictures,
    pictures: Sequence[Image.Image] | Tensor,
    layers: Sequence[int] | None = None,
    side: int | None = None,
) -> tuple[Tensor, ...]:
    """Hidden states of the frozen CLIP image encoder, one per entry of `layers` (default: the base's three).

    pictures: B segmented subjects R on a plain ground, or their pixel values (B, 3, S, S) from `preprocess`.
    side: see `preprocess`.
    Returns a tuple of (B, N, d_I), coarse to fine; N counts CLIP's class token too.
    """
    pixels = pictures if isinstance(pictures, Tensor) else preprocess(base, pictures, side)
    hidden = base.image_encoder.vision_model(
        pixels, output_hidden_states=True, **interpolated(base, pixels)
    ).hidden_states
    return tuple(hidden[i] for i in (base.image_layers if layers is None else layers))


@torch.no_grad()
def embed(base: EncodesPictures, pictures: Sequence[Image.Image] | Tensor) -> Tensor:
    """CLIP image embeddings (B, d_proj), not normalised; S_ij of Eq. 7 is their cosine.

    pictures: as in `extract`.
    """
    pixels = pictures if isinstance(pictures, Tensor) else preprocess(base, pictures)
    return base.image_encoder(pixels).image_embeds
