"""Deterministic randomness on any device: integer hashes, smooth lattice noise, soft edges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def hash01(*keys: Tensor | int) -> Tensor:
    """Uniform numbers in [0, 1) from integer keys (int64, broadcasting); the same on every device."""
    h: Tensor | int = 0x2545F491
    for k in keys:
        h = (h ^ k) & 0xFFFFFFFF
        h = (h * 0x9E3779B1) & 0xFFFFFFFF
        h = h ^ (h >> 15)
        h = (h * 0x85EBCA6B) & 0xFFFFFFFF
        h = h ^ (h >> 13)
    if not isinstance(h, Tensor):
        raise TypeError("hash01 needs at least one tensor key; pass torch.tensor(seed)")
    return (h & 0xFFFFFF).to(torch.float32) / float(1 << 24)


def lattice(seed: Tensor, key: int, rows: int, cols: int, channels: int = 1) -> Tensor:
    """(n, channels, rows, cols) uniform numbers from per-picture seeds (n,)."""
    i = torch.arange(channels * rows * cols, device=seed.device)
    return hash01(seed[:, None], torch.tensor(key, device=seed.device), i[None]).view(-1, channels, rows, cols)


def smooth(seed: Tensor, key: int, rows: int, cols: int, size: int, octaves: int = 1) -> Tensor:
    """Value noise (n, 1, size, size) in about [0, 1], the same picture at any `size`."""
    total, weight = torch.zeros((), device=seed.device), 0.0
    for o in range(octaves):
        grid = lattice(seed, key + 101 * o, (rows << o) + 1, (cols << o) + 1)
        w = 0.5**o
        total = total + w * resample(grid, size)
        weight += w
    return total / weight


def resample(grid: Tensor, size: int) -> Tensor:
    """Smooth enlargement of a lattice (n, c, h, w) to (n, c, size, size), sampled at pixel centres."""
    h, w = grid.shape[-2:]

    def axis(count: int) -> Tensor:
        p = (torch.arange(size, device=grid.device) + 0.5) / size * (count - 1)
        i = p.floor().clamp(0, count - 2)
        f = p - i
        f = f * f * (3.0 - 2.0 * f)
        m = torch.zeros(size, count, device=grid.device)
        m.scatter_(1, i.long()[:, None], (1.0 - f)[:, None])
        m.scatter_(1, i.long()[:, None] + 1, f[:, None])
        return m

    return axis(h) @ grid @ axis(w).T


def step(edge0: float, edge1: float, x: Tensor) -> Tensor:
    """Smooth 0 → 1 between edge0 and edge1."""
    t = ((x - edge0) / (edge1 - edge0)).clamp(0, 1)
    return t * t * (3.0 - 2.0 * t)


def blur(x: Tensor, radius: float) -> Tensor:
    """Separable Gaussian-like blur of (n, c, H, W); radius (the sigma) in pixels, edges replicated."""
    if radius < 0.3:
        return x
    r = max(1, int(2.0 * radius + 0.5))
    k = torch.exp(-0.5 * (torch.arange(-r, r + 1, device=x.device) / radius) ** 2)
    k = (k / k.sum()).to(x.dtype)
    n, c, h, w = x.shape
    y = x.reshape(n * c, 1, h, w)
    y = F.conv2d(F.pad(y, (r, r, 0, 0), mode="replicate"), k.view(1, 1, 1, -1))
    y = F.conv2d(F.pad(y, (0, 0, r, r), mode="replicate"), k.view(1, 1, -1, 1))
    return y.view(n, c, h, w)
