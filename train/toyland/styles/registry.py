"""Image-space styles: what a finished picture goes through to become a watercolour, a sketch, pixel art …"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from train.toyland.noise import blur, smooth, step
from train.toyland.styles import more_styles as more
from train.toyland.styles.filters import contours, gray, saturate, warp


@dataclass(frozen=True)
class Style:
    """paint(picture (n,3,S,S), coverage of the toys and their lines (n,1,S,S), seeds (n,)) → (n,3,S,S)."""

    paint: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    lines: bool = False  # wants the toys' outlines


def photo(x: Tensor, a: Tensor, lines: Tensor | None, seed: Tensor) -> Tensor:
    return x


def watercolor(x: Tensor, a: Tensor, lines: Tensor | None, seed: Tensor) -> Tensor:
    s = x.shape[-1]
    unit = s / 96.0
    y = warp(x, seed, 1, 9, 0.022)
    y = 0.55 * blur(y, 1.1 * unit) + 0.45 * y
    y = y**0.8
    pigment = 1.0 + 0.34 * (smooth(seed, 2, 7, 7, s, 3) - 0.5)
    y = 1.0 - (1.0 - saturate(y, 1.18)) * (0.80 * pigment)
    rim = contours(y, 1.0 * unit)
    y = y * (1.0 - 2.0 * rim).clamp(0.55, 1)
    grain = 1.0 + 0.07 * (smooth(seed, 5, 40, 40, s, 1) - 0.5)
    axis = (torch.arange(s, device=x.device) + 0.5) * (2.0 / s) - 1.0
    frame = torch.maximum(axis.abs().view(1, 1, 1, s), axis.abs().view(1, 1, s, 1)) + 0.14 * (
        smooth(seed, 6, 8, 8, s, 2) - 0.5
    )
    paper = torch.tensor((0.985, 0.975, 0.945), device=x.device).view(1, 3, 1, 1)
    return (y + (paper - y) * step(0.86, 0.97, frame)) * grain


def sketch(x: Tensor, a: Tensor, lines: Tensor, seed: Tensor) -> Tensor:
    s = x.shape[-1]
    unit = s / 96.0
    g = gray(x)
    edge = (contours(x, 0.8 * unit) * 5.5 - 0.10).clamp(0, 1)
    tone = blur(g, 0.6 * unit)
    axis = (torch.arange(s, device=x.device) + 0.5) / s
    u = axis.view(1, 1, 1, s) + axis.view(1, 1, s, 1)
    wobble = 0.012 * (smooth(seed, 1, 8, 8, s) - 0.5)
    hatch = 0.5 + 0.5 * torch.sin((u + wobble) * 6.2832 * 17.0)
    dark = (0.80 - tone).clamp(0, 1)
    ink = 0.55 * dark * (0.55 + 0.75 * hatch) + 0.12 * (1.0 - tone)
    ink = ink * (0.55 + 0.75 * a)
    ink = torch.maximum(ink, (0.72 + 0.2 * a) * edge)
    ink = torch.maximum(ink, 0.92 * lines)
    ink = ink * (0.86 + 0.28 * (smooth(seed, 2, 30, 30, s) - 0.5))
    paper = torch.tensor((0.97, 0.96, 0.94), device=x.device).view(1, 3, 1, 1)
    lead = torch.tensor((0.17, 0.17, 0.20), device=x.device).view(1, 3, 1, 1)
    return paper + (lead - paper) * ink.clamp(0, 0.95)


def pixel_art(x: Tensor, a: Tensor, lines: Tensor | None, seed: Tensor) -> Tensor:
    s = x.shape[-1]
    cells = 32
    small = F.adaptive_avg_pool2d(x, cells)
    cover = F.adaptive_avg_pool2d(a, cells)
    small = saturate(small, 1.25)
    small = (small * 7.0).round() / 7.0
    near = F.max_pool2d((cover > 0.5).float(), 3, 1, 1) - (cover > 0.5).float()
    small = small * (1.0 - 0.55 * near)
    return F.interpolate(small, size=(s, s), mode="nearest")


STYLES: dict[str, Style] = {
    "photo": Style(photo),
    "watercolor": Style(watercolor),
    "sketch": Style(sketch, lines=True),
    "pixel art": Style(pixel_art),
    "sepia": Style(more.sepia),
    "cartoon": Style(more.cartoon, lines=True),
    "neon": Style(more.neon, lines=True),
    "oil painting": Style(more.oil),
    "halftone": Style(more.halftone, lines=True),
    "mosaic": Style(more.mosaic),
    "blueprint": Style(more.blueprint, lines=True),
}


def apply(names: Sequence[str], x: Tensor, a: Tensor, lines: Tensor | None, seed: Tensor) -> Tensor:
    """Each picture (n, 3, S, S) in its own style, a name for each.

    a: coverage of the toys (n, 1, S, S). lines: their outlines, likewise; None where none of these styles wants them.
    """
    out = x
    for name in dict.fromkeys(names):
        if name == "photo":
            continue
        at = torch.tensor([i for i, s in enumerate(names) if s == name], device=x.device)
        outlines = torch.zeros_like(a[at]) if lines is None else lines[at]
        out = out.index_copy(0, at, STYLES[name].paint(x[at], a[at], outlines, seed[at]).clamp(0, 1))
    return out
