"""Timestep-specific subject location (section 3.4): maps of step t -> soft masks for the next step."""

from __future__ import annotations

import torch
from torch import Tensor

from customcontrast.config import LocationConfig

FLAT = 1e-6  # a map whose values differ by less than this says nothing


def minmax(maps: Tensor) -> Tensor:
    """Each map (…, h, w) to [0, 1]; a flat one to 0."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    spread = high - low
    return torch.where(spread > FLAT, (maps - low) / spread.clamp_min(FLAT), torch.zeros_like(maps))


def location_mask(maps: Tensor, config: LocationConfig, previous: Tensor | None = None) -> Tensor:
    """M_t: min–max, values <= threshold to 0, min–max again; soft, not binary.

    maps: A (R, K, h, w); previous: M of the step before (R, K, h, w) or None. Returns M (R, K, h, w) in [0, 1].
    Several subjects: where their masks overlap, the pixel belongs to the larger A. A mask that comes out empty or flat
    is replaced by the previous one (by ones, which mask nothing, at the start).
    """
    masks = minmax(maps.float())
    masks = minmax(torch.where(masks <= config.threshold, torch.zeros_like(masks), masks))
    owned = masks
    if maps.shape[1] > 1:
        owned = masks * (maps >= maps.amax(dim=1, keepdim=True)).to(masks.dtype)
    useful = owned.amax(dim=(-2, -1), keepdim=True) > 0
    fallback = previous if previous is not None else torch.ones_like(owned)
    return torch.where(useful, owned, fallback)


def ownership_weights(text_maps: Tensor) -> Tensor:
    """Before masks exist: whose pixel is it? Softmax over the K subjects of their text maps (…, h·w, K).

    Each map is first brought to [0, 1] over the pixels, so that the softmax sees one scale whatever the prompt.
    """
    low, high = text_maps.amin(dim=-2, keepdim=True), text_maps.amax(dim=-2, keepdim=True)
    return ((text_maps - low) / (high - low).clamp_min(FLAT)).softmax(dim=-1)
