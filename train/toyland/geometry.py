"""Where the rays meet the toys: batched, sparse, closed-form ray–primitive intersection.

The camera is orthographic, so for one primitive the ray direction in its unit space is a constant and its
origin is linear in the pixel. A candidate is a (primitive, pixel) pair with the pixel inside the primitive's
screen box; all candidates of a batch lie in one flat list, are intersected together, and one `scatter_reduce`
keeps the nearest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from train.toyland.parts import BOX, ELLIPSOID, FRUSTUM
from train.toyland.species.bodies import assemble, pattern_code

if TYPE_CHECKING:
    from train.toyland.scene import Placement, ToyScene

GROUND_Y = -0.68  # screen height of the ground point (0, 0, 0), in half picture heights
_STEPS = 5  # Newton steps on |l|₈ = 1
_DEPTH = 2.0**26  # depth quantisation: [-8, 8) → 30 bits


@dataclass
class Table:
    """All primitives of a batch of geometries, in view space. P primitives in all."""

    rows: Tensor  # (P, ROW) as in parts.Rig.put, rest pose
    inverse: Tensor  # (P, 3, 4): l = inverse @ (X, Y, Z, 1)
    matrix: Tensor  # (P, 3, 3): view-space image of the unit axes
    center: Tensor  # (P, 3) view space
    half: Tensor  # (P, 2) half extents of the screen box
    pattern: Tensor  # (P, 4) pattern_code
    owner: Tensor  # (P,) index of the placement in its picture
    picture: Tensor  # (P,) index of the picture in the batch


@dataclass
class Hits:
    """Covered samples of a batch, flat. N samples in all, ordered by picture."""

    pixel: Tensor  # (N,) index into the flat (B, S, S) sample grid
    prim: Tensor  # (N,) index into the table
    local: Tensor  # (N, 3) point in unit space
    normal: Tensor  # (N, 3) view space, unit length
    depth: Tensor  # (B, S, S) float, -inf where no toy is
    first: list[int]  # (B + 1) offsets of the pictures in the flat list


def view_matrix(elevation: float) -> np.ndarray:
    """Rows: right, up, towards the camera, for a camera raised by `elevation` degrees."""
    e = math.radians(elevation)
    return np.array([[1, 0, 0], [0, math.cos(e), -math.sin(e)], [0, math.sin(e), math.cos(e)]])


def placed(p: Placement, view: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A placement's primitives in view space: rows (P, ROW), images of the unit axes (P, 3, 3), centres (P, 3)."""
    r = assemble(p.subject, p.shape, p.pose, p.accessory, p.accessory_color)
    a = math.radians(p.azimuth)
    spin = np.array([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    t = (view @ spin) * p.scale
    at = view @ np.array([p.x, 0.0, p.z]) + np.array([0.0, GROUND_Y, 0.0])
    return r, t @ r[:, 4:13].reshape(-1, 3, 3), r[:, 1:4] @ t.T + at


def half_extents(row: np.ndarray, mat: np.ndarray) -> np.ndarray:
    """Half sizes (P, 2) of the primitives' boxes on the screen."""
    kind, m2 = row[:, :1], mat[:, :2]
    disc = np.linalg.norm(m2[:, :, ::2], axis=2) * np.maximum(1.0, row[:, 25:26]) + np.abs(m2[:, :, 1])
    return np.where(kind == ELLIPSOID, np.linalg.norm(m2, axis=2), np.where(kind == FRUSTUM, disc, np.abs(m2).sum(2)))


def frame_box(p: Placement, elevation: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower left and upper right corner (x, y) of a placement on the screen, in half picture heights from its middle.

    elevation: of the camera, degrees.
    """
    row, mat, cent = placed(p, view_matrix(elevation))
    half = half_extents(row, mat)
    return (cent[:, :2] - half).min(0), (cent[:, :2] + half).max(0)


def build_table(scenes: Sequence[ToyScene], device: torch.device) -> Table:
    """Primitives of all placements of all scenes, brought into view space."""
    rows, mats, cents, pats, owner, picture = [], [], [], [], [], []
    for i, scene in enumerate(scenes):
        view = view_matrix(scene.elevation)
        for k, p in enumerate(scene.placements):
            r, mat, cent = placed(p, view)
            rows.append(r)
            mats.append(mat)
            cents.append(cent)
            pats.append(np.tile(pattern_code(p.subject), (len(r), 1)))
            owner.append(np.full(len(r), k))
            picture.append(np.full(len(r), i))
    row, mat, cent = np.concatenate(rows), np.concatenate(mats), np.concatenate(cents)
    inv = np.linalg.inv(mat)
    shift = -np.einsum("pij,pj->pi", inv, cent)
    half = half_extents(row, mat)

    def t(x: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(device=device, dtype=dtype)

    return Table(
        t(row),
        t(np.concatenate((inv, shift[:, :, None]), 2)),
        t(mat),
        t(cent),
        t(half),
        t(np.concatenate(pats)),
        t(np.concatenate(owner), torch.int64), t(np.concatenate(picture), torch.int64),
    )  # fmt: skip


def windows(center: Tensor, half: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Flat candidate list for screen boxes: (index of the box, column, row), each (C,), int64."""
    to = size / 2.0
    lo_x = ((center[:, 0] - half[:, 0] + 1.0) * to - 0.5).ceil().clamp(0, size)
    hi_x = ((center[:, 0] + half[:, 0] + 1.0) * to - 0.5).floor().clamp(-1, size - 1)
    lo_y = ((1.0 - center[:, 1] - half[:, 1]) * to - 0.5).ceil().clamp(0, size)
    hi_y = ((1.0 - center[:, 1] + half[:, 1]) * to - 0.5).floor().clamp(-1, size - 1)
    w = (hi_x - lo_x + 1).clamp(min=0).long()
    h = (hi_y - lo_y + 1).clamp(min=0).long()
    count = w * h
    which = torch.repeat_interleave(count)
    start = torch.cumsum(count, 0) - count
    local = (torch.arange(which.numel(), device=center.device) - start[which]).int()
    wide = w.int()[which]
    row = torch.div(local, wide, rounding_mode="floor")
    col = local - row * wide
    return which, col + lo_x.int()[which], row + lo_y.int()[which]


def intersect(table: Table, pictures: int, size: int) -> Hits:
    """Nearest hits on a (pictures, size, size) sample grid; sample centres at ((i + 0.5) · 2/size − 1)."""
    device = table.rows.device
    best = torch.full((pictures * size * size,), -1, dtype=torch.int64, device=device)
    solvers = ((ELLIPSOID, _ellipsoid), (BOX, _box), (FRUSTUM, _frustum))
    for kind, solve in solvers:
        index = (table.rows[:, 0] == kind).nonzero()[:, 0]
        if index.numel() == 0:
            continue
        which, col, row = windows(table.center[index], table.half[index], size)
        prim = index[which]
        coef = table.inverse.reshape(-1, 12)[index].T.contiguous()[:, which]  # (12, C)
        x = (col.float() + 0.5) * (2.0 / size) - 1.0
        y = 1.0 - (row.float() + 0.5) * (2.0 / size)
        o = [coef[4 * i] * x + coef[4 * i + 1] * y + coef[4 * i + 3] for i in range(3)]
        d = [coef[4 * i + 2] for i in range(3)]
        z, hit = solve(o, d, table.rows[index, 25][which])
        keep = hit.nonzero()[:, 0]
        prim, z = prim[keep], z[keep]
        pixel = (table.picture[prim] * size + row[keep]) * size + col[keep]
        key = (((z + 8.0).double() * _DEPTH).long() << 24) | prim
        best.scatter_reduce_(0, pixel, key, "amax")
    pixel = (best >= 0).nonzero()[:, 0]
    key = best[pixel]
    prim = key & 0xFFFFFF
    z = ((key >> 24).double() / _DEPTH - 8.0).float()
    depth = torch.full((pictures * size * size,), -math.inf, device=device)
    depth[pixel] = z
    inside = pixel % (size * size)
    x = ((inside % size).float() + 0.5) * (2.0 / size) - 1.0
    y = 1.0 - (torch.div(inside, size, rounding_mode="floor").float() + 0.5) * (2.0 / size)
    inv = table.inverse[prim]  # (N, 3, 4)
    local = inv[:, :, 0] * x[:, None] + inv[:, :, 1] * y[:, None] + inv[:, :, 2] * z[:, None] + inv[:, :, 3]
    normal = _normals(table, prim, local, inv)
    edges = torch.arange(pictures + 1, device=device) * (size * size)
    first = torch.searchsorted(pixel, edges).tolist()
    return Hits(pixel, prim, local, normal, depth.view(pictures, size, size), first)


def _ellipsoid(o: list[Tensor], d: list[Tensor], taper: Tensor) -> tuple[Tensor, Tensor]:
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = o[0] * d[0] + o[1] * d[1] + o[2] * d[2]
    c = o[0] * o[0] + o[1] * o[1] + o[2] * o[2] - 1.0
    disc = b * b - a * c
    return (disc.clamp(min=0).sqrt() - b) / a, disc > 0


def _slab(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Interval of Z with |o + Z d| ≤ 1."""
    inv = 1.0 / torch.where(d.abs() < 1e-6, torch.full_like(d, 1e-6), d)
    mid, half = -o * inv, inv.abs()
    return mid - half, mid + half


def _box(o: list[Tensor], d: list[Tensor], taper: Tensor) -> tuple[Tensor, Tensor]:
    """|l|₈ ≤ 1 seen from Z = +∞: Newton from the cube's near face (|l|₈⁸ is convex along a ray)."""
    far, near = _slab(o[0], d[0])
    for i in (1, 2):
        lo, hi = _slab(o[i], d[i])
        near, far = torch.minimum(near, hi), torch.maximum(far, lo)
    z = near
    value = torch.zeros_like(z)
    for step in range(_STEPS + 1):
        value, slope = torch.zeros_like(z), torch.zeros_like(z)
        for i in range(3):
            p = o[i] + z * d[i]
            p2 = p * p
            p4 = p2 * p2
            value = value + p4 * p4
            slope = slope + p4 * p2 * p * d[i]
        if step < _STEPS:
            z = z - ((value - 1.0) / (8.0 * slope).clamp(min=1e-4)).clamp(-1.0, 1.0)
    return z, (near >= far) & (value < 1.08) & (z >= far)


def _frustum(o: list[Tensor], d: list[Tensor], taper: Tensor) -> tuple[Tensor, Tensor]:
    """√(x²+z²) ≤ α + βy, |y| ≤ 1: one interval of the quadric (one nappe) cut with one slab."""
    alpha, beta = 0.5 * (1.0 + taper), 0.5 * (taper - 1.0)
    ro, rd = alpha + beta * o[1], beta * d[1]
    a = d[0] * d[0] + d[2] * d[2] - rd * rd
    a = torch.where(a.abs() < 1e-6, torch.full_like(a, 1e-6), a)
    b = o[0] * d[0] + o[2] * d[2] - ro * rd
    c = o[0] * o[0] + o[2] * o[2] - ro * ro
    disc = b * b - a * c
    root = disc.clamp(min=0).sqrt() / a.abs()
    mid = -b / a
    lo, hi = mid - root, mid + root
    # a < 0: inside is outside the roots, one ray of it on the right nappe (α + βy > 0 grows along sign(rd))
    big = torch.full_like(lo, 1e3)
    steep = a < 0
    up = rd > 0
    lo, hi = (
        torch.where(steep, torch.where(up, hi, -big), lo),
        torch.where(steep, torch.where(up, big, lo), hi),
    )
    near, far = _slab(o[1], d[1])
    z, end = torch.minimum(hi, far), torch.maximum(lo, near)
    return z, (disc > 0) & (z >= end)


def _normals(table: Table, prim: Tensor, local: Tensor, inv: Tensor) -> Tensor:
    """Unit normals in view space, (N, 3): gradient of the unit solid, pulled back to it."""
    rows = table.rows[prim]
    kind, taper = rows[:, 0:1], rows[:, 25:26]
    p2 = local * local
    box = p2 * p2 * p2 * local
    beta = 0.5 * (taper - 1.0)
    radius = (p2[:, 0:1] + p2[:, 2:3]).sqrt().clamp(min=1e-4)
    side = torch.cat((local[:, 0:1] / radius, -beta, local[:, 2:3] / radius), 1)
    cap = torch.zeros_like(local)
    cap[:, 1] = local[:, 1].sign()
    wall = 0.5 * (1.0 + taper) + beta * local[:, 1:2]
    on_cap = ((1.0 - local[:, 1:2].abs()) < (wall - radius)).float()
    frustum = side + (cap - side) * on_cap
    grad = torch.where(kind == ELLIPSOID, local, torch.where(kind == FRUSTUM, frustum, box))
    normal = torch.einsum("nij,ni->nj", inv[:, :, :3], grad)
    return torch.nn.functional.normalize(normal, dim=1)
