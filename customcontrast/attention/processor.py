"""Eq. 3: text attention plus λ times the attention over each subject's visual features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0, SlicedAttnProcessor
from torch import Tensor

from customcontrast.attention.location import ownership_weights
from customcontrast.attention.maps import MapRecorder
from customcontrast.attention.state import SubjectBranch, SubjectState, level_size


class SubjectProcessor(AttnProcessor2_0):
    """Attention processor of cross-attention layer l. Stateless: all that it needs of a run comes with the call.

    `encoder_hidden_states` is a SubjectState, or a plain tensor for diffusers' ordinary attention, to the bit.

    Recording never changes a picture: outputs come from fused attention, and the maps are computed beside it, from the
    same queries and keys (in training, where gradients are on, one attention serves both). The maps are those before
    the location mask is injected: a soft mask that fed on its own masked map would square itself at every step and
    shrink to a point.

    slice_size: how many heads of one picture attend at a time, for less memory; None = all, in one batch. The numbers
    are the same up to rounding (see `layers.slice_attention`).
    """

    def __init__(self, layer: int, level: int, slice_size: int | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.level = level
        self.slice_size = slice_size

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | SubjectState | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: object,
        **kwargs: object,
    ) -> Tensor:
        """The layer's output (B, h·w, width), from hidden states of that shape: Eq. 3, or diffusers' own attention.

        Raises ValueError for an attention mask beside a SubjectState, or hidden states of another size than its own.
        """
        state = encoder_hidden_states
        if not isinstance(state, SubjectState):
            if self.slice_size is not None:
                return SlicedAttnProcessor(self.slice_size)(attn, hidden_states, state, attention_mask)
            return super().__call__(attn, hidden_states, state, attention_mask, temb, *args, **kwargs)
        if attention_mask is not None:
            raise ValueError("SubjectProcessor: attention_mask is not supported together with a SubjectState.")
        out = self.attention(attn, hidden_states, state)
        out = attn.to_out[0](out.transpose(1, 2).flatten(2))
        out = attn.to_out[1](out)
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor

    def attention(self, attn: Any, hidden_states: Tensor, state: SubjectState) -> Tensor:
        """Eq. 3 before the output projection, (B, heads, h·w, c)."""
        size = self.grid(hidden_states, state)

        def project(context: Tensor) -> tuple[Tensor, Tensor]:
            return split_heads(attn.to_k(context), attn.heads), split_heads(attn.to_v(context), attn.heads)

        Q = split_heads(attn.to_q(hidden_states), attn.heads)  # (B, heads, h·w, c)
        K_t, V_t = state.text_keys(self.layer, project)  # (B, heads, S, c)
        masks, bias = (None, None) if state.masks is None else state.masks_at(self.level, Q.dtype)
        padding = state.padding_bias(Q.dtype)
        if padding is not None:
            bias = padding if bias is None else bias + padding
        weights = None
        if torch.is_grad_enabled() and masks is None and self.slice_size is None and self.wants_text(state):
            weights = probabilities(Q, K_t, bias)  # in training one way is enough, for the output and for the maps
            out = weights.to(V_t.dtype) @ V_t
        else:
            out = attend(Q, K_t, V_t, bias, self.slice_size)

        Q_u, Q = Q[: state.first], Q[state.first :]  # from here on Q are the rows that see subjects, R of them
        tokens = None if weights is None else weights[state.first :].mean(dim=1)
        text_map = self.record_text(Q, K_t[state.first :], state, size, tokens)
        shares = None
        if text_map is not None and len(state.branches) > 1 and not state.all_masked:
            shares = ownership_weights(text_map).transpose(1, 2)  # (R, K, h·w)
        visual = self.visual_branches(Q, state, size, masks, shares)
        without = self.unconditional_branches(Q_u, state, masks, shares) if state.first else None
        if visual is not None and not torch.is_grad_enabled():
            out[state.first :] += visual
        elif visual is not None:
            out = torch.cat([out[: state.first], out[state.first :] + visual])
        if without is not None:
            out = torch.cat([out[: state.first] + without, out[state.first :]])
        return out

    def grid(self, hidden_states: Tensor, state: SubjectState) -> tuple[int, int]:
        """The size (h, w) of this layer. Raises ValueError where the hidden states have another one."""
        size = level_size(state.size, self.level)
        if hidden_states.shape[1] != size[0] * size[1]:
            raise ValueError(
                f"SubjectProcessor: layer {self.layer} has {hidden_states.shape[1]} positions; latents of {state.size} "
                f"halved {self.level} times make {size}. Is state.size the size of these latents?"
            )
        return size

    def recorder(self, state: SubjectState) -> MapRecorder | None:
        """What records this layer, if anything does."""
        return state.recorder if state.recorder is not None and state.recorder.takes(self.layer) else None

    def wants_text(self, state: SubjectState) -> bool:
        """Whether the text's maps are needed: to be recorded, or to divide the picture among subjects."""
        return self.recorder(state) is not None or (len(state.branches) > 1 and not state.all_masked)

    def record_text(
        self, Q: Tensor, K_t: Tensor, state: SubjectState, size: tuple[int, int], tokens: Tensor | None = None
    ) -> Tensor | None:
        """Text map of every token (mean over heads), if it is needed. Returns each subject's (R, h·w, K).

        tokens: that map (R, h·w, S), where it is known.
        """
        if not self.wants_text(state):
            return None
        if tokens is None:
            padding = state.padding_bias(Q.dtype)
            bias = None if padding is None else padding[state.first :]
            tokens = head_mean(Q, K_t, self.slice_size, bias)
        recorder = self.recorder(state)
        positions = state.positions()
        subjects = None if positions is None else tokens @ positions.to(tokens.dtype).transpose(1, 2)
        if recorder is not None:
            recorder.add_text(self.layer, size, tokens, subjects)
        return subjects

    def visual_branches(
        self, Q: Tensor, state: SubjectState, size: tuple[int, int], masks: Tensor | None, shares: Tensor | None
    ) -> Tensor | None:
        """The visual term of Eq. 3 over all subjects k, (R, heads, h·w, c), or None without subjects.

        It is Σ_k λ_k · (where k is) · softmax(Q K_vᵀ/√d) V_v.
        Where k is: its mask; among several subjects, one without a mask (yet) has its part of their text maps' softmax,
        shares (R, K, h·w). Branches that are everywhere come on top.
        """
        recorder = self.recorder(state)
        total, masses = None, []
        for k, branch in enumerate(state.branches):
            absent = branch.absent(self.layer)
            if absent and recorder is None:
                continue
            out, seen = self.visual_attention(Q, branch, explicit=recorder is not None)
            if seen is not None and branch.sink:
                masses.append(seen.sum(dim=-1))
            if seen is not None and recorder is not None and recorder.sources:
                recorder.add_looked(self.layer, size, k, seen)
            if absent:
                continue
            out = self.weighed(Q, out, branch, self.where(state, k, masks, shares))
            total = out if total is None else total + out
        if masses and recorder is not None:
            recorder.add_visual(self.layer, size, torch.stack(masses, dim=-1))
        for branch in state.everywhere:
            if not branch.absent(self.layer):
                out = self.visual_attention(Q, branch, explicit=False)[0] * strength(branch, self.layer, Q)
                total = out if total is None else total + out
        return total

    def where(self, state: SubjectState, k: int, masks: Tensor | None, shares: Tensor | None) -> Tensor | None:
        """What subject k's branch is multiplied by, (R, 1, h·w, 1); None where it is let in everywhere."""
        where = shares
        if masks is not None and state.branches[k].masked:
            where = masks if state.location.mask_visual else None
        return None if where is None else where[:, k, None, :, None]

    def weighed(self, Q: Tensor, out: Tensor, branch: SubjectBranch, where: Tensor | None) -> Tensor:
        """λ_k · (where k is) · `out` (R, heads, h·w, c) of its visual tokens, with that of image tokens beside them."""
        if branch.beside is not None:
            out = out + self.attention_beside(Q, branch.beside)
        if where is not None:
            out = out * where.to(out.dtype)
        return out * strength(branch, self.layer, out)

    def unconditional_branches(
        self, Q: Tensor, state: SubjectState, masks: Tensor | None, shares: Tensor | None
    ) -> Tensor | None:
        """The visual term of the rows without subjects (the unconditional half), or None where there is none.

        It is Σ_k λ_k · (where k is) · softmax(Q K_uᵀ/√d) V_u.
        Where k is, is what the other half of the same pictures says. Without masks here
        (`LocationConfig.mask_unconditional`), K subjects have an even part each: K_u is the same for all of them.
        """
        total, K = None, len(state.branches)
        for k, branch in enumerate((*state.branches, *state.everywhere)):
            if branch.unconditional is None or branch.absent(self.layer):
                continue
            out = self.attention_beside(Q, branch.unconditional)
            if k < K and state.location.mask_unconditional:
                where = self.where(state, k, masks, shares)
                out = out if where is None else out * where.to(out.dtype)
            elif K > 1 and k < K:
                out = out / K
            out = out * strength(branch, self.layer, out)
            total = out if total is None else total + out
        return total

    def attention_beside(self, Q: Tensor, pair: tuple[Sequence[Tensor], Sequence[Tensor]]) -> Tensor:
        """softmax(Q Kᵀ/√d) V of keys and values that are given for each layer, (R or 1, n, width_l)."""
        keys, values = (split_heads(x[self.layer].to(Q.dtype), Q.shape[1]).expand(len(Q), -1, -1, -1) for x in pair)
        return attend(Q, keys, values, slice_size=self.slice_size)

    def visual_attention(self, Q: Tensor, branch: SubjectBranch, explicit: bool) -> tuple[Tensor, Tensor | None]:
        """One subject's attention softmax(Q K_vᵀ/√d) V_v, (R, heads, h·w, c).

        Returns with it, if explicit, the weights on the subject's tokens (R, h·w, n), mean over heads.
        """
        R, heads = Q.shape[:2]
        K_v = split_heads(branch.keys[self.layer].to(Q.dtype), heads).expand(R, -1, -1, -1)
        V_v = split_heads(branch.values[self.layer].to(Q.dtype), heads).expand(R, -1, -1, -1)
        if not explicit:
            return attend(Q, K_v, V_v, slice_size=self.slice_size), None
        if torch.is_grad_enabled() and self.slice_size is None:  # in training one way is enough
            weights = probabilities(Q, K_v)
            out, seen = weights.to(V_v.dtype) @ V_v, weights.mean(dim=1)
        else:  # to the bit what it is without maps
            out, seen = attend(Q, K_v, V_v, slice_size=self.slice_size), head_mean(Q, K_v, self.slice_size)
        return out, seen[..., int(branch.sink) :]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Split the width into heads: (B, N, heads·c) -> (B, heads, N, c)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def probabilities(Q: Tensor, K: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention probabilities softmax(Q Kᵀ/√d + bias), (B, heads, N, S) in float32.

    Q: (B, heads, N, c), K: (B, heads, S, c), bias: (B, 1, 1, S).
    """
    logits = Q * Q.shape[-1] ** -0.5 @ K.transpose(-1, -2)
    return (logits if bias is None else logits + bias).softmax(dim=-1, dtype=torch.float32)


def attend(Q: Tensor, K: Tensor, V: Tensor, bias: Tensor | None = None, slice_size: int | None = None) -> Tensor:
    """Fused attention softmax(Q Kᵀ/√d + bias) V, (B, heads, N, c); slice_size heads of one row at a time.

    Q: (B, heads, N, c); K, V: (B, heads, S, c); bias: (B, 1, N, S).
    """
    if slice_size is None:
        return F.scaled_dot_product_attention(Q, K, V, attn_mask=bias)
    out = torch.empty_like(Q)
    for row, heads in _slices(Q, slice_size):
        mask = None if bias is None else bias[row]
        out[row, heads] = F.scaled_dot_product_attention(Q[row, heads], K[row, heads], V[row, heads], attn_mask=mask)
    return out


def head_mean(Q: Tensor, K: Tensor, slice_size: int | None = None, bias: Tensor | None = None) -> Tensor:
    """Mean of `probabilities` over the heads, (B, N, S); never more than slice_size heads of one row in memory."""
    if slice_size is None:
        return probabilities(Q, K, bias).mean(dim=1)
    total = torch.zeros(len(Q), Q.shape[2], K.shape[2], device=Q.device)
    for row, heads in _slices(Q, slice_size):
        own = None if bias is None else bias[row]
        total[row] += probabilities(Q[row, heads], K[row, heads], own).sum(dim=1)
    return total / Q.shape[1]


def _slices(Q: Tensor, slice_size: int) -> Iterator[tuple[slice, slice]]:
    """(row, heads) of each part of Q (B, heads, N, c)."""
    for row in range(Q.shape[0]):
        for head in range(0, Q.shape[1], slice_size):
            yield slice(row, row + 1), slice(head, head + slice_size)


def strength(branch: SubjectBranch, layer: int, like: Tensor) -> float | Tensor:
    """λ of a layer as a number, or as (R, 1, 1, 1) when every row has its own."""
    scale = 1.0 if branch.layer_scales is None else branch.layer_scales[layer]
    if not isinstance(branch.strength, Tensor):
        return branch.strength * scale
    return branch.strength.to(like)[:, None, None, None] * scale
