"""More places: meadow, mountains, kitchen, space, autumn forest, castle, volcano, bedroom."""

from __future__ import annotations

import torch
from torch import Tensor

from train.toyland.backgrounds.canvas import Canvas, Color, dimmed
from train.toyland.backgrounds.plants import clouds
from train.toyland.noise import step


def _sky(c: Canvas, low: Color, mid: Color, high: Color, line: Tensor | None = None) -> Tensor:
    return c.ramp(c.y - (c.horizon if line is None else line), ((0.0, low), (0.5, mid), (1.1, high)))


def meadow(c: Canvas) -> Tensor:
    h = c.horizon
    out = clouds(c, _sky(c, (0.86, 0.95, 1.0), (0.58, 0.83, 0.99), (0.34, 0.66, 0.95)), 11, 0.7)
    for i, (base, col) in enumerate(((0.22, (0.62, 0.82, 0.62)), (0.08, (0.50, 0.78, 0.42)))):
        out = c.over(out, col, c.below(c.ridge(20 + i, h + base, 0.12, 3, 1), 0.01))
    for i in range(3):
        x, big = c.rand(30 + i, -0.95, 0.95), c.rand(40 + i, 0.10, 0.18)
        y = h + 0.10 + big
        out = c.over(out, (0.48, 0.34, 0.22), c.edge((c.x - x).abs() - big * 0.14) * ((c.y < y) & (c.y > h)))
        for dx, dy, r in ((-0.6, 0.0, 0.7), (0.6, 0.0, 0.7), (0.0, 0.5, 0.9)):
            tone = (0.26, 0.60, 0.27) if dy else (0.20, 0.52, 0.24)
            out = c.over(out, tone, c.disc(x + dx * big, y + dy * big, r * big))
    floor = c.ground(((0.52, 0.80, 0.34), (0.33, 0.66, 0.24)), 5, 0.3, 16)
    for i, col in enumerate(((1.0, 0.95, 0.40), (1.0, 1.0, 1.0), (0.98, 0.45, 0.55), (0.72, 0.50, 0.95))):
        floor = c.over(floor, col, c.specks(50 + i, 11, (0.012, 0.028), 0.34))
    return c.over(out, floor, c.below(c.ridge(7, h, 0.02, 3, 1), 0.01))


def mountains(c: Canvas) -> Tensor:
    h = c.horizon
    out = clouds(c, _sky(c, (0.98, 0.90, 0.86), (0.70, 0.84, 0.97), (0.36, 0.60, 0.92)), 11, 0.3)
    for i, (base, high, rock) in enumerate(((0.55, 0.62, (0.62, 0.68, 0.82)), (0.15, 0.42, (0.42, 0.48, 0.63)))):
        peaks = c.table(20 + i, 8)
        pos = (c.x + 1.0) * (1.05 + 0.5 * i) + c.rand(30 + i)
        a, b = c.pick(peaks, pos.floor()), c.pick(peaks, pos.floor() + 1)
        f = (pos - pos.floor() - 0.5).abs() * 2.0
        top = (
            h
            + base * 0.2
            + high * (1.0 - f) * (0.65 + 0.7 * a)
            + 0.08 * (c.noise(40 + i, 1, 16, 2)[:, :1] - 0.5)
            + 0.06 * b
        )
        inside = c.below(top)
        out = c.over(out, rock, inside)
        lit = ((pos - pos.floor()) > 0.5).float()
        out = c.over(out, dimmed(rock, 0.82), inside * lit)
        cap = step(0.30, 0.24, top - c.y + 0.22 * (c.noise(50 + i, 10, 22)[:, :, :] - 0.5)) * step(0.30, 0.36, top - h)
        out = c.over(out, (0.97, 0.98, 1.0), inside * cap * (1.0 - 0.14 * lit))
    out = c.over(out, (0.24, 0.44, 0.32), c.below(h + 0.06 + 0.07 * c.noise(60, 1, 30)[:, :1], 0.01))
    floor = c.ground(((0.50, 0.66, 0.36), (0.42, 0.56, 0.30)), 5, 0.3, 12)
    floor = c.over(floor, (0.66, 0.65, 0.64), c.specks(70, 9, (0.02, 0.05), 0.22))
    return c.over(out, floor, c.below(h))


