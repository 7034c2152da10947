"""The texts and subjects of one UNet call. Created for the call and discarded with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from customcontrast.attention.maps import MapRecorder
from customcontrast.config import LocationConfig
from customcontrast.transfer import sent

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
    masked: bool = True  # whether this subject is kept to its mask, where state.masks has them
    named: bool = True  # positions are its S*; False: its noun's words, which say where it is and are never masked
    layer_scales: Sequence[float] | None = None  # λ of each layer l, times `strength`; None = 1 in all
    # Keys and values per layer (R or 1, n', width_l) of a second softmax, added to the first: the image tokens of the
    # IP-Adapter that an adapter started as (`warm_start`).
    beside: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None
    unconditional: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None  # K_u, V_u per layer (1, n, width_l), for
    # the rows before state.first: what an IP-Adapter shows the unconditional half in place of a picture

    def absent(self, layer: int) -> bool:
        """Whether λ is 0 in every row of this layer l, so that the subject need not be computed."""
        none_here = self.layer_scales is not None and self.layer_scales[layer] == 0
        return none_here or (not isinstance(self.strength, Tensor) and self.strength == 0)


@dataclass(frozen=True, eq=False)
class SubjectState:
    """Everything Eq. 3 needs for one UNet call; pass it as `encoder_hidden_states` (see `unet_forward`).

    text: groups of text contexts C(t, l), each (c, L or 1, S, d_text); a group with 1 shows the same context to all
        layers (the empty prompt of classifier-free guidance). The groups are joined along the batch.
    size: (h, w) of the latents. Maps carry (h, w) of their layer, so any aspect ratio works.
    everywhere: branches of whole pictures (style, layout): without mask, and never recorded.
    repeat: pictures per context: row i of the batch uses context i // repeat.
    first: rows before this one (the unconditional half) have no subject, no mask, and are not recorded; all they see is
        `SubjectBranch.unconditional`, under the masks of the other half.
    masks: location masks M (R, K, h', w') in [0, 1] of the step before, at any size; None = no mask yet. Rows of
        subjects that are not masked (`SubjectBranch.masked`) are ignored.
    steady: whether each group is the same at every step of a run; those that are come first.
    projected: made empty for each run; layers put the keys and values of steady groups there, for the next step.
        None = computed at each step.
    lengths: tokens of each row's prompt that text attention may see, (B,) on the CPU; None = all of them.
    """

    text: tuple[Tensor, ...]
    size: tuple[int, int]
    branches: tuple[SubjectBranch, ...] = ()
    everywhere: tuple[SubjectBranch, ...] = ()
    repeat: int = 1
    first: int = 0
    masks: Tensor | None = None
    location: LocationConfig = field(default_factory=LocationConfig)
    recorder: MapRecorder | None = None
    steady: tuple[bool, ...] = ()
    projected: dict[int, tuple[Tensor, Tensor]] | None = None
    lengths: Tensor | None = None
    added_conditions: dict[str, Tensor] | None = None  # SDXL's pooled text and sizes
    _made: dict[str | int, Any] = field(default_factory=dict, init=False, repr=False)  # once per call: masks of a level

    def context(self, layer: int) -> Tensor:
        """C(t, l) of every row of the batch: (B, S, d_text)."""
        return self._per_picture(self._contexts(layer, self.text))

    def _contexts(self, layer: int, groups: Sequence[Tensor]) -> Tensor:
        parts = [group[:, layer if group.shape[1] > 1 else 0] for group in groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _per_picture(self, x: Tensor) -> Tensor:
        return x if self.repeat == 1 else x.repeat_interleave(self.repeat, dim=0)

    def text_keys(self, layer: int, project: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """K_t and V_t of every row, by `project`; those of steady groups only once in a run, of S+ once per context.

        Where nothing is S+, all rows are projected in one batch, as in the base's own pipeline: equal to the bit.
        """
        steady = [group for group, same in zip(self.text, self.steady, strict=False) if same]
        if self.projected is None or len(steady) == len(self.text):
            found = None if self.projected is None else self.projected.get(layer)
            found = project(self.context(layer)) if found is None else found
            if self.projected is not None:
                self.projected[layer] = found
            return found
        K, V = project(self._contexts(layer, self.text[len(steady) :]))
        if steady:
            if layer not in self.projected:
                self.projected[layer] = project(self._contexts(layer, steady))
            K, V = (torch.cat(pair) for pair in zip(self.projected[layer], (K, V), strict=True))
        return self._per_picture(K), self._per_picture(V)

    @property
    def all_masked(self) -> bool:
        """Whether every subject has a mask."""
        return self.masks is not None and all(branch.masked for branch in self.branches)

    def positions(self) -> Tensor | None:
        """Token positions p of all subjects as rows of 0 and 1, (R or 1, K, S); None where no subject has S*."""
        positions = [branch.positions for branch in self.branches if branch.positions is not None]
        if not self.branches or len(positions) < len(self.branches):
            return None
        if "positions" not in self._made:
            rows = max(len(p) for p in positions)
            self._made["positions"] = torch.stack([p.expand(rows, -1) for p in positions], dim=1)
        return self._made["positions"]

    def padding_bias(self, dtype: torch.dtype) -> Tensor | None:
        """Bias of the text logits that keeps attention off padding, (B, 1, 1, S); None where there is none."""
        if self.lengths is None:
            return None
        if "padding" not in self._made:
            hidden = torch.arange(self.text[0].shape[2]) >= self.lengths[:, None]
            bias = (hidden.to(dtype) * LOG_OF_ZERO)[:, None, None]
            self._made["padding"] = sent(bias, self.text[0].device) if hidden.any() else None
        return self._made["padding"]

    def masks_at(self, level: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Location masks for the layers of one level, resized once per call.

        -> M (R, K, h·w), and what to add to the text logits (rows, 1, h·w, S) so that the S* columns of the softmax
        are multiplied by M and its rows renormalised: log M there, 0 elsewhere and in the unconditional rows.
        """
        if self.masks is None:
            raise ValueError("SubjectState: masks_at needs location masks; this state has none.")
        if level not in self._made:
            size = level_size(self.size, level)
            masks = F.interpolate(self.masks.float(), size, mode="bilinear", antialias=True).flatten(2).clamp(0, 1)
            self._made[level] = (masks.to(dtype), self._text_bias(masks, dtype))
        return self._made[level]

    def _text_bias(self, masks: Tensor, dtype: torch.dtype) -> Tensor | None:
        positions = self.positions()
        if positions is None or not self.location.mask_text or not self.branches[0].named:
            return None
        if not self.all_masked:
            masked = sent(torch.tensor([branch.masked for branch in self.branches]), masks.device)
            masks = masks.where(masked[:, None], 1.0)
        bias = masks.log().clamp_min(LOG_OF_ZERO).transpose(1, 2) @ positions.to(masks.dtype)  # (R, h·w, S)
        return F.pad(bias, (0, 0, 0, 0, self.first, 0))[:, None].to(dtype)


