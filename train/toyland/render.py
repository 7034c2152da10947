"""Scenes to pictures: one batched renderer for CPU and GPU, deterministic, at any resolution.

geometry (shared by all scenes with the same placements, camera and light direction) → shading in the light of
the place → painted background with cast shadows → style. Masks come from the same samples as the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.toyland.backgrounds.canvas import Canvas
from train.toyland.backgrounds.scenes import BACKGROUNDS
from train.toyland.geometry import GROUND_Y, Hits, Table, build_table, intersect, view_matrix, windows
from train.toyland.noise import blur, step
from train.toyland.scene import ToyScene
from train.toyland.shading import Surface, shade, surface
from train.toyland.styles import registry

CPU_CHUNK, GPU_CHUNK = 4, 128  # geometries rendered together


@dataclass
class Rendered:
    """A batch of rendered pictures and their exact masks."""

    images: Tensor  # uint8 (B, 3, H, W)
    masks: Tensor  # bool (B, K, H, W): visible pixels of placement k with what it wears; disjoint over k
    accessories: Tensor  # bool (B, K, H, W): the part of masks that is the accessory


def render(scenes: Sequence[ToyScene], size: int, device: str | torch.device = "cpu", supersample: int = 2) -> Rendered:
    """Render a batch of scenes.

    size: height = width in pixels, ≥ 8. supersample: samples per pixel and axis. Scenes that share placements, camera
    and light direction are intersected once. A scene's picture does not depend on the others in the batch.
    Raises ValueError for an empty batch, a size under 8, or a background or style that does not exist.
    """
    if not scenes:
        raise ValueError("scenes is empty; pass at least one ToyScene")
    if size < 8:
        raise ValueError(f"size is {size}; pass at least 8 pixels")
    for scene in scenes:
        _check(scene)
    device = torch.device(device)
    keys: dict[tuple, list[int]] = {}
    for i, s in enumerate(scenes):
        keys.setdefault((s.placements, s.elevation, s.light), []).append(i)
    groups = list(keys.values())
    k = max(len(s.placements) for s in scenes)
    b = len(scenes)
    images = torch.empty(b, 3, size, size, dtype=torch.uint8, device=device)
    masks = torch.zeros(b, k, size, size, dtype=torch.bool, device=device)
    wear = torch.zeros(b, k, size, size, dtype=torch.bool, device=device)
    chunk = CPU_CHUNK if device.type == "cpu" else GPU_CHUNK
    with torch.inference_mode():
        for start in range(0, len(groups), chunk):
            part = groups[start : start + chunk]
            index = [i for g in part for i in g]
            which = [n for n, g in enumerate(part) for _ in g]
            geometry = [scenes[g[0]] for g in part]
            picture, mask, worn = _chunk([scenes[i] for i in index], which, geometry, size, device, supersample, k)
            at = torch.tensor(index, device=device)
            images[at], masks[at], wear[at] = picture, mask, worn
    return Rendered(images, masks, wear)


def _check(scene: ToyScene) -> None:
    if scene.background not in BACKGROUNDS:
        raise ValueError(f"background is {scene.background!r}; choose one of {', '.join(BACKGROUNDS)}")
    if scene.style not in registry.STYLES:
        raise ValueError(f"style is {scene.style!r}; choose one of {', '.join(registry.STYLES)}")


def render_variants(
    scene: ToyScene, looks: Sequence[tuple[str, str, int]], size: int, device: str | torch.device = "cpu"
) -> Rendered:
    """The same toys, intersected once, in several (background, style, seed) looks: a batch of len(looks)."""
    scenes = [replace(scene, background=b, style=s, seed=n) for b, s, n in looks]
    return render(scenes, size, device)


def _chunk(
    scenes: list[ToyScene],
    which: list[int],
    geometry: list[ToyScene],
    size: int,
    device: torch.device,
    ss: int,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures uint8 (n, 3, S, S), masks and worn bool (n, K, S, S); scene i uses geometry which[i]."""
    fine = size * ss
    g = len(geometry)
    table = build_table(geometry, device)
    hits = intersect(table, g, fine)
    skin = surface(table, hits, geometry, g, fine)
    pick = torch.tensor(which, device=device)
    owner, worn = table.owner[hits.prim], table.rows[hits.prim, 26]
    cover = torch.zeros(g * fine * fine, k, device=device)
    cover[hits.pixel] = F.one_hot(owner, k).float()
    cover = F.avg_pool2d(cover.view(g, fine, fine, k).permute(0, 3, 1, 2), ss)
    worn_cover = torch.zeros(g * fine * fine, k, device=device)
    worn_cover[hits.pixel] = F.one_hot(owner, k).float() * worn[:, None]
    worn_cover = F.avg_pool2d(worn_cover.view(g, fine, fine, k).permute(0, 3, 1, 2), ss)
    alpha = cover.sum(1, keepdim=True)
    top = cover.max(1, keepdim=True)
    mask = (alpha >= 0.5) & (torch.arange(k, device=device).view(1, k, 1, 1) == top.indices)
    wear = mask & (worn_cover > 0.5 * cover)
    color = _toys(scenes, which, hits, skin, g, fine, ss, size)
    sun, contact = shadows(table, geometry, size)
    ground = _grounds(scenes, pick, sun, contact, size, device)
    a = alpha[pick]
    picture = ground * (1.0 - a) + color
    lines = None
    if any(registry.STYLES[s.style].lines for s in scenes):
        lines = outline(hits, table, g, fine, ss)[pick]
    seeds = torch.tensor([s.seed for s in scenes], device=device)
    picture = registry.apply([s.style for s in scenes], picture, a, lines, seeds)
    return (picture.clamp(0, 1) * 255.0 + 0.5).to(torch.uint8), mask[pick], wear[pick]


