"""Places by and under the sea."""

from __future__ import annotations

import torch
from torch import Tensor

from train.toyland.backgrounds.canvas import Canvas
from train.toyland.backgrounds.plants import clouds, palm
from train.toyland.noise import step


def beach(c: Canvas) -> Tensor:
    h = c.horizon + 0.12
    sky = c.ramp(c.y - h, ((0.0, (0.80, 0.94, 1.0)), (0.5, (0.45, 0.78, 0.98)), (1.1, (0.22, 0.58, 0.94))))
    sky = clouds(c, sky, 11, 0.45)
    side = torch.where(c.rand(1) < 0.5, -1.0, 1.0)
    sun_x = -side * c.rand(2, 0.3, 0.75)
    sky = c.over(sky, (1.0, 0.97, 0.72), 0.55 * c.disc(sun_x, 0.66, 0.18, 0.26))
    sky = c.over(sky, (1.0, 0.95, 0.62), c.disc(sun_x, 0.66, 0.125, 0.03))
    shore = h - 0.27 + 0.05 * (c.noise(3, 1, 3)[:, :1] - 0.5)
    depth = ((h - c.y) / 0.3).clamp(0, 1)
    sea = c.ramp(depth, ((0.0, (0.09, 0.42, 0.72)), (0.55, (0.12, 0.62, 0.80)), (1.0, (0.50, 0.87, 0.86))))
    glint = step(0.60, 0.72, c.noise(4, 44, 6)) * c.below(h - 0.02)
    sea = c.over(sea, (0.86, 0.97, 1.0), 0.45 * glint)
    out = c.over(sky, sea, c.below(h))
    sand = c.ramp(
        ((shore - c.y) / 0.8).clamp(0, 1),
        ((0.0, (0.87, 0.75, 0.53)), (0.12, (0.97, 0.88, 0.66)), (1.0, (0.93, 0.78, 0.52))),
    )
    sand = sand * (1.0 + 0.10 * (c.noise(5, 26, 9, 2)[:, None] - 0.5))
    out = c.over(out, sand, c.below(shore, 0.02))
    out = c.over(out, (1.0, 1.0, 1.0), 0.9 * c.edge((c.y - shore - 0.008).abs() - 0.016, 0.02))
    return palm(c, out, 21, shore - 0.1, side)


def underwater(c: Canvas) -> Tensor:
    out = c.ramp(
        (c.y * 0.5 + 0.5).expand(c.n, -1, -1),
        ((0.0, (0.04, 0.27, 0.50)), (0.5, (0.08, 0.50, 0.74)), (1.0, (0.44, 0.86, 0.94))),
    )
    u = c.x * 0.75 + (1.0 - c.y) * c.rand(1, -0.45, 0.45)
    table = c.table(2, 16)
    pos = (u + 2.0) * 4.0
    a, b = c.pick(table, pos.floor()), c.pick(table, pos.floor() + 1)
    f = pos - pos.floor()
    rays = step(0.45, 0.9, a + (b - a) * f * f * (3 - 2 * f)) * step(-0.7, 1.0, c.y)
    out = c.over(out, (0.80, 0.98, 1.0), 0.42 * rays)
    far = c.ridge(10, c.horizon + 0.10, 0.14, 4)
    out = c.over(out, (0.06, 0.38, 0.58), 0.8 * c.below(far, 0.02))
    floor = c.ground(((0.36, 0.62, 0.66), (0.80, 0.78, 0.60)), 5, 0.16)
    net = (c.noise(6, 16, 8, 2) - 0.5).abs()
    floor = c.over(floor, (0.95, 0.98, 0.86), 0.4 * step(0.09, 0.0, net))
    out = c.over(out, floor, c.below(c.ridge(7, c.horizon - 0.1, 0.04, 3, 1), 0.02))
    for i in range(7):
        s = -1.0 if i % 2 else 1.0
        x0 = s * c.rand(20 + i, 0.55, 0.98)
        foot, tall = c.horizon - 0.22 - 0.2 * c.rand(30 + i), c.rand(40 + i, 0.35, 0.85)
        t = ((c.y - foot) / tall).clamp(0, 1)
        sway = 0.06 * torch.sin(c.y * 8.0 + 6.28 * c.rand(50 + i)) * t
        d = (c.x - x0 - sway).abs() - 0.042 * (1.0 - t * t * 0.85)
        col = ((0.10, 0.50, 0.34), (0.16, 0.62, 0.38), (0.90, 0.45, 0.50))[i % 3]
        out = c.over(out, col, c.edge(d) * ((c.y > foot) & (c.y < foot + tall)))
    rim = c.specks(8, 6, (0.03, 0.062), 0.38)
    core = c.specks(8, 6, (0.014, 0.046), 0.38)
    high = (c.y > c.horizon - 0.1).float()
    out = c.over(out, (0.92, 1.0, 1.0), 0.8 * (rim - core).clamp(min=0) * high)
    return c.over(out, (0.85, 0.98, 1.0), 0.22 * core * high)
