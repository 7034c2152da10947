"""Eq. 2: PerceiverAttention, and the block that a Q-Former is made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PerceiverAttention(nn.Module):
    """Eq. 2: `PA(f, q) = softmax(Q Kᵀ/√d) V` with `Q = W_q q`, `K = W_k [f, q]`, `V = W_v [f, q]`.

    Queries come in R rows that share one f: the rows of all (t, l) attend in a single pass, and the keys and
    values of f are computed once for all of them. Queries of different rows never see each other.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_f = nn.LayerNorm(width)
        self.norm_q = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, f: Tensor, q: Tensor) -> Tensor:
        """f: features (B, N, d); q: queries (B, R, n, d) -> (B, R, n, d), before the residual."""
        B, R, n, d = q.shape
        h, c = self.heads, d // self.heads
        f, q = self.norm_f(f), self.norm_q(q)

        Q = self.to_q(q).view(B, R, n, h, c).permute(0, 3, 1, 2, 4)  # (B, h, R, n, c)
        K_f, V_f = (w(f).view(B, -1, h, c).transpose(1, 2) for w in (self.to_k, self.to_v))  # (B, h, N, c)
        K_q, V_q = (w(q).view(B, R, n, h, c).permute(0, 3, 1, 2, 4) for w in (self.to_k, self.to_v))

        Q = Q * c**-0.5
        on_f = (Q.reshape(B, h, R * n, c) @ K_f.transpose(-1, -2)).view(B, h, R, n, -1)
        on_q = Q @ K_q.transpose(-1, -2)  # (B, h, R, n, n)
        weights = torch.cat([on_f, on_q], dim=-1).softmax(dim=-1)
        on_f, on_q = weights.split([on_f.shape[-1], n], dim=-1)

        out = (on_f.reshape(B, h, R * n, -1) @ V_f).view(B, h, R, n, c) + on_q @ V_q
        return self.to_out(out.permute(0, 2, 3, 1, 4).reshape(B, R, n, d))


class PerceiverBlock(nn.Module):
    """(PA, feed-forward), pre-norm, residual."""

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
        """f: (B, N, d); q: (B, R, n, d) -> (B, R, n, d)."""
        q = q + self.attention(f, q)
        return q + self.feedforward(q)


class QFormer(nn.Module):
    """A stack of PerceiverBlocks and a closing LayerNorm (section 3.2: 4 blocks by default)."""

    def __init__(self, width: int, heads: int, depth: int, feedforward: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PerceiverBlock(width, heads, feedforward) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, f: Tensor, q: Tensor) -> Tensor:
        """f: (B, N, d); q: (B, R, n, d) -> (B, R, n, d)."""
        for block in self.blocks:
            q = block(f, q)
        return self.norm(q)
