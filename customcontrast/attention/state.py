"""What one UNet call is told about its texts and subjects. Made in the call, dies there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from customcontrast.attention.maps import MapRecorder
from customcontrast.config import LocationConfig

if TYPE_CHECKING:
    from customcontrast.bases import BaseModel

LOG_OF_ZERO = -1e4  # fits half precision, and e to this is 0 exactly


def level_size(size: tuple[int, int], level: int) -> tuple[int, int]:
    """Latent size (h, w) after `level` halvings, each rounding up as the UNet's strided convolutions do."""
    h, w = size
    return -(-h >> level), -(-w >> level)


@dataclass(frozen=True, eq=False)
class SubjectBranch:
    """One subject k in Eq. 3. R = rows of the batch that see subjects, or 1 for the same in all of them."""

    keys: Sequence[Tensor]  # K_v per layer, L × (R or 1, n [+1 with the sink], width_l)
    values: Sequence[Tensor]  # V_v per layer, alike
    positions: Tensor | None = None  # p as a 0/1 row over the text tokens, (R or 1, S); None = no S* in the text
    strength: float | Tensor = 1.0  # λ, or one λ per row (R,): 0 drops the subject from that row
    sink: bool = True  # the first key is the null key, so that visual mass has a meaning


@dataclass(frozen=True, eq=False)
class SubjectState:
    """Everything Eq. 3 needs for one UNet call; pass it as `encoder_hidden_states` (see `unet_forward`).

    text: groups of text contexts C(t, l), each (c, L or 1, S, d_text); a group with 1 shows the same context to all
        layers (the empty prompt of classifier-free guidance). The groups are joined along the batch.
    size: (h, w) of the latents. Maps carry (h, w) of their layer, so any aspect ratio works.
    repeat: pictures per context: row i of the batch uses context i // repeat.
    first: rows before this one (the unconditional half) have no subject, no mask, and are not recorded.
    masks: location masks M (R, K, h', w') in [0, 1] of the step before, at any size; None = no mask yet.
    """

    text: tuple[Tensor, ...]
    size: tuple[int, int]
    branches: tuple[SubjectBranch, ...] = ()
    repeat: int = 1
    first: int = 0
    masks: Tensor | None = None
    location: LocationConfig = field(default_factory=LocationConfig)
    recorder: MapRecorder | None = None
    added_conditions: dict[str, Tensor] | None = None  # SDXL's pooled text and sizes
    _resized: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict, init=False, repr=False)

    def context(self, layer: int) -> Tensor:
        """C(t, l) of every row of the batch: (B, S, d_text)."""
        parts = [group[:, layer if group.shape[1] > 1 else 0] for group in self.text]
        contexts = parts[0] if len(parts) == 1 else torch.cat(parts)
        return contexts if self.repeat == 1 else contexts.repeat_interleave(self.repeat, dim=0)

    def positions(self) -> Tensor | None:
        """p of all subjects over the text tokens, (R or 1, K, S) of 0 and 1; None where no subject has S*."""
        if not self.branches or self.branches[0].positions is None:
            return None
        rows = max(len(branch.positions) for branch in self.branches)
        return torch.stack([branch.positions.expand(rows, -1) for branch in self.branches], dim=1)

    def masks_at(self, level: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Location masks for the layers of one level, resized once per call.

        -> M (R, K, h·w), and what to add to the text logits (rows, 1, h·w, S) so that the S* columns of the softmax
        are multiplied by M and its rows renormalised: log M there, 0 elsewhere and in the unconditional rows.
        """
        if level not in self._resized:
            size = level_size(self.size, level)
            masks = F.interpolate(self.masks.float(), size, mode="bilinear", antialias=True).flatten(2).clamp(0, 1)
            self._resized[level] = (masks.to(dtype), self._text_bias(masks, dtype))
        return self._resized[level]

    def _text_bias(self, masks: Tensor, dtype: torch.dtype) -> Tensor | None:
        positions = self.positions()
        if positions is None or not self.location.mask_text:
            return None
        bias = masks.log().clamp_min(LOG_OF_ZERO).transpose(1, 2) @ positions.to(masks.dtype)  # (R, h·w, S)
        return F.pad(bias, (0, 0, 0, 0, self.first, 0))[:, None].to(dtype)


def unet_forward(base: BaseModel, z: Tensor, t: Tensor | float, state: SubjectState) -> Tensor:
    """The UNet with Eq. 3 in every cross-attention layer: the one call that training and inference share.

    base: a BaseModel whose UNet has the processors (`attention.install_processors`).
    z: noisy latents (B, C, h, w), B = state's contexts × state.repeat. t: one timestep, or one per row (B,).
    state: texts, subjects, masks and recorder of this call. After it `state.recorder` holds this call's maps, with
        gradients where grad mode is on.
    Returns the UNet's prediction (B, C, h, w): ε or v, as the scheduler's `prediction_type` says.
    """
    if tuple(z.shape[-2:]) != tuple(state.size):
        raise ValueError(
            f"unet_forward: z is {tuple(z.shape[-2:])}, state.size is {tuple(state.size)}; they must agree."
        )
    rows = sum(len(group) for group in state.text) * state.repeat
    if len(z) != rows:
        raise ValueError(f"unet_forward: z has {len(z)} rows, state has contexts for {rows}.")
    return base.unet(z, t, encoder_hidden_states=state, added_cond_kwargs=state.added_conditions, return_dict=False)[0]