def kitchen(c: Canvas) -> Tensor:
    h = c.horizon + 0.02
    warm = 0.94 + 0.08 * c.rand(1)
    out = c.fill((0.99, 0.93, 0.82)) * warm[:, None]
    tile = 0.2
    tx, ty = (c.x / tile).remainder(1.0), ((c.y - h) / tile).remainder(1.0)
    grout = torch.maximum(
        c.edge((tx - 0.5).abs() * -tile + 0.46 * tile), c.edge((ty - 0.5).abs() * -tile + 0.46 * tile)
    )
    wall = (c.y < h + 0.55 * (1.0 - h)).float()
    out = c.over(out, (0.78, 0.90, 0.92), wall.expand(c.n, -1, c.size))
    out = c.over(out, (0.92, 0.97, 0.97), 0.8 * grout * wall)
    shelf = h + 0.55 * (1.0 - h)
    out = c.over(out, (0.70, 0.48, 0.30), c.edge((c.y - shelf).abs() - 0.03).expand(c.n, -1, c.size))
    pots = (
        (0.90, 0.36, 0.30),
        (0.98, 0.78, 0.30),
        (0.30, 0.60, 0.62),
        (0.52, 0.70, 0.36),
        (0.94, 0.92, 0.88),
    )
    for i in range(5):
        x = -0.88 + 0.38 * i + c.rand(10 + i, -0.05, 0.05)
        tall, wide = c.rand(20 + i, 0.09, 0.17), c.rand(30 + i, 0.05, 0.085)
        d = torch.maximum((c.x - x).abs() - wide, (c.y - shelf - 0.03 - tall * 0.5).abs() - tall * 0.5)
        out = c.over(out, pots[i], c.edge(d - 0.012))
        out = c.over(
            out,
            dimmed(pots[i], 0.78),
            c.edge(torch.maximum((c.x - x).abs() - wide - 0.012, (c.y - shelf - 0.03 - tall).abs() - 0.012)),
        )
    side = torch.where(c.rand(2) < 0.5, -1.0, 1.0)
    wx, wy = side * 0.62, h + 0.26 * (1.0 - h)
    frame = torch.maximum((c.x - wx).abs() - 0.28, (c.y - wy).abs() - 0.18)
    out = c.over(out, (0.98, 0.98, 0.96), c.edge(frame - 0.03))
    view = c.ramp(
        (c.y - wy + 0.18) / 0.36,
        ((0.0, (0.60, 0.85, 0.55)), (0.35, (0.75, 0.92, 0.98)), (1.0, (0.50, 0.78, 0.98))),
    )
    out = c.over(out, view, c.edge(frame))
    out = c.over(
        out,
        (0.98, 0.98, 0.96),
        c.edge(torch.minimum((c.x - wx).abs(), (c.y - wy).abs()) - 0.014) * c.edge(frame),
    )
    top = c.ramp(((h - c.y) / (h + 1.0)).clamp(0, 1), ((0.0, (0.74, 0.52, 0.34)), (1.0, (0.86, 0.64, 0.42))))
    grain = 0.07 * torch.sin((c.y * 60.0) / (1.0 + 2.0 * (h - c.y).clamp(min=0)) + 5.0 * c.noise(3, 4, 3))
    out = c.over(out, top * (1.0 + grain[:, None]), c.below(h))
    return c.over(out, (0.95, 0.80, 0.62), c.edge((c.y - h).abs() - 0.018))