class Denoises(Protocol):
    """What `unet_forward` needs of a base."""

    unet: Any

    @property
    def layout_channels(self) -> int:
        """Input channels of the UNet beside the latents."""


def unet_forward(
    base: Denoises, z: Tensor, t: Tensor | float, state: SubjectState, layout: Tensor | None = None
) -> Tensor:
    """Run the UNet with Eq. 3 in every cross-attention layer: the one call that training and inference share.

    base: a BaseModel whose UNet has the processors (`attention.install_processors`).
    z: noisy latents (B, C, h, w), B = state's contexts × state.repeat. t: one timestep, or one per row (B,).
    state: texts, subjects, masks and recorder of this call. After it `state.recorder` holds this call's maps, with
        gradients where grad mode is on.
    layout: channels of `customcontrast.layout` (B or 1, 13, h, w), for a base that takes them; None = unknown.
    Returns the UNet's prediction (B, C, h, w): ε or v, as the scheduler's `prediction_type` says.
    """
    if tuple(z.shape[-2:]) != tuple(state.size):
        raise ValueError(
            f"unet_forward: z is {tuple(z.shape[-2:])}, state.size is {tuple(state.size)}; they must agree."
        )
    rows = sum(len(group) for group in state.text) * state.repeat
    if len(z) != rows:
        raise ValueError(f"unet_forward: z has {len(z)} rows, state has contexts for {rows}.")
    if base.layout_channels:
        layout = z.new_zeros(1, base.layout_channels, *z.shape[-2:]) if layout is None else layout.to(z.dtype)
        z = torch.cat([z, layout.expand(len(z), -1, -1, -1)], dim=1)
    return base.unet(z, t, encoder_hidden_states=state, added_cond_kwargs=state.added_conditions, return_dict=False)[0]