def _toys(
    scenes: list[ToyScene], which: list[int], hits: Hits, skin: Surface, g: int, fine: int, ss: int, size: int
) -> Tensor:
    """Lit toys, premultiplied by their coverage (n, 3, S, S)."""
    out = []
    for scene, w in zip(scenes, which, strict=True):
        part = slice(hits.first[w], hits.first[w + 1])
        lit = shade(skin, part, BACKGROUNDS[scene.background], scene)
        plane = torch.zeros(fine * fine, 3, device=lit.device)
        plane[hits.pixel[part] - w * fine * fine] = lit
        out.append(plane)
    stack = torch.stack(out).view(len(scenes), fine, fine, 3).permute(0, 3, 1, 2)
    return F.avg_pool2d(stack, ss)


def _grounds(
    scenes: list[ToyScene], pick: Tensor, sun: Tensor, contact: Tensor, size: int, device: torch.device
) -> Tensor:
    """Painted backgrounds with the toys' shadows on them (n, 3, S, S)."""
    out = torch.empty(len(scenes), 3, size, size, device=device)
    places: dict[str, list[int]] = {}
    for i, s in enumerate(scenes):
        places.setdefault(s.background, []).append(i)
    for name, index in places.items():
        place = BACKGROUNDS[name]
        seed = torch.tensor([scenes[i].seed for i in index], device=device)
        elevation = torch.tensor([scenes[i].elevation for i in index], device=device)
        canvas = Canvas(seed, elevation, size)
        at = torch.tensor(index, device=device)
        paint = place.paint(canvas)
        fade = step(0.05, -0.1, canvas.y - canvas.horizon)
        dark = 1.0 - (1.0 - place.shadow * sun[pick[at]]) * (1.0 - 0.55 * contact[pick[at]])
        dark = (dark * fade)[:, None]
        tint = torch.tensor((0.16, 0.16, 0.26), device=device).view(1, 3, 1, 1)
        out[at] = paint * (1.0 - dark) + paint * tint * dark
    return out


