"""Timestep-specific subject location (section 3.4): maps of step t -> soft masks for the next step."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from customcontrast.config import LocationConfig

FLAT = 1e-6  # a map whose values differ by less than this says nothing


def minmax(maps: Tensor) -> Tensor:
    """Scale each map (…, h, w) linearly to [0, 1]; a flat one becomes 0."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    spread = high - low
    return torch.where(spread > FLAT, (maps - low) / spread.clamp_min(FLAT), torch.zeros_like(maps))


def location_mask(
    maps: Tensor,
    config: LocationConfig,
    previous: Tensor | None = None,
    drawn: Mapping[int, Tensor] | None = None,
    free: Collection[int] = (),
    rivalry: bool = True,
) -> Tensor:
    """Make soft location masks M_t of attention maps A: min–max, values <= threshold to 0, min–max (section 3.4).

    maps: A (R, K, h, w); previous: M of the step before (R, K, h, w) or None. Returns M (R, K, h, w) in [0, 1].
    Several subjects: where their masks overlap, the pixel belongs to the larger A. A mask that comes out empty or flat
    is replaced by the previous one (by ones, which mask nothing, at the start).
    drawn: layouts (h, w) of the subjects k that have one: they are their masks, and the others leave these pixels.
    free: subjects that are not masked; their A takes no pixel from those that are.
    rivalry: False = masks may overlap; who a pixel belongs to is settled elsewhere.
    """
    K, drawn = maps.shape[1], drawn or {}
    masks = minmax(maps.float())
    masks = minmax(torch.where(masks <= config.threshold, torch.zeros_like(masks), masks))
    rivals = [k for k in range(K) if k not in drawn and k not in free] or [k for k in range(K) if k not in drawn]
    owned, left = masks, torch.ones_like(masks[:1, :1])
    if rivalry and (len(rivals) > 1 or len(rivals) < K - len(drawn)):
        owned = masks * (maps >= maps[:, rivals].amax(dim=1, keepdim=True)).to(masks.dtype)
    if drawn:
        left = 1 - sum(drawn.values(), torch.zeros(())).clamp(0, 1)[None, None].to(masks)
        owned = owned * left
    useful = owned.amax(dim=(-2, -1), keepdim=True) > 0
    fallback = previous if previous is not None else left.expand_as(owned)
    owned = torch.where(useful, owned, fallback)
    if drawn:
        owned = torch.stack(
            [drawn[k].to(owned).expand_as(owned[:, k]) if k in drawn else owned[:, k] for k in range(K)], 1
        )
    return owned


def shared(layouts: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Drawn layouts (h, w) of several subjects, scaled so that they sum to at most 1 where they overlap."""
    total = sum(layouts.values(), torch.zeros(())).clamp_min(1.0)
    return {k: layout / total for k, layout in layouts.items()}


class Masker:
    """Makes the location masks of one run, step by step; one object a run.

    layouts: the user's drawing (h, w) of each subject, or None. located: whether each subject is masked by its location
    map, if it has no drawing. Drawings act from step 1 on, whatever LocationConfig's enabled, start_step and
    freeze_step are. With enabled=False the masks of the others are computed for display only.
    """

    def __init__(
        self, config: LocationConfig, layouts: Sequence[Tensor | None], located: Sequence[bool], images: int
    ) -> None:
        self.config = config
        self.drawn = shared({k: layout for k, layout in enumerate(layouts) if layout is not None})
        self.free = frozenset(k for k, on in enumerate(located) if not on and k not in self.drawn)
        self.subjects = len(layouts)
        self.found = False  # whether maps have made a mask yet
        self.masks: Tensor | None = None  # M of the latest step, (images, K, h, w)
        if self.drawn:
            one = torch.ones_like(next(iter(self.drawn.values())))
            masks = torch.stack([self.drawn.get(k, one) for k in range(self.subjects)])
            self.masks = masks.expand(images, -1, -1, -1)

    def at(self, step: int) -> tuple[Tensor | None, tuple[bool, ...]]:
        """The masks M (images, K, h, w) of this step (from 1) and which subjects they mask; (None, ()) for none yet."""
        found = self.found and self.config.enabled and step >= self.config.start_step
        which = tuple(k in self.drawn or (found and k not in self.free) for k in range(self.subjects))
        return (self.masks, which) if any(which) else (None, ())

    def needs_maps(self, step: int) -> bool:
        """Whether the maps of this step are needed: not once the masks are frozen, nor where all are drawn."""
        freeze = self.config.freeze_step
        frozen = self.found and freeze is not None and step > freeze
        return not frozen and len(self.drawn) < self.subjects

    def take(self, A: Tensor | None) -> None:
        """Update the masks from the maps A (images, K, h, w) of the latest step; None where the adapter has no map."""
        if A is not None:
            previous = self.masks if self.found else None
            rivalry = not self.config.apart  # in passes of their own, `SeparatePasses.weights` settles it
            self.masks = location_mask(A, self.config, previous, self.drawn, self.free, rivalry)
            self.found = True


def ownership_weights(text_maps: Tensor) -> Tensor:
    """Share of each subject in each pixel while there are no masks: softmax over the K text maps (…, h·w, K).

    Each map is first scaled to [0, 1] over the pixels, so that the softmax does not depend on the prompt's scale.
    """
    low, high = text_maps.amin(dim=-2, keepdim=True), text_maps.amax(dim=-2, keepdim=True)
    return ((text_maps - low) / (high - low).clamp_min(FLAT)).softmax(dim=-1)