def space(c: Canvas) -> Tensor:
    h = c.horizon - 0.02
    out = c.ramp(
        c.y * 0.5 + 0.5 + 0.2 * (c.noise(1, 3, 3) - 0.5),
        ((0.3, (0.10, 0.05, 0.20)), (0.7, (0.05, 0.04, 0.15)), (1.0, (0.02, 0.02, 0.09))),
    )
    for key, col in ((2, (0.62, 0.24, 0.68)), (3, (0.18, 0.40, 0.82))):
        out = c.over(out, col, 0.5 * step(0.50, 0.85, c.noise(key, 4, 4, 3)))
    out = c.over(out, (1.0, 1.0, 1.0), c.specks(4, 11, (0.008, 0.022), 0.6, 0.018))
    out = c.over(out, (0.9, 0.9, 1.0), 0.8 * c.specks(5, 18, (0.005, 0.011), 0.5, 0.012))
    side = torch.where(c.rand(6) < 0.5, -1.0, 1.0)
    px, py, r = side * c.rand(7, 0.48, 0.70), c.rand(8, 0.48, 0.66), c.rand(9, 0.18, 0.26)
    ring = ((c.x - px + (c.y - py) * 0.5) / (r * 1.9)) ** 2 + ((c.y - py - (c.x - px) * 0.28) / (r * 0.42)) ** 2
    band = c.edge((ring.sqrt() - 0.86).abs() * r - 0.09 * r)
    globe = c.disc(px, py, r)
    lit = (0.62 + 0.5 * ((c.x - px) * side * -0.6 + (c.y - py)) / r).clamp(0.3, 1.05)
    stripes = 0.5 + 0.5 * torch.sin((c.y - py) / r * 9.0 + (c.x - px) * 3.0)
    planet = c.over(c.fill((0.94, 0.62, 0.36)), (0.98, 0.82, 0.58), stripes) * lit[:, None]
    out = c.over(out, (0.90, 0.80, 0.66), 0.9 * band * (c.y > py).float())
    out = c.over(out, planet, globe)
    out = c.over(out, (0.95, 0.85, 0.70), 0.9 * band * (c.y <= py).float())
    ex, ey = -side * c.rand(10, 0.55, 0.8), c.rand(11, 0.2, 0.45)
    earth = c.over(c.fill((0.25, 0.52, 0.90)), (0.36, 0.72, 0.42), step(0.5, 0.56, c.noise(12, 12, 12)))
    out = c.over(out, earth, c.disc(ex, ey, 0.1))
    floor = c.ground(((0.52, 0.52, 0.60), (0.70, 0.70, 0.76)), 13, 0.16, 9)
    for cells, key in ((5, 14), (9, 15)):
        rim = c.specks(key, cells, (0.04, 0.36 / cells), 0.5)
        core = c.specks(key, cells, (0.025, 0.30 / cells), 0.5)
        floor = c.over(floor, (0.82, 0.82, 0.88), 0.6 * rim)
        floor = c.over(floor, (0.46, 0.46, 0.55), 0.8 * core)
    return c.over(out, floor, c.below(c.ridge(16, h, 0.03, 4, 2)))


def autumn(c: Canvas) -> Tensor:
    h = c.horizon
    out = _sky(c, (1.0, 0.93, 0.76), (0.98, 0.86, 0.66), (0.80, 0.86, 0.88))
    tones = ((0.90, 0.48, 0.16), (0.84, 0.28, 0.16), (0.96, 0.70, 0.22), (0.72, 0.34, 0.14))
    far = c.ridge(3, h + 0.36, 0.16, 9, 2)
    haze = c.ramp((far - c.y) * 2.0, ((0.0, (0.96, 0.76, 0.45)), (1.0, (0.86, 0.60, 0.36))))
    out = c.over(out, haze, c.below(far, 0.02))
    for i in range(6):
        x = -0.95 + 0.38 * i + c.rand(10 + i, -0.1, 0.1)
        foot, w = h - 0.03 - 0.05 * c.rand(20 + i), c.rand(30 + i, 0.03, 0.055)
        out = c.over(out, (0.38, 0.25, 0.18), c.edge((c.x - x).abs() - w) * (c.y > foot))
        for k in range(4):
            dx, dy = c.rand(40 + 4 * i + k, -0.2, 0.2), c.rand(80 + 4 * i + k, 0.62, 1.05)
            col = torch.tensor(tones[(i + k) % 4], device=c.device).view(1, 3, 1, 1)
            shade = 0.88 + 0.6 * (c.y - h - dy)
            out = c.over(out, col * shade.clamp(0.7, 1.15)[:, None], c.disc(x + dx, h + dy, 0.2 + 0.05 * (k % 2)))
    floor = c.ground(((0.72, 0.50, 0.26), (0.62, 0.42, 0.22)), 5, 0.3, 12)
    for i, tone in enumerate(tones):
        floor = c.over(floor, tone, c.specks(120 + i, 10, (0.02, 0.045), 0.5))
    out = c.over(out, floor, c.below(h, 0.02))
    return c.over(out, (0.93, 0.45, 0.15), c.specks(130, 7, (0.016, 0.032), 0.3) * (c.y > h))


