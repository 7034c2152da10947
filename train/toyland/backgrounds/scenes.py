"""Backgrounds: painted, layered, soft. Each painter fills a Canvas; each place has its own light."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from train.toyland.backgrounds import places, seaside
from train.toyland.backgrounds.canvas import Canvas, Color
from train.toyland.backgrounds.plants import cactus, clouds, pine
from train.toyland.noise import step


@dataclass(frozen=True)
class Background:
    """A place: how it is painted and how it lights what stands in it."""

    paint: Callable[[Canvas], Tensor]  # → (n, 3, H, W) in [0, 1]
    key: Color = (1.0, 0.97, 0.90)  # colour of the main light
    sky: Color = (0.80, 0.88, 1.0)  # light from above
    earth: Color = (0.75, 0.70, 0.62)  # light from below
    shadow: float = 0.5  # strength of the cast shadow, 0..1
    haze: tuple[float, Color] = (0.0, (0.0, 0.0, 0.0))  # amount and colour of a veil over the toy


def jungle(c: Canvas) -> Tensor:
    r2 = (c.x * 0.8) ** 2 + (c.y - 0.35) ** 2
    out = c.ramp(
        r2.sqrt().expand(c.n, -1, -1),
        ((0.0, (0.80, 0.92, 0.52)), (0.45, (0.38, 0.66, 0.30)), (1.1, (0.08, 0.30, 0.15))),
    )
    out = out * (1.0 + 0.22 * (c.noise(1, 6, 6, 2)[:, None] - 0.5))
    for i, (w, col) in enumerate(
        ((0.035, (0.30, 0.44, 0.20)), (0.05, (0.22, 0.30, 0.15)), (0.065, (0.24, 0.20, 0.11)))
    ):
        for s in (-1.0, 1.0):
            x0 = s * c.rand(10 + 3 * i + int(s), 0.25 + 0.2 * i, 0.5 + 0.22 * i)
            bend = 0.05 * torch.sin(c.y * 2.0 + 9.0 * c.rand(40 + i))
            trunk = c.edge((c.x - x0 - bend).abs() - w)
            out = c.over(out, col, trunk * (1.0 - c.below(c.horizon)))
    floor = c.ground(((0.20, 0.36, 0.13), (0.33, 0.42, 0.16)), 5, 0.5, 7)
    path = step(0.75, 0.2, (c.x / (0.55 + 0.9 * (c.horizon - c.y).clamp(min=0))).abs())
    floor = c.over(floor, (0.50, 0.38, 0.20), 0.75 * path.expand(c.n, -1, -1))
    bush = c.ridge(6, c.horizon + 0.10, 0.10, 12, 2)
    leafy = c.ramp((bush - c.y) * 4.0, ((0.0, (0.30, 0.58, 0.24)), (0.8, (0.12, 0.34, 0.15))))
    out = c.over(out, leafy * (1.0 + 0.3 * (c.noise(7, 14, 14)[:, None] - 0.5)), c.below(bush, 0.02))
    out = c.over(out, floor, c.below(c.ridge(8, c.horizon - 0.05, 0.02, 8), 0.03))
    tones = ((0.10, 0.38, 0.16), (0.16, 0.50, 0.20), (0.24, 0.62, 0.25), (0.07, 0.29, 0.15))
    for i in range(11):
        a0 = math.pi * (i + 0.5) / 11
        cx, cy = (
            -1.12 * math.cos(a0) + c.rand(60 + i, -0.06, 0.06),
            0.35 + 0.78 * math.sin(a0) + c.rand(80 + i, -0.05, 0.05),
        )
        angle = a0 * -1.0 + c.rand(100 + i, -0.5, 0.5) if i < 5 else math.pi - a0 + math.pi + c.rand(100 + i, -0.5, 0.5)
        inside, rib = c.leaf(cx, cy, c.rand(120 + i, 0.42, 0.66), c.rand(140 + i, 0.075, 0.115), angle)
        green = torch.tensor(tones[i % 4], device=c.device).view(1, 3, 1, 1) * (1.22 - 0.34 * rib[:, None])
        out = c.over(out, green, inside)
    for i in range(6):
        s = -1.0 if i % 2 else 1.0
        cx, cy = s * c.rand(160 + i, 0.78, 1.02), -0.12 - 0.3 * c.rand(170 + i)
        angle = (math.pi / 2) + s * c.rand(180 + i, -0.3, 1.0)
        inside, rib = c.leaf(cx, cy - 0.15, c.rand(190 + i, 0.3, 0.5), 0.07, angle)
        green = torch.tensor(tones[(i + 1) % 3], device=c.device).view(1, 3, 1, 1) * (1.25 - 0.35 * rib[:, None])
        out = c.over(out, green, inside)
    return out


def city(c: Canvas) -> Tensor:
    h = c.horizon
    out = c.ramp(c.y - h, ((0.0, (0.98, 0.90, 0.80)), (0.45, (0.74, 0.86, 0.96)), (1.1, (0.46, 0.70, 0.93))))
    out = clouds(c, out, 31, 0.4)
    pal = torch.tensor(
        (
            (0.80, 0.45, 0.36),
            (0.36, 0.48, 0.62),
            (0.86, 0.70, 0.48),
            (0.52, 0.44, 0.58),
            (0.42, 0.58, 0.58),
            (0.70, 0.56, 0.48),
        ),
        device=c.device,
    )
    for layer, (width, low, high) in enumerate(((0.24, 0.50, 0.98), (0.34, 0.28, 0.72))):
        u = (c.x + 1.0 + c.rand(layer, 0.0, width)) / width
        col = u.floor()
        fx = u - col
        heights = c.table(50 + layer, 14)
        top = h + low + (high - low) * c.pick(heights, col)
        tall = (c.y < top) & (c.y > h - 0.02)
        gap = 0.03 if layer else 0.0
        mask = c.edge(c.y - top) * c.edge((fx - 0.5).abs() * width - width * (0.5 - gap)) * (c.y > h - 0.02)
        tone = c.pick(c.table(60 + layer, 14), col)
        body = pal[(tone * 5.999).long()].permute(0, 3, 1, 2).expand(-1, -1, c.size, -1)
        if layer == 0:
            body = body * 0.35 + torch.tensor((0.56, 0.66, 0.78), device=c.device).view(1, 3, 1, 1) * 0.65
        else:
            body = body * (1.06 - 0.16 * fx[:, None])
        nx, ny = (3.0, 0.14) if layer else (3.0, 0.16)
        wx = fx * nx
        wy = (c.y - h) / ny
        lit = c.pick(
            c.table(70 + layer, 14 * 3 * 12),
            (wx.floor() + 42 * wy.floor().clamp(0, 11) + 3 * col).remainder(500),
        )
        pane = c.edge((wx - wx.floor() - 0.5).abs() * (width / nx) - width / nx * 0.27)
        pane = pane * c.edge((wy - wy.floor() - 0.5).abs() * ny - ny * 0.27) * c.edge(c.y - top + 0.07)
        glass = c.over(c.fill((0.30, 0.42, 0.56)), (1.0, 0.88, 0.50), (lit > 0.55).float())
        strength = 0.95 if layer else 0.35
        body = c.over(body.expand(c.n, -1, -1, -1), glass, strength * pane)
        out = c.over(out, body, mask * tall.float().clamp(min=0.0))
    walk = c.ground(((0.72, 0.70, 0.70), (0.80, 0.78, 0.76)), 3, 0.08)
    curb = h - 0.17
    road = c.ground(((0.36, 0.37, 0.41), (0.30, 0.31, 0.35)), 4, 0.14)
    ground = c.over(walk, road, c.below(curb))
    ground = c.over(ground, (0.90, 0.89, 0.87), c.edge((c.y - curb).abs() - 0.014))
    line = curb - 0.36
    dash = ((c.x + c.y * 0.2 + c.rand(9)) * 2.2).remainder(1.0)
    ground = c.over(
        ground,
        (0.98, 0.86, 0.42),
        c.edge((c.y - line).abs() - 0.022) * c.edge((dash - 0.5).abs() * 0.45 - 0.13),
    )
    return c.over(out, ground, c.below(h))


def snow(c: Canvas) -> Tensor:
    h = c.horizon
    out = c.ramp(c.y - h, ((0.0, (0.93, 0.95, 0.99)), (0.5, (0.74, 0.85, 0.96)), (1.1, (0.55, 0.72, 0.92))))
    for i, (base, col) in enumerate(((0.34, (0.76, 0.84, 0.94)), (0.16, (0.85, 0.91, 0.98)))):
        line = c.ridge(20 + i, h + base, 0.14, 4)
        out = c.over(out, col, c.below(line, 0.01))
    for i in range(5):
        x = -0.92 + 0.46 * i + c.rand(30 + i, -0.12, 0.12)
        big = c.rand(40 + i, 0.42, 0.78) * (1.0 if i != 2 else 0.62)
        out = pine(c, out, x, h - 0.02 + 0.05 * c.rand(50 + i), big, 0.9)
    floor = c.ground(((0.90, 0.94, 1.0), (0.97, 0.98, 1.0)), 5, 0.05)
    drift = step(0.5, 0.62, c.noise(6, 10, 3))
    floor = c.over(floor, (0.80, 0.88, 0.98), 0.45 * drift)
    out = c.over(out, floor, c.below(c.ridge(7, h, 0.03, 3, 1), 0.01))
    out = c.over(out, (1.0, 1.0, 1.0), 0.95 * c.specks(8, 9, (0.012, 0.03), 0.6, 0.02))
    return c.over(out, (1.0, 1.0, 1.0), 0.8 * c.specks(9, 15, (0.008, 0.016), 0.5, 0.016))


def desert(c: Canvas) -> Tensor:
    h = c.horizon + 0.06
    out = c.ramp(c.y - h, ((0.0, (1.0, 0.86, 0.60)), (0.4, (0.99, 0.74, 0.50)), (1.1, (0.44, 0.64, 0.86))))
    sx = c.rand(1, -0.7, 0.7)
    out = c.over(out, (1.0, 0.93, 0.66), 0.5 * c.disc(sx, h + 0.5, 0.2, 0.3))
    out = c.over(out, (1.0, 0.96, 0.80), c.disc(sx, h + 0.5, 0.13, 0.02))
    mesa = c.noise(2, 1, 7)[:, :1]
    out = c.over(out, (0.78, 0.45, 0.34), c.below(h - 0.1 + 0.34 * step(0.52, 0.60, mesa)))
    for i, (base, far) in enumerate(((0.06, 1.0), (-0.05, 0.5))):
        line = c.ridge(10 + i, h + base, 0.10, 2, 1)
        lit = c.ramp(((line - c.y) * 3.0).clamp(0, 1), ((0.0, (0.99, 0.80, 0.50)), (1.0, (0.88, 0.58, 0.32))))
        out = c.over(out, lit * (1.0 - 0.06 * far), c.below(line))
    floor = c.ground(((0.93, 0.66, 0.38), (0.97, 0.75, 0.45)), 5, 0.06)
    wave = torch.sin((c.y - h) * 70.0 / (1.0 + 2.2 * (h - c.y).clamp(min=0)) + 5.0 * c.noise(6, 3, 4))
    floor = floor * (1.0 + 0.045 * wave[:, None])
    out = c.over(out, floor, c.below(c.ridge(13, h - 0.12, 0.05, 2, 1), 0.01))
    side = torch.where(c.rand(3) < 0.5, -1.0, 1.0)
    out = cactus(c, out, side * c.rand(4, 0.60, 0.85), h - 0.24, c.rand(8, 0.55, 0.75))
    return cactus(c, out, -side * c.rand(9, 0.70, 0.95), h - 0.10, c.rand(14, 0.26, 0.4))


def night(c: Canvas) -> Tensor:
    h = c.horizon
    out = c.ramp(c.y - h, ((0.0, (0.30, 0.27, 0.52)), (0.45, (0.12, 0.14, 0.38)), (1.1, (0.03, 0.05, 0.20))))
    out = c.over(out, (0.42, 0.34, 0.66), 0.35 * step(0.5, 0.85, c.noise(1, 3, 3, 2)))
    out = c.over(out, (1.0, 1.0, 0.92), c.specks(2, 12, (0.010, 0.026), 0.55, 0.02))
    out = c.over(out, (0.8, 0.86, 1.0), 0.7 * c.specks(3, 19, (0.006, 0.012), 0.5, 0.014))
    mx = torch.where(c.rand(4) < 0.5, -1.0, 1.0) * c.rand(5, 0.42, 0.72)
    my = c.rand(6, 0.55, 0.72)
    out = c.over(out, (0.80, 0.82, 0.98), 0.4 * c.disc(mx, my, 0.22, 0.3))
    out = c.over(out, (1.0, 0.97, 0.80), c.disc(mx, my, 0.17))
    for dx, dy, r in ((-0.05, 0.03, 0.04), (0.06, -0.05, 0.03), (0.03, 0.07, 0.02)):
        out = c.over(out, (0.90, 0.86, 0.68), c.disc(mx + dx, my + dy, r))
    for i, (base, col) in enumerate(((0.16, (0.16, 0.17, 0.42)), (0.05, (0.10, 0.15, 0.33)))):
        out = c.over(out, col, c.below(c.ridge(20 + i, h + base, 0.12, 4)))
    floor = c.ground(((0.12, 0.27, 0.32), (0.24, 0.43, 0.38)), 7, 0.35, 14)
    return c.over(out, floor, c.below(c.ridge(8, h, 0.02, 3, 1)))


_WALLS = (
    (0.98, 0.86, 0.80),
    (0.80, 0.90, 0.98),
    (0.84, 0.95, 0.84),
    (0.98, 0.94, 0.78),
    (0.90, 0.86, 0.97),
    (0.95, 0.95, 0.95),
)


def studio(c: Canvas) -> Tensor:
    walls = torch.tensor(_WALLS, device=c.device)
    wall = walls[(c.rand(1).view(-1) * 5.999).long()].view(-1, 3, 1, 1)
    h = c.horizon + 0.02
    light = 1.03 - 0.16 * ((c.x * 0.8) ** 2 + (c.y - 0.25) ** 2)
    out = wall * light[:, None]
    floor = wall * (0.86 + 0.14 * ((h - c.y) / (h + 1.0)).clamp(0, 1))[:, None]
    out = out + (floor - out) * c.below(h, 0.22)[:, None]
    return out.clamp(0, 1).expand(c.n, 3, c.size, c.size)


BACKGROUNDS: dict[str, Background] = {
    "beach": Background(seaside.beach, key=(1.0, 0.95, 0.84), earth=(0.95, 0.82, 0.60), shadow=0.42),
    "jungle": Background(jungle, key=(0.98, 1.0, 0.84), sky=(0.72, 0.88, 0.66), earth=(0.45, 0.55, 0.32), shadow=0.58),
    "city": Background(city, key=(1.0, 0.95, 0.88), earth=(0.60, 0.60, 0.62), shadow=0.55),
    "snow": Background(snow, key=(0.98, 0.98, 1.0), sky=(0.84, 0.90, 1.0), earth=(0.88, 0.93, 1.0), shadow=0.34),
    "desert": Background(desert, key=(1.0, 0.92, 0.76), sky=(0.92, 0.86, 0.84), earth=(0.92, 0.66, 0.42), shadow=0.48),
    "underwater": Background(
        seaside.underwater,
        key=(0.82, 0.98, 1.0),
        sky=(0.58, 0.86, 0.96),
        earth=(0.42, 0.66, 0.70),
        shadow=0.36,
        haze=(0.07, (0.10, 0.52, 0.74)),
    ),
    "night": Background(night, key=(0.96, 0.97, 1.0), sky=(0.66, 0.69, 0.92), earth=(0.46, 0.52, 0.66), shadow=0.5),
    "studio": Background(studio, earth=(0.92, 0.90, 0.88), sky=(0.95, 0.95, 1.0), shadow=0.32),
    "meadow": Background(places.meadow, key=(1.0, 0.98, 0.88), earth=(0.62, 0.75, 0.45), shadow=0.5),
    "mountains": Background(places.mountains, earth=(0.62, 0.68, 0.52), shadow=0.5),
    "kitchen": Background(
        places.kitchen, key=(1.0, 0.95, 0.86), sky=(0.95, 0.93, 0.90), earth=(0.88, 0.74, 0.58), shadow=0.42
    ),
    "space": Background(
        places.space, key=(1.0, 0.99, 0.97), sky=(0.62, 0.60, 0.82), earth=(0.55, 0.55, 0.64), shadow=0.6
    ),
    "autumn": Background(
        places.autumn, key=(1.0, 0.93, 0.78), sky=(0.95, 0.88, 0.78), earth=(0.76, 0.56, 0.36), shadow=0.48
    ),
    "castle": Background(places.castle, key=(1.0, 0.94, 0.90), earth=(0.62, 0.70, 0.50), shadow=0.48),
    "volcano": Background(
        places.volcano, key=(1.0, 0.90, 0.80), sky=(0.86, 0.66, 0.64), earth=(0.85, 0.50, 0.36), shadow=0.5
    ),
    "bedroom": Background(
        places.bedroom, key=(1.0, 0.96, 0.90), sky=(0.93, 0.93, 0.95), earth=(0.86, 0.74, 0.62), shadow=0.4
    ),
}
