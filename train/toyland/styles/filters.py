"""Image-space building blocks of the styles; all take and give (n, c, S, S) in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from train.toyland.noise import blur, lattice, resample


def gray(x: Tensor) -> Tensor:
    return (x * torch.tensor((0.3, 0.59, 0.11), device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def saturate(x: Tensor, amount: float) -> Tensor:
    g = gray(x)
    return (g + (x - g) * amount).clamp(0, 1)


def warp(x: Tensor, seed: Tensor, key: int, cells: int, amount: float) -> Tensor:
    """Wobble a picture by smooth noise; amount in half picture heights."""
    s = x.shape[-1]
    offset = (resample(lattice(seed, key, cells + 1, cells + 1, 2), s) - 0.5) * (2.0 * amount)
    axis = (torch.arange(s, device=x.device) + 0.5) * (2.0 / s) - 1.0
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij")[::-1], -1)[None]
    return F.grid_sample(
        x, grid + offset.permute(0, 2, 3, 1), mode="bilinear", padding_mode="border", align_corners=False
    )


def contours(x: Tensor, radius: float) -> Tensor:
    """Strength of tonal borders (n, 1, S, S), resolution-free: difference of two blurs."""
    g = gray(x)
    return (blur(g, radius * 1.8) - blur(g, radius * 0.6)).clamp(min=0)