def castle(c: Canvas) -> Tensor:
    h = c.horizon
    out = clouds(c, _sky(c, (1.0, 0.86, 0.80), (0.84, 0.78, 0.95), (0.50, 0.60, 0.93)), 11, 0.5)
    out = c.over(out, (0.55, 0.72, 0.52), c.below(c.ridge(3, h + 0.14, 0.08, 3, 1)))
    stone, dark, roof = (0.80, 0.76, 0.74), (0.66, 0.61, 0.62), (0.76, 0.34, 0.40)
    mid = c.rand(4, -0.25, 0.25)
    merlon = (((c.x - mid) * 7.0).remainder(1.0) < 0.55).float()
    wall = torch.maximum((c.x - mid).abs() - 0.72, c.y - (h + 0.34) - 0.06 * merlon)
    out = c.over(out, dark, c.edge(wall))
    for dx, w, tall in (
        (-0.72, 0.13, 0.66),
        (0.72, 0.13, 0.60),
        (-0.3, 0.11, 0.86),
        (0.3, 0.11, 0.82),
        (0.0, 0.16, 0.70),
    ):
        x = mid + dx
        t = ((c.x - x) / w).clamp(-1, 1)
        body = torch.tensor(stone, device=c.device).view(1, 3, 1, 1) * (0.94 - 0.14 * t)[:, None]
        out = c.over(out, body, c.edge(torch.maximum((c.x - x).abs() - w, c.y - h - tall)))
        cone = torch.maximum(
            (c.x - x).abs() - (w + 0.04) * (1.0 - (c.y - h - tall) / 0.3).clamp(0, 1), (h + tall) - c.y
        )
        tone = torch.tensor(roof, device=c.device).view(1, 3, 1, 1) * (1.02 - 0.2 * t)[:, None]
        out = c.over(out, tone, c.edge(cone) * (c.y < h + tall + 0.3))
        out = c.over(out, (0.30, 0.28, 0.38), c.oval(x, h + tall - 0.16, torch.tensor(0.03), torch.tensor(0.055)))
    gate = torch.maximum((c.x - mid).abs() - 0.1, c.y - (h + 0.2))
    arch = torch.minimum(gate, ((c.x - mid) ** 2 + (c.y - h - 0.2) ** 2).sqrt() - 0.1)
    out = c.over(out, (0.36, 0.24, 0.18), c.edge(arch))
    floor = c.ground(((0.52, 0.74, 0.38), (0.38, 0.62, 0.28)), 5, 0.25, 14)
    path = c.edge((c.x - mid * (1.0 - ((h - c.y) * 0.8).clamp(0, 1))).abs() - 0.1 - 0.55 * (h - c.y).clamp(min=0), 0.05)
    floor = c.over(floor, (0.88, 0.80, 0.66), path)
    return c.over(out, floor, c.below(h))


def volcano(c: Canvas) -> Tensor:
    h = c.horizon
    out = _sky(c, (0.96, 0.48, 0.26), (0.56, 0.22, 0.26), (0.20, 0.10, 0.18))
    smoke = c.noise(1, 5, 5, 3)
    out = c.over(out, (0.22, 0.16, 0.20), 0.7 * step(0.48, 0.75, smoke) * step(0.2, 0.8, c.y - h))
    mx = c.rand(2, -0.5, 0.5)
    rough = 0.05 * (c.noise(3, 12, 12, 2) - 0.5)
    slope = (c.x - mx).abs() + rough
    top = h + 0.80
    cone = torch.maximum(slope - 0.14 - 0.85 * (top - c.y).clamp(min=0), c.y - top)
    out = c.over(out, (1.0, 0.62, 0.25), 0.6 * c.disc(mx, top, 0.20, 0.4))
    shade = (0.95 + 0.35 * (c.x - mx)).clamp(0.6, 1.2)
    rock = torch.tensor((0.30, 0.22, 0.24), device=c.device).view(1, 3, 1, 1) * shade[:, None]
    out = c.over(out, rock, c.edge(cone))
    stream = (c.x - mx - 0.07 * torch.sin((c.y - h) * 9.0 + 6.0 * c.rand(4))).abs()
    lava = c.edge(stream - 0.03 - 0.06 * (top - c.y).clamp(min=0), 0.02) * c.edge(cone)
    out = c.over(out, (1.0, 0.45, 0.12), lava)
    out = c.over(out, (1.0, 0.85, 0.35), lava * c.edge(stream - 0.012 - 0.03 * (top - c.y).clamp(min=0), 0.02))
    sparks = c.specks(5, 9, (0.012, 0.028), 0.5, 0.02) * step(
        0.7, 0.2, ((c.x - mx) ** 2 + (c.y - top - 0.1) ** 2).sqrt()
    )
    out = c.over(out, (1.0, 0.80, 0.35), sparks)
    floor = c.ground(((0.32, 0.22, 0.22), (0.44, 0.33, 0.32)), 6, 0.3, 8)
    crack = (c.noise(7, 10, 5, 2) - 0.5).abs()
    floor = c.over(floor, (1.0, 0.50, 0.15), step(0.035, 0.008, crack))
    return c.over(out, floor, c.below(c.ridge(8, h, 0.03, 5, 2)))


