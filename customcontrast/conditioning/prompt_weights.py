"""Prompt weights, "(word:1.3)": how far the contexts of some tokens lie from those of the empty prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from customcontrast.conditioning.text_context import TextContext


def weighted(context: TextContext, weights: Sequence[float], empty: TextContext) -> TextContext:
    """Apply prompt weights: C'_s = C_∅,s + w_s (C_s − C_∅,s) for every token s; w_s = 1 changes no bit.

    context: C(t, l), (B, L, S, d_text), S* included. weights: w_s of at least S tokens. empty: C_∅ of the empty prompt,
    (1, 1, S', d_text); where it is shorter, for a base that reads no padding, its last token stands for the rest.
    The pooled text of SDXL stays as it is. The rule is compel's for w_s ≥ 1, and ComfyUI's for all of them.
    """
    tokens = context.hidden.shape[2]
    w = torch.tensor(weights[:tokens]).to(context.hidden)[:, None]
    nothing = empty.hidden[:, :, :tokens]
    nothing = torch.cat([nothing, nothing[:, :, -1:].expand(-1, -1, tokens - nothing.shape[2], -1)], dim=2)
    return replace(context, hidden=torch.lerp(nothing.expand_as(context.hidden), context.hidden, w))
