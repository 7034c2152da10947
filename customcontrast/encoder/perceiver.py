"""Eq. 2: PerceiverAttention, and the block that a Q-Former is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from customcontrast.precision import lowered


class PerceiverAttention(nn.Module):
    """Attention of queries to features and themselves, Eq. 2.

    `PA(f, q) = softmax(Q Kᵀ/√d) V` with `Q = W_q q`, `K = W_k [f, q]`, `V = W_v [f, q]`.

    Queries come in R rows that share one f: the rows of all (t, l) attend in a single pass, and the keys and
    values of f are computed once for all of them. Queries of different rows never see each other.
    """

    def __init__(self, width: int, heads: int, queries_as_values: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.queries_as_values = queries_as_values  # False: K = W_k f, V = W_v f
        self.norm_f = nn.LayerNorm(width)
        self.norm_q = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, f: Tensor, q: Tensor) -> Tensor:
        """Attend from queries q (B, R, n, d) to features f (B, N, d): (B, R, n, d), before the residual."""
        B, R, n, d = q.shape
        h, c = self.heads, d // self.heads
        f, q = self.norm_f(f), self.norm_q(q)
        on_f, on_q = self._weights(f, q)
        V_f = self.to_v(f).view(B, -1, h, c).transpose(1, 2)  # (B, h, N, c)
        out = (on_f.reshape(B, h, R * n, -1) @ V_f).view(B, h, R, n, c)
        if self.queries_as_values:
            out = out + on_q @ self.to_v(q).view(B, R, n, h, c).permute(0, 3, 1, 2, 4)  # V_q (B, h, R, n, c)
        return self.to_out(out.permute(0, 2, 3, 1, 4).reshape(B, R, n, d))

    def attend(self, K_f: Tensor, V_f: Tensor, q: Tensor) -> Tensor:
        """`forward` for keys and values of f that are there already (`keys_and_values`), each (B, h, N, c).

        The weights on features and queries stay in one tensor, which is multiplied by V_f with zeros in the places of
        the queries: no part of it is copied, forward or backward.
        """
        B, R, n, d = q.shape
        h, c = self.heads, d // self.heads
        q = lowered(self.norm_q(q))
        Q, K_q, V_q = (
            project(q).view(B, R, n, h, c).permute(0, 3, 1, 2, 4) for project in (self.to_q, self.to_k, self.to_v)
        )
        Q = Q * c**-0.5
        on_f = (Q.reshape(B, h, R * n, c) @ K_f.transpose(-1, -2)).view(B, h, R, n, -1)
        both = torch.cat([on_f, Q @ K_q.transpose(-1, -2)], dim=-1).softmax(dim=-1)
        out = (both.view(B, h, R * n, -1) @ F.pad(V_f, (0, 0, 0, n))).view(B, h, R, n, c)
        out = out + both[..., on_f.shape[-1] :] @ V_q
        return self.to_out(out.permute(0, 2, 3, 1, 4).reshape(B, R, n, d))

    def weights(self, f: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Attention weights of every head: on the features (B, h, R, n, N), on the row's queries (B, h, R, n, n)."""
        return self._weights(self.norm_f(f), self.norm_q(q))

    def _weights(self, f: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        B, R, n, d = q.shape
        h, c = self.heads, d // self.heads
        Q = self.to_q(q).view(B, R, n, h, c).permute(0, 3, 1, 2, 4) * c**-0.5  # (B, h, R, n, c)
        K_f = self.to_k(f).view(B, -1, h, c).transpose(1, 2)  # (B, h, N, c)
        on_f = (Q.reshape(B, h, R * n, c) @ K_f.transpose(-1, -2)).view(B, h, R, n, -1)
        if not self.queries_as_values:
            return on_f.softmax(dim=-1), on_f.new_zeros(B, h, R, n, 0)
        K_q = self.to_k(q).view(B, R, n, h, c).permute(0, 3, 1, 2, 4)
        both = torch.cat([on_f, Q @ K_q.transpose(-1, -2)], dim=-1).softmax(dim=-1)
        return both[..., : on_f.shape[-1]], both[..., on_f.shape[-1] :]


class PerceiverBlock(nn.Module):
    """One block of a Q-Former: PerceiverAttention, then a feed-forward part, each pre-norm and residual."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.attention = PerceiverAttention(width, heads)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, feedforward * width),
            nn.GELU(),
            nn.Linear(feedforward * width, width),
        )

    def forward(self, f: Tensor, q: Tensor) -> Tensor:
        """Update queries q (B, R, n, d) by features f (B, N, d)."""
        q = q + self.attention(f, q)
        return q + self.feedforward(q)

    def attend(self, K_f: Tensor, V_f: Tensor, q: Tensor) -> Tensor:
        """`forward` for keys and values of f that are there already."""
        q = q + self.attention.attend(K_f, V_f, q)
        return q + self.feedforward(q)


class QFormer(nn.Module):
    """A stack of PerceiverBlocks and a closing LayerNorm (section 3.2: 4 blocks by default)."""

    def __init__(self, width: int, heads: int, depth: int, feedforward: int) -> None:
        super().__init__()
        blocks = nn.ModuleList(PerceiverBlock(width, heads, feedforward) for _ in range(depth))
        self.blocks = cast("Sequence[PerceiverBlock]", blocks)
        self.norm = nn.LayerNorm(width)

    def forward(self, f: Tensor, q: Tensor) -> Tensor:
        """Update queries q (B, R, n, d) by features f (B, N, d).

        With gradients, in training, keys and values of f are made for all blocks at once: the same up to rounding.
        """
        if torch.is_grad_enabled() and len(f) == len(q):
            pairs = keys_and_values([block.attention for block in self.blocks], f)
            for block, (K_f, V_f) in zip(self.blocks, pairs, strict=True):
                q = block.attend(K_f, V_f, q)
            return self.norm(q)
        for block in self.blocks:
            q = block(f, q)
        return self.norm(q)


def keys_and_values(attentions: Sequence[PerceiverAttention], f: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of features f (B, N, d) for several attentions of the same width, in a single product.

    W (γ ∘ f̂ + β) = (W ∘ γ) f̂ + W β, and f̂, the features before the affine part of a norm, is the same in all of them.
    Returns (K_f, V_f) of each, (B, h, N, c).
    """
    first = attentions[0]
    f_hat = lowered(F.layer_norm(f, (f.shape[-1],), eps=first.norm_f.eps))
    weights = [linear.weight for a in attentions for linear in (a.to_k, a.to_v)]
    norms = [a.norm_f for a in attentions for _ in range(2)]
    W = torch.cat([w * norm.weight for w, norm in zip(weights, norms, strict=True)])
    b = torch.cat([w @ norm.bias for w, norm in zip(weights, norms, strict=True)])
    heads = F.linear(f_hat, W, b.to(W.dtype)).unflatten(-1, (2 * len(attentions), first.heads, -1))
    both = heads.permute(2, 0, 3, 1, 4).unbind()  # one gradient for all, where indices would make one each
    return list(zip(both[::2], both[1::2], strict=True))
