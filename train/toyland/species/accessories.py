"""Things to wear, set on the anchors every species gives."""

from __future__ import annotations

import math

from train.toyland.parts import FRUSTUM, Paint, Rig, mix, rotation
from train.toyland.subjects import COLORS

ACCESSORIES: tuple[str, ...] = (
    "none", "hat", "crown", "scarf", "glasses", "bow tie", "cape", "party hat", "headphones", "flower",
)  # fmt: skip
FRONT_ONLY = frozenset({"glasses", "bow tie"})  # unseen from behind: such views are always from the front


def dress(rig: Rig, accessory: str, color: str) -> None:
    """Add the accessory's primitives to the rig (marked as accessory, unpatterned). Raises ValueError."""
    if accessory == "none":
        return
    if accessory not in ACCESSORIES:
        raise ValueError(f"accessory is {accessory!r}; choose one of {', '.join(ACCESSORIES)}")
    rig.accessory = 1.0
    _MAKERS[accessory](rig, Paint(COLORS[color], gloss=0.45), COLORS[color])
    rig.accessory = 0.0


def _hat(rig: Rig, p: Paint, c: tuple[float, float, float]) -> None:
    (x, y, z), r = rig.anchors.top, rig.anchors.top_radius
    band = Paint(mix(c, (0.02, 0.02, 0.03), 0.72) if sum(c) > 0.9 else (0.85, 0.2, 0.2), gloss=0.3)
    rig.put(FRUSTUM, (x, y + 0.012, z), (r * 1.55, 0.02, r * 1.55), p)
    rig.put(FRUSTUM, (x, y + r * 0.95, z), (r * 0.9, r * 0.95, r * 0.9), p, taper=1.08)
    rig.put(FRUSTUM, (x, y + r * 0.3, z), (r * 0.94, r * 0.2, r * 0.94), band)


def _crown(rig: Rig, p: Paint, c: tuple[float, float, float]) -> None:
    (x, y, z), r = rig.anchors.top, rig.anchors.top_radius * 0.95
    shine = Paint(c, gloss=1.0)
    gem = Paint((0.95, 0.15, 0.3) if c[0] < 0.8 else (0.2, 0.5, 1.0), gloss=1.0, glow=0.3)
    rig.put(FRUSTUM, (x, y + r * 0.3, z), (r, r * 0.42, r), shine, taper=1.08)
    for i in range(6):
        a = i * math.pi / 3 + math.pi / 6
        px, pz = math.sin(a) * r * 0.88, math.cos(a) * r * 0.88
        rig.rod((x + px, y + r * 0.6, z + pz), (x + px * 1.22, y + r * 1.5, z + pz * 1.22), r * 0.32, shine, 0.08)
        rig.ball((x + px * 1.22, y + r * 1.5, z + pz * 1.22), r * 0.13, shine)
    for i in (-1, 0, 1):
        a = i * 0.9
        rig.ball((x + math.sin(a) * r * 1.04, y + r * 0.28, z + math.cos(a) * r * 1.04), r * 0.16, gem)


def _scarf(rig: Rig, p: Paint, c: tuple[float, float, float]) -> None:
    (x, y, z), (rx, rz) = rig.anchors.neck, rig.anchors.neck_radius
    fat = 0.055
    rig.ball((x, y, z), (rx + 0.05, fat, rz + 0.05), p)
    rig.ball((x, y + 0.03, z), (rx + 0.02, fat, rz + 0.02), p)
    knot = (x + rx * 0.45, y - 0.015, z + rz * 0.9 + 0.03)
    rig.ball(knot, (0.052, 0.048, 0.042), p)
    dark = Paint(mix(c, (1.0, 1.0, 1.0) if sum(c) < 1.2 else (0.0, 0.0, 0.0), 0.25), gloss=0.3)
    rig.box((knot[0] + 0.012, y - 0.12, knot[2] + 0.012), (0.045, 0.1, 0.022), p, rotation(6.0, 0.0, 8.0))
    rig.box((knot[0] + 0.026, y - 0.205, knot[2] + 0.022), (0.046, 0.02, 0.024), dark, rotation(6.0, 0.0, 8.0))


def _glasses(rig: Rig, p: Paint, c: tuple[float, float, float]) -> None:
    anchors = rig.anchors
    (x, y, z), g, r = anchors.eyes, anchors.eye_gap, anchors.eye_radius
    g = max(g, r * 1.12)
    lens = Paint(mix(c, (0.05, 0.05, 0.08), 0.86), gloss=1.0)
    for side in (-1.0, 1.0):
        turn = rotation(90.0, side * 8.0)
        rig.put(FRUSTUM, (x + side * g, y, z), (r * 1.16, 0.018, r * 1.08), p, turn)
        rig.put(FRUSTUM, (x + side * g, y, z + 0.006), (r * 0.8, 0.02, r * 0.74), lens, turn)
        rig.ball(
            (x + side * g + r * 0.3, y + r * 0.3, z + 0.026),
            (r * 0.2, r * 0.12, 0.006),
            Paint((1.0, 1.0, 1.0), glow=0.9),
        )
        rig.rod((x + side * (g + r), y, z - 0.01), (x + side * (g + r * 1.1), y + 0.01, z - 0.16), 0.017, p)
    rig.box((x, y + r * 0.2, z), (max(g - r * 0.9, 0.02), 0.017, 0.016), p)


