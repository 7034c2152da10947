"""Where in the references a visual token comes from: attention rollout through the MFI encoder.

A visual token of Eq. 3 is made of textual and visual features, and these of image tokens, each time by attention
(Eq. 2). Followed back, this gives each token a distribution over the reference's patches: with A averaged over heads
and the residual counted as half (attention rollout, Abnar & Zuidema 2020), a block takes the sources S of its queries
to ½ S + ½ (A_f S_f + A_q S), where A_f, A_q are its weights on the features and on the queries. Learnt queries start
without a source. CLIP's class token has no place, so its part is left out; then each row is scaled to sum 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from customcontrast.encoder.mfi import MFIEncoder
from customcontrast.encoder.perceiver import PerceiverBlock


@torch.no_grad()
def token_sources(encoder: MFIEncoder, f_I: Tensor, t: Tensor, references: int) -> Tensor:
    """Origin of each visual token among the reference's patches, for every layer and at timesteps t.

    f_I: one subject's (1, references · 3N, d), N = 1 + patches of a reference; t: (B,).
    Returns (B, L, n, references, patches), every row (…, references, patches) summing to 1; m for n without TV Fusion.
    """
    c = encoder.config
    q_v = encoder.visual_queries(1)
    S_v = _rollout(encoder.visual_qformer.blocks, f_I, q_v, None, None)[:, :, :-1]
    if not c.tv_fusion:
        return _on_patches(S_v, references, len(c.image_layers)).expand(len(t), c.num_layers, -1, -1, -1)
    q_t = encoder.text_queries(t)
    B, L, count, d = q_t.shape
    q_t = q_t.reshape(1, B * L, count, d)
    S_t = _rollout(encoder.text_qformer.blocks, f_I, q_t, None, None)[:, :, :-1]
    f_v = encoder.visual(f_I)[0]
    f_t = encoder.text_qformer(f_I, q_t)[:, :, :-1]
    S_v, S_t = (_on_patches(S, references, len(c.image_layers)).flatten(-2) for S in (S_v, S_t))
    if isinstance(encoder.tv_fusion, PerceiverBlock):
        S = _rollout([encoder.tv_fusion], f_v, f_t, S_v[:, 0], S_t)
    else:  # attention alone: nothing goes past it
        A_v, A_t = (weights.float().mean(dim=1) for weights in encoder.tv_fusion.weights(f_v, f_t))
        S = A_v @ S_v[:, :1] + (A_t @ S_t if c.fusion_values else 0)
    return S.reshape(B, L, count - 1, references, -1)


def _rollout(
    blocks: Sequence[PerceiverBlock], f: Tensor, q: Tensor, of_f: Tensor | None, of_q: Tensor | None
) -> Tensor:
    """Sources of the queries after the blocks. f: (B, N, d); q: (B, R, n, d).

    of_f: sources of the features (B, N, P), None = each is its own; of_q: of the queries (B, R, n, P), None = none yet.
    Returns (B, R, n, P).
    """
    S = of_q
    for block in blocks:
        A_f, A_q = (weights.float().mean(dim=1) for weights in block.attention.weights(f, q))  # (B, R, n, N), (…, n)
        seen = A_f if of_f is None else A_f @ of_f[:, None]
        S = 0.5 * seen if S is None else 0.5 * (S + seen + A_q @ S)
        q = block(f, q)
    assert S is not None  # there is at least one block: EncoderConfig's depth is 1 or more
    return S


def _on_patches(S: Tensor, references: int, layers: int) -> Tensor:
    """Sources over image tokens (…, references · layers · (1 + patches)) -> over patches (…, references, patches)."""
    S = S.unflatten(-1, (references, layers, -1)).sum(dim=-2)[..., 1:]
    return S / S.sum(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(S.dtype).tiny)
