"""Further styles: sepia, cartoon, neon, oil painting, halftone, mosaic, blueprint."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from train.toyland.noise import blur, lattice, smooth, step
from train.toyland.styles.filters import contours, gray, saturate, warp


def _color(x: Tensor, rgb: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rgb, device=x.device).view(1, 3, 1, 1)


def _axis(x: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel-centre coordinates in [0, 1] as (1, 1, 1, S) and (1, 1, S, 1)."""
    s = x.shape[-1]
    a = (torch.arange(s, device=x.device) + 0.5) / s
    return a.view(1, 1, 1, s), a.view(1, 1, s, 1)


def sepia(x: Tensor, a: Tensor, lines: Tensor | None, seed: Tensor) -> Tensor:
    """An old brown photograph, darker towards the corners."""
    u, v = _axis(x)
    g = gray(x) ** 0.95
    tone = _color(x, (0.20, 0.12, 0.06)) + g * _color(x, (0.80, 0.74, 0.60))
    vignette = 1.0 - 0.55 * step(0.42, 0.78, ((u - 0.5) ** 2 + (v - 0.5) ** 2).sqrt())
    return tone * vignette * (0.97 + 0.06 * smooth(seed, 1, 40, 40, x.shape[-1]))


def cartoon(x: Tensor, a: Tensor, lines: Tensor, seed: Tensor) -> Tensor:
    """Flat tones and black outlines."""
    unit = x.shape[-1] / 96.0
    y = saturate(blur(x, 0.5 * unit), 1.45)
    level = gray(y).clamp(min=0.04)
    steps = 4.0
    t = level * steps
    flat = (t.floor() + step(0.35, 0.65, t - t.floor())) / steps
    y = (y * (0.25 + 0.75 * (flat + 0.06) / level)).clamp(0, 1)
    ink = torch.maximum((lines * 1.35).clamp(0, 1), (contours(x, 0.7 * unit) * 5.0 - 0.28).clamp(0, 0.8))
    return y * (1.0 - ink) + 0.06 * ink


def neon(x: Tensor, a: Tensor, lines: Tensor, seed: Tensor) -> Tensor:
    """Glowing coloured tubes on a dark wall."""
    unit = x.shape[-1] / 96.0
    edge = torch.maximum((contours(x, 0.8 * unit) * 4.5 - 0.12).clamp(0, 0.75), lines)
    hue = saturate(blur(x, 1.6 * unit), 2.6)
    hue = hue / hue.amax(1, keepdim=True).clamp(min=0.12)
    u, v = _axis(x)
    wash = 0.5 + 0.5 * torch.sin(
        6.2832 * (u * 0.6 + v * 0.5 + 0.1) + torch.tensor((0.0, 2.1, 4.2), device=x.device).view(1, 3, 1, 1)
    )
    tube = 0.62 * hue + 0.38 * wash
    glow = blur(edge * tube, 2.6 * unit)
    base = x * _color(x, (0.10, 0.07, 0.17)) + _color(x, (0.03, 0.015, 0.07)) + 0.20 * x * a
    return base + 1.15 * edge * tube + 1.5 * glow + 0.3 * edge**3


def oil(x: Tensor, a: Tensor, lines: Tensor | None, seed: Tensor) -> Tensor:
    """Thick strokes: the least varied of four neighbouring patches (Kuwahara), lit along the brush."""
    s = x.shape[-1]
    r = max(1, round(s / 96.0))
    y = warp(x, seed, 1, 16, 0.010)
    k = 2 * r + 1
    wide = F.pad(y, (2 * r, 2 * r, 2 * r, 2 * r), mode="replicate")
    mean = F.avg_pool2d(wide, k, 1)  # (S + 2r): centres shifted by r
    spread = F.avg_pool2d(gray(wide) ** 2, k, 1) - gray(mean) ** 2
    best, low = mean[:, :, :s, :s], spread[:, :, :s, :s]
    for dy, dx in ((0, 2 * r), (2 * r, 0), (2 * r, 2 * r)):
        there = slice(dy, dy + s), slice(dx, dx + s)
        m, v = mean[:, :, *there], spread[:, :, *there]
        best, low = torch.where(v < low, m, best), torch.minimum(v, low)
    tone = gray(blur(x, s / 24.0)) * 6.0
    u, v = _axis(x)
    brush = torch.sin((u * tone.cos() + v * tone.sin()) * 210.0 + 12.0 * smooth(seed, 3, 14, 14, s))
    return saturate(0.8 * best + 0.2 * y, 1.35) * (1.0 + 0.085 * brush)


def halftone(x: Tensor, a: Tensor, lines: Tensor, seed: Tensor) -> Tensor:
    """A pop-art print: dots of ink on flat bright colour."""
    unit = x.shape[-1] / 96.0
    u, v = _axis(x)
    n = 20.0
    p, q = (u + v) * n * 0.7071, (u - v) * n * 0.7071
    dot = ((p - p.round()) ** 2 + (q - q.round()) ** 2).sqrt()
    y = saturate(blur(x, 0.7 * unit), 1.7)
    tone = gray(y)
    bright = (y / (tone + 0.25)).clamp(0, 1) * 0.62 + 0.38
    soft = 1.2 * n / x.shape[-1]
    ink = step(0.5 * soft, -0.5 * soft, dot - 0.66 * (1.0 - tone).clamp(0, 1) ** 0.9)
    out = bright * (1.0 - ink) + ink * (y * 0.55)
    return out * (1.0 - (lines * 1.2).clamp(0, 1)) + 0.05 * lines


def mosaic(x: Tensor, a: Tensor, lines: Tensor | None, seed: Tensor) -> Tensor:
    """Small tiles in pale grout, each of one colour."""
    s, cells = x.shape[-1], 32
    u, v = _axis(x)
    tiles = F.adaptive_avg_pool2d(saturate(x, 1.3), cells)
    tiles = tiles * (0.90 + 0.2 * lattice(seed, 1, cells, cells))
    fu, fv = (u * cells).remainder(1.0) - 0.5, (v * cells).remainder(1.0) - 0.5
    inset = torch.maximum(fu.abs(), fv.abs())
    soft = 1.2 * cells / s
    grout = step(0.45 - 0.5 * soft, 0.45 + 0.5 * soft, inset)
    y = F.interpolate(tiles, size=(s, s), mode="nearest")
    y = y * (1.0 + 0.16 * (-fu - fv))
    return y * (1.0 - 0.6 * grout) + 0.6 * grout * _color(x, (0.88, 0.86, 0.82))


def blueprint(x: Tensor, a: Tensor, lines: Tensor, seed: Tensor) -> Tensor:
    """White lines on squared blue paper."""
    unit = x.shape[-1] / 96.0
    u, v = _axis(x)
    edge = torch.maximum((contours(x, 0.8 * unit) * 4.5 - 0.12).clamp(0, 0.7), lines)
    grid = torch.minimum(((u * 12.0).remainder(1.0) - 0.5).abs(), ((v * 12.0).remainder(1.0) - 0.5).abs())
    rule = step(0.06, 0.0, grid - 0.02)
    base = _color(x, (0.08, 0.25, 0.56)) + 0.10 * rule + 0.16 * (gray(x) - 0.3) * (0.4 + 0.8 * a)
    base = base * (0.94 + 0.12 * smooth(seed, 1, 8, 8, x.shape[-1], 2))
    return base + (_color(x, (0.93, 0.96, 1.0)) - base) * edge