def bedroom(c: Canvas) -> Tensor:
    h = c.horizon + 0.05
    papers = torch.tensor(
        ((0.72, 0.84, 0.95), (0.96, 0.80, 0.84), (0.80, 0.92, 0.80), (0.94, 0.88, 0.72)), device=c.device
    )
    wall = papers[(c.rand(1).view(-1) * 3.999).long()].view(-1, 3, 1, 1).expand(-1, -1, c.size, c.size)
    stripe = c.edge(((c.x * 4.0).remainder(1.0) - 0.5).abs() * 0.25 - 0.0625).expand(c.n, c.size, -1)
    out = c.over(wall, (1.0, 1.0, 1.0), 0.3 * stripe)
    out = c.over(out, (0.98, 0.98, 0.98), c.edge((c.y - h - 0.04).abs() - 0.045).expand(c.n, -1, c.size))
    side = torch.where(c.rand(2) < 0.5, -1.0, 1.0)
    bx = side * 0.82
    bed = torch.maximum((c.x - bx).abs() - 0.5, (c.y - h - 0.02).abs() - 0.16)
    head = torch.maximum((c.x - bx).abs() - 0.52, (c.y - h - 0.2).abs() - 0.26)
    out = c.over(out, (0.66, 0.44, 0.28), c.edge(head - 0.03))
    out = c.over(out, (0.40, 0.56, 0.86), c.edge(bed - 0.04))
    out = c.over(out, (1.0, 1.0, 1.0), c.oval(bx - side * 0.12, h + 0.2, torch.tensor(0.24), torch.tensor(0.09)))
    px = -side * c.rand(3, 0.5, 0.66)
    frame = torch.maximum((c.x - px).abs() - 0.2, (c.y - h - 0.62).abs() - 0.2)
    out = c.over(out, (0.98, 0.84, 0.52), c.edge(frame - 0.035))
    picture = c.ramp(
        (c.y - h - 0.42) / 0.4,
        (
            (0.0, (0.45, 0.72, 0.42)),
            (0.4, (0.62, 0.84, 0.58)),
            (0.45, (0.98, 0.86, 0.66)),
            (1.0, (0.55, 0.75, 0.95)),
        ),
    )
    out = c.over(out, picture, c.edge(frame))
    out = c.over(out, (1.0, 0.95, 0.7), c.disc(px + 0.07, h + 0.70, 0.045))
    plank = torch.sin((c.x / (0.35 + (h - c.y).clamp(min=0.0))) * 9.0)
    wood = c.ramp(((h - c.y) / (h + 1.0)).clamp(0, 1), ((0.0, (0.76, 0.56, 0.38)), (1.0, (0.86, 0.66, 0.46))))
    wood = (
        wood * (1.0 - 0.10 * step(0.93, 1.0, plank.abs())[:, None]) * (1.0 + 0.05 * (c.noise(4, 20, 5)[:, None] - 0.5))
    )
    out = c.over(out, wood, c.below(h))
    rug = ((c.x / 0.86) ** 2 + ((c.y + 0.72) / 0.30) ** 2).sqrt()
    cols = ((0.90, 0.44, 0.42), (0.98, 0.90, 0.76), (0.34, 0.60, 0.66))
    for r, col in zip((1.0, 0.82, 0.62), cols, strict=True):
        out = c.over(out, col, c.edge((rug - r) * 0.4).expand(c.n, -1, -1))
    return out
