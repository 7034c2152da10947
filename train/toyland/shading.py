"""Paint and light on the toys: object-space patterns, wrapped diffuse, highlight, rim, creases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from train.toyland.geometry import GROUND_Y, Hits, Table, view_matrix
from train.toyland.noise import hash01, step

if TYPE_CHECKING:
    from train.toyland.backgrounds.scenes import Background
    from train.toyland.scene import ToyScene


@dataclass
class Surface:
    """What does not depend on the light, per covered sample (N in all)."""

    albedo: Tensor  # (N, 3)
    normal: Tensor  # (N, 3) view space
    gloss: Tensor  # (N,)
    glow: Tensor  # (N,)
    crease: Tensor  # (N,) 0..1, 1 = open to the sky


def surface(table: Table, hits: Hits, scenes: Sequence[ToyScene], g: int, fine: int) -> Surface:
    """Albedo with patterns, and ambient occlusion from the depth buffer and the height above the ground."""
    rows = table.rows[hits.prim]
    mark = pattern(table.pattern[hits.prim], hits.local * rows[:, 13:16], fine) * rows[:, 22]
    albedo = rows[:, 16:19] + (rows[:, 19:22] - rows[:, 16:19]) * mark[:, None]
    return Surface(albedo, hits.normal, rows[:, 23], rows[:, 24], _open(hits, scenes, g, fine))


def pattern(code: Tensor, p: Tensor, fine: int) -> Tensor:
    """Share of the mark colour (N,) at object-space points p (N, 3); code (N, 4) from bodies.pattern_code."""
    kind, freq = code[:, 0], code[:, 1]
    out = torch.zeros_like(kind)
    soft = 3.0 / fine * 9.0
    for value, paint in ((1.0, _stripes), (2.0, _spots), (3.0, _patches)):
        at = (kind == value).nonzero()[:, 0]
        if at.numel():
            out[at] = paint(p[at] * freq[at, None], code[at, 2:], soft)
    return out


def _stripes(p: Tensor, shift: Tensor, soft: float) -> Tensor:
    wave = torch.sin(p[:, 1] * 42.0 + shift[:, 0] + 0.9 * torch.sin(p[:, 0] * 13.0 + shift[:, 1]))
    return step(-0.5 * soft, 0.5 * soft, wave - 0.1)


def _spots(p: Tensor, shift: Tensor, soft: float) -> Tensor:
    cell = 0.135
    q = p / cell + shift.repeat(1, 2)[:, :3]
    i = q.floor()
    f = q - i
    k = i.long()
    key = k[:, 0] * 73856093 ^ k[:, 1] * 19349663 ^ k[:, 2] * 83492791
    jitter = torch.stack([hash01(key & 0xFFFFFFF, n) for n in (1, 2, 3)], 1)
    d = torch.linalg.norm(f - 0.5 - 0.12 * (jitter - 0.5), dim=1)
    return step(0.43, 0.43 - 0.35 * soft, d)


def _patches(p: Tensor, shift: Tensor, soft: float) -> Tensor:
    a, b = shift[:, 0], shift[:, 1]
    x, y, z = p[:, 0] * 15.0, p[:, 1] * 15.0, p[:, 2] * 15.0
    n = (
        torch.sin(x + a) * torch.cos(y * 0.9 + b)
        + torch.sin(y * 0.8 + 1.7 * a) * torch.cos(z + b)
        + torch.sin(z * 0.9 + x * 0.4 + a + b)
    )
    return step(0.32 - 0.5 * soft, 0.32 + 0.5 * soft, n)


def _open(hits: Hits, scenes: Sequence[ToyScene], g: int, fine: int) -> Tensor:
    """Ambient visibility (N,): nearer neighbours and the ground take light away."""
    have = torch.isfinite(hits.depth)
    z = torch.where(have, hits.depth, torch.zeros_like(hits.depth))
    pool = max(2, fine // 48)
    zs = F.avg_pool2d(torch.stack((z, have.float()), 1), pool)
    zs = F.avg_pool2d(zs, 5, stride=1, padding=2, count_include_pad=False)
    zs = F.interpolate(zs, size=(fine, fine), mode="bilinear", align_corners=False)
    mean = (zs[:, 0] / zs[:, 1].clamp(min=1e-3)).reshape(-1)[hits.pixel]
    own = hits.depth.reshape(-1)[hits.pixel]
    crease = 1.0 - 0.62 * step(0.0, 0.16, mean - own - 0.012)
    y = 1.0 - (torch.div(hits.pixel % (fine * fine), fine, rounding_mode="floor").float() + 0.5) * (2.0 / fine)
    e = torch.tensor([math.radians(s.elevation) for s in scenes], device=y.device)
    e = e[torch.div(hits.pixel, fine * fine, rounding_mode="floor")]
    height = (y - GROUND_Y) * e.cos() + own * e.sin()
    return crease * (0.72 + 0.28 * step(-0.02, 0.24, height))


def shade(s: Surface, part: slice, place: Background, scene: ToyScene) -> Tensor:
    """Colours (n, 3) of the samples in `part`, in the light of the place and the scene."""
    n = s.normal[part]
    device = n.device
    a, e = math.radians(scene.light[0]), math.radians(scene.light[1])
    view = torch.tensor(view_matrix(scene.elevation), dtype=torch.float32, device=device)
    world = torch.tensor((math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)), device=device)
    light = view @ world
    up = view[:, 1]
    key, sky, earth = (torch.tensor(v, device=device) for v in (place.key, place.sky, place.earth))
    albedo, crease = s.albedo[part], s.crease[part][:, None]
    wrap = ((n @ light) * 0.62 + 0.38).clamp(min=0)[:, None]
    hemi = ((n @ up) * 0.5 + 0.5)[:, None]
    ambient = earth + (sky - earth) * hemi
    lit = albedo * (0.50 * crease * ambient + 0.74 * (0.35 + 0.65 * crease) * wrap * key)
    half = F.normalize(light + torch.tensor((0.0, 0.0, 1.0), device=device), dim=0)
    shine = (n @ half).clamp(min=0) ** 26
    rim = (1.0 - n[:, 2].clamp(0, 1)) ** 3
    lit = lit + (0.5 * s.gloss[part] * shine)[:, None] * key + (0.13 * rim)[:, None] * sky * crease * (0.4 + albedo)
    glow = s.glow[part][:, None]
    lit = lit * (1.0 - glow) + albedo * glow
    amount, veil = place.haze
    if amount:
        lit = lit + (torch.tensor(veil, device=device) - lit) * amount
    return lit.clamp(0, 1)