def _bow_tie(rig: Rig, p: Paint, c: tuple[float, float, float]) -> None:
    (x, y, z), (_, rz) = rig.anchors.neck, rig.anchors.neck_radius
    front = z + rz + 0.035
    for side in (-1.0, 1.0):
        rig.rod((x + side * 0.135, y - 0.02, front), (x + side * 0.005, y - 0.02, front), 0.09, p, 0.22)
    rig.ball((x, y - 0.02, front + 0.01), (0.036, 0.042, 0.04), Paint(mix(c, (0.0, 0.0, 0.0), 0.25), gloss=0.4))


def _cape(rig: Rig, p: Paint, c: tuple[float, float, float]) -> None:
    anchors = rig.anchors
    (x, y, z), w, drop = anchors.back, anchors.back_width, anchors.drop
    clasp = Paint((0.98, 0.82, 0.3), gloss=0.9)
    (nx, ny, nz), (rx, rz) = anchors.neck, anchors.neck_radius
    rig.ball((nx, ny, nz - 0.01), (rx + 0.035, 0.04, rz + 0.03), p)
    rig.box((x, y - drop * 0.5, z - 0.075), (w * 1.12, drop * 0.55, 0.022), p, rotation(13.0))
    for i in (-1.0, 0.0, 1.0):
        rig.limb(
            (x + i * w * 0.55, y - 0.02, z - 0.03),
            (x + i * w * 0.95, y - drop, z - 0.15),
            w * 0.3,
            p,
            flat=0.35,
        )
    rig.ball((nx, ny - 0.01, nz + rz + 0.03), 0.034, clasp)


def _party_hat(rig: Rig, p: Paint, c: tuple[float, float, float]) -> None:
    (x, y, z), r = rig.anchors.top, rig.anchors.top_radius
    pale = Paint(mix(c, (1.0, 1.0, 1.0), 0.85) if sum(c) < 2.6 else (0.95, 0.3, 0.4), gloss=0.2)
    rig.rod((x, y - 0.02, z), (x, y + r * 2.6, z), r * 0.95, p, 0.06)
    rig.put(FRUSTUM, (x, y + r * 0.75, z), (r * 0.7, r * 0.14, r * 0.7), pale, taper=0.86)
    rig.ball((x, y + r * 2.65, z), r * 0.3, pale)


def _headphones(rig: Rig, p: Paint, c: tuple[float, float, float]) -> None:
    anchors = rig.anchors
    (x, y, z), mid, r = anchors.top, anchors.eyes[1] + 0.01, anchors.top_radius * 1.62
    h = max(y - mid + 0.03, 0.1)
    if anchors.side is not None:
        mid, r, h = anchors.side
    dark = Paint(mix(c, (0.0, 0.0, 0.0), 0.45), gloss=0.4)
    for i in range(7):
        t0, t1 = math.pi * i / 7, math.pi * (i + 1) / 7
        p0 = (x + math.cos(t0) * r, mid + math.sin(t0) * h, z)
        p1 = (x + math.cos(t1) * r, mid + math.sin(t1) * h, z)
        rig.limb(p0, p1, 0.026, p)
    rig.put(FRUSTUM, (x + r, mid, z), (0.085, 0.045, 0.085), p, rotation(0.0, 0.0, 90.0), mirror=True)
    rig.put(FRUSTUM, (x + r * 0.93, mid, z), (0.07, 0.035, 0.07), dark, rotation(0.0, 0.0, 90.0), mirror=True)


def _flower(rig: Rig, p: Paint, c: tuple[float, float, float]) -> None:
    (x, y, z), r = rig.anchors.top, rig.anchors.top_radius
    heart = Paint((0.99, 0.85, 0.2) if c[1] < 0.75 else (0.75, 0.35, 0.1), gloss=0.3)
    cx, cy, cz = x + r * 0.75, y + r * 0.05, z + r * 0.75
    for i in range(5):
        a = i * 2 * math.pi / 5 + 0.3
        rig.ball((cx + math.cos(a) * r * 0.5, cy + math.sin(a) * r * 0.5, cz), (r * 0.36, r * 0.36, r * 0.16), p)
    rig.ball((cx, cy, cz + r * 0.12), (r * 0.27, r * 0.27, r * 0.16), heart)


_MAKERS = {
    "hat": _hat, "crown": _crown, "scarf": _scarf, "glasses": _glasses, "bow tie": _bow_tie, "cape": _cape,
    "party hat": _party_hat, "headphones": _headphones, "flower": _flower,
}  # fmt: skip
