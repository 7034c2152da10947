"""Birds: duck, penguin and owl."""

from __future__ import annotations

from train.toyland.parts import DARK, WHITE, Paint, Rig, Vec, mix, rotation

BEAK = Paint((0.98, 0.6, 0.12), gloss=0.5)


def _beak(rig: Rig) -> Paint:
    return BEAK if rig.subject.color_1 != "orange" else Paint((0.99, 0.84, 0.25), gloss=0.5)


def _feet(rig: Rig, width: float) -> None:
    step = 0.08 if rig.pose == "walking" else 0.0
    sit = rig.pose == "sitting"
    for side in (-1.0, 1.0):
        at = (side * width, 0.05 if sit else 0.03, 0.25 if sit else 0.09 + side * step)
        half = (0.085, 0.1, 0.035) if sit else (0.085, 0.03, 0.12)
        rig.ball(at, half, _beak(rig), rotation(-12.0 if sit else 0.0))


def penguin(rig: Rig) -> None:
    """A penguin: one smooth body, a bib in the second colour, flippers."""
    g, lift = rig.girth, 0.0 if rig.pose == "sitting" else 0.04 * rig.legs
    mid = lift + 0.33
    rig.ball((0.0, mid, 0.0), (0.26 * g, 0.33, 0.235 * g), rig.main)
    rig.ball((0.0, mid - 0.02, 0.055), (0.2 * g, 0.28, 0.2 * g), rig.second)
    h = 0.215 * rig.head
    c = (0.0, mid + 0.26 + h * 0.62, 0.02)
    rig.ball(c, (h, h * 0.95, h * 0.95), rig.main)
    rig.ball((h * 0.4, c[1] + h * 0.02, c[2] + h * 0.4), (h * 0.48, h * 0.62, h * 0.58), rig.second, mirror=True)
    wide = (0.4, 0.5, 0.3, 0.4)[rig.subject.ears]
    rig.rod(
        (0.0, c[1] - h * 0.2, c[2] + h * 0.75),
        (0.0, c[1] - h * 0.32, c[2] + h * 1.5),
        h * wide * 0.8,
        _beak(rig),
        0.15,
    )
    if rig.subject.ears == 3:
        _crest(rig, c, h)
    rig.eye_pair((0.0, c[1] + h * 0.2, c[2] + h * 0.88), h * 0.38, 0.044 * rig.head, rig.subject.eyes)
    for side in (-1.0, 1.0):
        a = (side * 0.225 * g, mid + 0.14, 0.0)
        b = (side * (0.31 * g + 0.03), mid - 0.12, 0.03)
        if rig.pose == "waving" and side < 0:
            b = (side * (0.3 * g + 0.16), mid + 0.26, 0.03)
        elif rig.pose == "walking":
            b = (side * (0.31 * g + 0.1), mid - 0.04, 0.03)
        rig.limb(a, b, 0.085, rig.main, flat=0.42)
    _feet(rig, 0.115 * g)
    size = (0.7, 1.0, 0.4)[rig.subject.tail]
    rig.rod((0.0, mid - 0.2, -0.15), (0.0, mid - 0.27, -0.15 - 0.16 * size), 0.09, rig.main, 0.2)
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, c[1] + h * 0.84, c[2] - 0.01), h * 0.64
    anchors.eyes, anchors.eye_gap, anchors.eye_radius = (0.0, c[1] + h * 0.2, c[2] + h * 0.88 + 0.045), h * 0.38, 0.075
    anchors.neck, anchors.neck_radius = (0.0, mid + 0.2, 0.012), (0.2 * g, 0.19 * g)
    anchors.back, anchors.back_width, anchors.drop = (0.0, mid + 0.2, -0.19 * g), 0.22 * g, mid + 0.08