def shadows(table: Table, scenes: Sequence[ToyScene], size: int) -> tuple[Tensor, Tensor]:
    """Soft shadow of the sun and contact darkness on the ground plane, each (G, S, S) in 0..1.

    A ground point is dark by how deep its ray to the light passes through a primitive, taken as an ellipsoid:
    the squared distance of the ray from the centre in unit space is a quadratic form of the pixel.
    """
    g, device = len(scenes), table.rows.device
    view = np.stack([view_matrix(s.elevation) for s in scenes])
    suns = []
    for s in scenes:
        a, e = math.radians(s.light[0]), math.radians(s.light[1])
        suns.append((math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)))
    sun = np.einsum("gij,gj->gi", view, np.array(suns))
    up = view[:, :, 1]
    tilt = np.tan(np.radians([s.elevation for s in scenes]))
    lights = torch.tensor(np.stack((sun, up)), dtype=torch.float32, device=device)  # (2, G, 3)
    tilt_t = torch.tensor(tilt, dtype=torch.float32, device=device)
    big = (table.rows[:, 13:16].sort(1).values[:, 1] > 0.045).nonzero()[:, 0]
    half = max(size // 2, 16)
    maps = []
    for n, soft in ((0, 0.45), (1, 0.9)):
        maps.append(_cast(table, big, lights[n], tilt_t, g, half, soft, contact=n == 1))
    both = torch.stack(maps, 1)
    both = blur(both, half / 64.0)
    both = F.interpolate(both, size=(size, size), mode="bilinear", align_corners=False)
    return both[:, 0], both[:, 1]


def _cast(
    table: Table, index: Tensor, light: Tensor, tilt: Tensor, g: int, size: int, soft: float, contact: bool
) -> Tensor:
    """Darkness (G, size, size) on the ground plane from one direction of light, (G, 3) in view space."""
    pic = table.picture[index]
    lv, tn = light[pic], tilt[pic]  # (P, 3), (P,)
    inv = table.inverse[index]
    c = table.center[index]
    # the ground seen at (X, Y) lies at depth Z = -(Y - GROUND_Y) / tan(elevation)
    ld = torch.einsum("pij,pj->pi", inv[:, :, :3], lv)
    ld = F.normalize(ld, dim=1)
    base = torch.stack((inv[:, :, 0], inv[:, :, 1] - inv[:, :, 2] / tn[:, None]), 2)  # d local / d(X, Y)
    const = inv[:, :, 3] + inv[:, :, 2] * (GROUND_Y / tn)[:, None]
    rest = torch.cat((base, const[:, :, None]), 2)
    rest = rest - ld[:, :, None] * (ld[:, :, None] * rest).sum(1, keepdim=True)  # (P, 3, 3): |rest @ (X, Y, 1)|²
    q = torch.einsum("pki,pkj->pij", rest, rest)
    det = (q[:, 0, 0] * q[:, 1, 1] - q[:, 0, 1] ** 2).clamp(min=1e-9)
    mx = (q[:, 0, 1] * q[:, 1, 2] - q[:, 1, 1] * q[:, 0, 2]) / det
    my = (q[:, 0, 1] * q[:, 0, 2] - q[:, 0, 0] * q[:, 1, 2]) / det
    reach = 1.0 + 0.5 * soft
    box = torch.stack(((q[:, 1, 1] / det).sqrt(), (q[:, 0, 0] / det).sqrt()), 1) * reach
    which, col, row = windows(torch.stack((mx, my), 1), box.clamp(max=2.0), size)
    x = (col.float() + 0.5) * (2.0 / size) - 1.0 - mx[which]
    y = 1.0 - (row.float() + 0.5) * (2.0 / size) - my[which]
    d = (q[which, 0, 0] * x * x + 2 * q[which, 0, 1] * x * y + q[which, 1, 1] * y * y).sqrt()
    dark = step(1.0 + 0.5 * soft, 1.0 - 0.5 * soft, d)
    if contact:  # fades with the height of the part above the ground
        tilt_y = tn / (1 + tn * tn).sqrt()
        up = (c[:, 1] - GROUND_Y) * (1 - tilt_y**2).sqrt() + c[:, 2] * tilt_y
        low = up - torch.linalg.norm(table.matrix[index], dim=2)[:, 1]
        dark = dark * torch.exp(-(low.clamp(min=0) / 0.09))[which]
    out = torch.zeros(g * size * size, device=dark.device)
    out.scatter_reduce_(0, (pic[which] * size + row) * size + col, dark, "amax")
    return out.view(g, size, size)


def outline(hits: Hits, table: Table, g: int, fine: int, ss: int) -> Tensor:
    """Silhouettes, part borders and paint borders (G, 1, S, S), 0..1."""
    ident = torch.full((g * fine * fine,), -1, dtype=torch.int64, device=hits.pixel.device)
    ident[hits.pixel] = hits.prim
    ident = ident.view(g, fine, fine)
    edge = torch.zeros(g, fine, fine, device=hits.pixel.device)
    dx = (ident[:, :, 1:] != ident[:, :, :-1]).float()
    dy = (ident[:, 1:] != ident[:, :-1]).float()
    z = hits.depth.nan_to_num(neginf=-4.0)
    dx = dx * (0.35 + 0.65 * step(0.02, 0.06, (z[:, :, 1:] - z[:, :, :-1]).abs()))
    dy = dy * (0.35 + 0.65 * step(0.02, 0.06, (z[:, 1:] - z[:, :-1]).abs()))
    edge[:, :, 1:] = dx
    edge[:, 1:] = torch.maximum(edge[:, 1:], dy)
    return (F.avg_pool2d(edge[:, None], ss) * ss * 0.75).clamp(0, 1)
