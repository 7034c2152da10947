"""What stands or floats in several places: clouds, palms, firs, cacti."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from train.toyland.backgrounds.canvas import Canvas, Color
from train.toyland.noise import step


def clouds(c: Canvas, sky: Tensor, key: int, amount: float = 0.5, color: Color = (1.0, 1.0, 1.0)) -> Tensor:
    """Puffy clouds in the upper sky."""
    n = c.noise(key, 5, 4, 3)
    high = step(0.1, 0.5, c.y - c.horizon)
    cover = step(0.56, 0.74, n + 0.12 * (amount - 0.5)) * high
    shade = 1.0 - 0.12 * step(0.6, 0.9, n)
    return c.over(
        sky,
        torch.ones_like(sky) * torch.tensor(color, device=c.device).view(1, 3, 1, 1) * shade[:, None],
        0.85 * cover,
    )


def palm(c: Canvas, base: Tensor, key: int, foot: Tensor, side: Tensor) -> Tensor:
    """A palm tree on one side (side = ±1, (n,1,1))."""
    x0 = side * c.rand(key, 0.62, 0.82)
    top = c.rand(key + 1, 0.42, 0.62)
    t = ((c.y - foot) / (top - foot)).clamp(0, 1)
    lean = -side * 0.16 * t * t
    ring = 0.86 + 0.14 * torch.sin(t * 46.0)
    trunk = c.edge((c.x - x0 - lean).abs() - (0.052 - 0.02 * t)) * ((c.y > foot) & (c.y < top))
    shade = (0.75 + 0.35 * ((c.x - x0 - lean) / 0.1)).clamp(0.5, 1.05) * ring
    brown = torch.tensor((0.58, 0.40, 0.24), device=c.device).view(1, 3, 1, 1)
    out = c.over(base, brown * shade[:, None], trunk)
    hx, hy = x0 - side * 0.16, top
    greens = ((0.13, 0.45, 0.22), (0.20, 0.58, 0.27), (0.30, 0.70, 0.32))
    for i in range(8):
        a = math.pi * (-0.18 + 1.36 * i / 7.0)
        long = 0.44 if i not in (3, 4) else 0.36
        ux, uy = math.cos(a), math.sin(a)
        dx, dy = c.x - hx, c.y - hy
        u = (dx * ux + dy * (uy * 0.6)) / (ux * ux + 0.6 * uy * uy + 1e-6) ** 0.5
        t = (u / long).clamp(0, 1)
        curve = uy * 0.55 * u - 0.85 * u * u * (0.4 + abs(ux))
        along = dx - ux * u
        d = (dy - curve).abs() if abs(ux) > 0.35 else along.abs()
        width = 0.062 * (4 * t * (1 - t)).clamp(min=0).sqrt() + 0.004
        out = c.over(out, greens[(i * 2) % 3], c.edge(d - width) * ((u > 0) & (u < long)))
    for left_right in (-1.0, 1.0):
        out = c.over(out, (0.42, 0.27, 0.15), c.disc(hx + left_right * 0.035, hy - 0.03, 0.035))
    return out


def pine(c: Canvas, base: Tensor, x: Tensor, foot: Tensor, tall: Tensor, snow: float) -> Tensor:
    """A three-tier fir tree with snow on it."""
    out = c.over(
        base,
        (0.38, 0.27, 0.20),
        c.edge((c.x - x).abs() - 0.03 * tall / 0.5) * ((c.y > foot - 0.02) & (c.y < foot + 0.2)),
    )
    for i in range(3):
        y0, y1 = foot + tall * (0.12 + 0.26 * i), foot + tall * (0.56 + 0.22 * i)
        half = tall * (0.34 - 0.075 * i)
        t = ((c.y - y0) / (y1 - y0)).clamp(0, 1)
        d = ((c.x - x).abs() - half * (1 - t)) * 0.8
        inside = c.edge(d) * c.edge(y0 - c.y) * (c.y < y1)
        shade = 0.85 + 0.6 * ((c.x - x) / half).clamp(-0.5, 0.5)
        green = torch.tensor((0.13, 0.42, 0.32), device=c.device).view(1, 3, 1, 1) * shade[:, None]
        out = c.over(out, green, inside)
        cap = inside * step(0.42, 0.62, t + 0.25 * ((c.x - x) / half))
        out = c.over(out, (0.95, 0.98, 1.0), snow * cap)
    return out


def cactus(c: Canvas, base: Tensor, x: Tensor, foot: Tensor, tall: Tensor) -> Tensor:
    w = tall * 0.105

    def bar(x0: Tensor, y0: Tensor, y1: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        dy = c.y - torch.minimum(torch.maximum(c.y, y0), y1)
        d = ((c.x - x0) ** 2 + dy**2).sqrt() - r
        return c.edge(d), ((c.x - x0) / r)

    out = base
    parts = (
        (x, foot, foot + tall, w),
        (x - tall * 0.27, foot + tall * 0.45, foot + tall * 0.72, w * 0.72),
        (x + tall * 0.25, foot + tall * 0.36, foot + tall * 0.60, w * 0.72),
    )
    for x0, y0, y1, r in parts:
        link = c.edge((c.y - y0).abs() - r * 0.9) * (((c.x - x) * (c.x - x0)) < 0)
        out = c.over(out, (0.20, 0.50, 0.26), link)
        inside, u = bar(x0, y0, y1, r)
        green = torch.tensor((0.27, 0.62, 0.32), device=c.device).view(1, 3, 1, 1)
        out = c.over(out, green * (0.88 + 0.2 * u.clamp(-1, 1) + 0.1 * torch.cos(u * 9.0))[:, None], inside)
    return out