def owl(rig: Rig) -> None:
    """An owl: egg body with a chest, huge eye discs, ear tufts, folded or spread wings."""
    g, lift = rig.girth, 0.0 if rig.pose == "sitting" else 0.04 * rig.legs
    mid = lift + 0.33
    rig.ball((0.0, mid, 0.0), (0.255 * g, 0.31, 0.22 * g), rig.main)
    rig.ball((0.0, mid - 0.06, 0.07 * g), (0.185 * g, 0.23, 0.17 * g), rig.second)
    h = 0.245 * rig.head
    c = (0.0, mid + 0.24 + h * 0.45, 0.01)
    rig.ball(c, (h * 1.05, h * 0.86, h * 0.88), rig.main)
    pale = Paint(mix(rig.c2, (1.0, 1.0, 1.0), 0.25))
    rig.ball(
        (h * 0.44, c[1] + h * 0.02, c[2] + h * 0.66),
        (h * 0.5, h * 0.5, h * 0.22),
        pale,
        rotation(0.0, 22.0),
        mirror=True,
    )
    rig.ball(
        (h * 0.43, c[1] + h * 0.04, c[2] + h * 0.8),
        (h * 0.33, h * 0.33, h * 0.16),
        WHITE,
        rotation(0.0, 18.0),
        mirror=True,
    )
    pupil = (0.2, 0.26, 0.15)[rig.subject.eyes]
    rig.ball(
        (h * 0.42, c[1] + h * 0.04, c[2] + h * 0.93),
        (h * pupil, h * pupil, h * 0.09),
        DARK,
        rotation(0.0, 14.0),
        mirror=True,
    )
    rig.ball(
        (h * 0.5, c[1] + h * 0.13, c[2] + h * 0.99),
        (0.014, 0.014, 0.01),
        Paint((1.0, 1.0, 1.0), glow=1.0),
        mirror=True,
    )
    rig.rod(
        (0.0, c[1] - h * 0.12, c[2] + h * 0.72),
        (0.0, c[1] - h * 0.42, c[2] + h * 1.06),
        h * 0.17,
        _beak(rig),
        0.1,
    )
    tall = (0.55, 0.8, 0.3, 0.6)[rig.subject.ears]
    lean = (0.25, 0.35, 0.1, 0.7)[rig.subject.ears]
    base = (h * 0.62, c[1] + h * 0.5, c[2])
    rig.rod(base, (base[0] + h * lean * 0.5, base[1] + h * tall, c[2]), h * 0.33, rig.main, 0.06, mirror=True)
    for side in (-1.0, 1.0):
        a = (side * 0.22 * g, mid + 0.15, -0.02)
        b = (side * (0.26 * g + 0.02), mid - 0.16, 0.0)
        if rig.pose == "waving":
            b = (side * (0.3 * g + 0.2), mid + 0.12, -0.02)
        rig.limb(a, b, 0.105, rig.second, flat=0.42)
    _feet(rig, 0.1 * g)
    size = (0.7, 1.1, 0.4)[rig.subject.tail]
    rig.limb((0.0, mid - 0.18, -0.14), (0.0, mid - 0.27, -0.16 - 0.1 * size), 0.07, rig.main)
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, c[1] + h * 0.76, c[2]), h * 0.55
    anchors.eyes, anchors.eye_gap, anchors.eye_radius = (0.0, c[1] + h * 0.04, c[2] + h * 1.05), h * 0.43, 0.092
    anchors.neck, anchors.neck_radius = (0.0, mid + 0.17, 0.01), (0.215 * g, 0.19 * g)
    anchors.back, anchors.back_width, anchors.drop = (0.0, mid + 0.17, -0.17 * g), 0.22 * g, mid + 0.05


def duck(rig: Rig) -> None:
    """A bath-toy duck: boat body, round head, beak, folded or flapping wings."""
    g = rig.girth
    legs = 0.085 * rig.legs
    sit = rig.pose == "sitting"
    lift = 0.0 if sit else legs
    orange = Paint((0.98, 0.55, 0.1), gloss=0.5)
    beak = orange if rig.subject.color_1 != "orange" else Paint((0.99, 0.8, 0.2), gloss=0.5)
    mid = lift + 0.2
    rig.ball((0.0, mid, -0.02), (0.235 * g, 0.2, 0.3), rig.main)
    rig.ball((0.0, mid - 0.02, 0.1), (0.18 * g, 0.165, 0.215), rig.second)
    if not sit:
        step = 0.08 if rig.pose == "walking" else 0.0
        for side in (-1.0, 1.0):
            z = 0.03 + side * step
            rig.rod((side * 0.09, 0.0, z - 0.02), (side * 0.09, lift + 0.08, 0.0), 0.026, beak)
            rig.ball((side * 0.095, 0.022, z + 0.035), (0.066, 0.024, 0.095), beak)
    tail = rig.subject.tail
    tip = ((0.0, mid + 0.22, -0.36), (0.0, mid + 0.12, -0.44), (0.0, mid + 0.28, -0.28))[tail]
    rig.rod((0.0, mid + 0.04, -0.19), tip, 0.12, rig.main, 0.15)
    flap = rig.pose == "waving"
    turn = rotation(0.0, 0.0, 62.0) if flap else rotation(-14.0, 0.0, 12.0)
    at = (0.31 * g, mid + 0.13, -0.05) if flap else (0.215 * g, mid + 0.025, -0.06)
    rig.ball(at, (0.05, 0.125, 0.185), rig.second, turn, mirror=True)
    h = 0.2 * rig.head
    c = (0.0, mid + 0.19 + h * 0.8, 0.17)
    rig.limb((0.0, mid + 0.08, 0.12), (0.0, c[1] - 0.04, 0.16), 0.11, rig.main)
    rig.ball(c, (h, h, h * 0.98), rig.main)
    rig.ball((0.0, c[1] - h * 0.2, c[2] + h * 1.1), (h * 0.46, h * 0.15, h * 0.46), beak, rotation(-8.0))
    rig.ball((0.0, c[1] - h * 0.36, c[2] + h * 1.0), (h * 0.36, h * 0.11, h * 0.36), beak, rotation(10.0))
    rig.eye_pair((0.0, c[1] + h * 0.22, c[2] + h * 0.78), h * 0.5, 0.042, rig.subject.eyes)
    _crest(rig, c, h)
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, c[1] + h * 0.86, c[2] - 0.01), h * 0.64
    anchors.eyes, anchors.eye_gap, anchors.eye_radius = (0.0, c[1] + h * 0.22, c[2] + h * 0.78 + 0.035), h * 0.5, 0.062
    anchors.neck, anchors.neck_radius = (0.0, mid + 0.155, 0.14), (0.135, 0.135)
    anchors.back, anchors.back_width, anchors.drop = (0.0, mid + 0.17, -0.05), 0.17 * g, 0.3


def _crest(rig: Rig, c: Vec, h: float) -> None:
    v = rig.subject.ears
    for i in range(v):
        x = (i - (v - 1) / 2) * 0.055
        top = c[1] + h * 0.9
        rig.limb((x * 0.6, top, c[2] - 0.02), (x * 1.6, top + 0.1, c[2] - 0.07), 0.028, rig.second)
