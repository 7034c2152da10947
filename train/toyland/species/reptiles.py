"""Scaly ones: dinosaur, dragon and turtle."""

from __future__ import annotations

from train.toyland.parts import DARK, FRUSTUM, Paint, Rig, Vec, mix

CLAW = Paint((0.98, 0.95, 0.85), gloss=0.5)


def _saurian(rig: Rig) -> tuple[Vec, float, float]:
    """Upright body with a heavy tail; returns head centre, head size and the height of the shoulders."""
    g, legs = rig.girth, 0.13 * rig.legs
    sit = rig.pose == "sitting"
    base = 0.03 if sit else legs
    bx, by, bz = 0.2 * g, 0.24, 0.19 * g
    mid = base + by * 0.95
    step = 0.08 if rig.pose == "walking" else 0.0
    for side in (-1.0, 1.0):
        x, z = side * bx * 0.68, side * step
        if sit:
            rig.limb((x * 1.1, 0.09, 0.04), (x * 1.5, 0.075, 0.21), 0.088, rig.main)
            rig.ball((x * 1.55, 0.09, 0.27), (0.085, 0.1, 0.06), rig.second)
        else:
            rig.limb((x, base + 0.1, 0.0), (x, 0.05, z), 0.1, rig.main)
            rig.ball((x, 0.05, z + 0.055), (0.1, 0.055, 0.14), rig.main)
            for i in (-1.0, 0.0, 1.0):
                rig.ball((x + i * 0.05, 0.03, z + 0.175), (0.022, 0.026, 0.03), CLAW)
    rig.ball((0.0, mid, 0.0), (bx, by, bz), rig.main)
    rig.ball((0.0, mid - 0.03, bz * 0.3), (bx * 0.7, by * 0.8, bz * 0.78), rig.second)
    y = mid + by * 0.42
    for side in (-1.0, 1.0):
        a, b = (side * bx * 0.8, y, 0.06), (side * (bx + 0.03), y - 0.1, 0.19 - side * step)
        if rig.pose == "waving" and side < 0:
            b = (side * (bx + 0.16), y + 0.13, 0.1)
        rig.limb(a, b, 0.052, rig.main)
        rig.ball(b, 0.054, rig.second)
    low = mid - by * 0.55
    curl = (0.06, 0.22, -0.02)[rig.subject.tail]
    side = (0.1, 0.0, -0.18)[rig.subject.tail]
    path = (
        (0.0, low, -bz * 0.6),
        (side * 0.4, low * 0.6 + 0.05, -0.3),
        (side, 0.09 + curl * 0.6, -0.45),
        (side * 1.2, 0.12 + curl * 1.5, -0.55),
    )
    for i in range(3):
        rig.limb(path[i], path[i + 1], 0.12 - 0.035 * i, rig.main)
    h = 0.205 * rig.head
    c = (0.0, mid + by * 0.72 + h * 0.8, 0.06)
    rig.limb((0.0, mid + by * 0.4, 0.0), (0.0, c[1] - h * 0.2, 0.02), 0.12, rig.main)
    rig.ball(c, (h * 0.98, h * 0.92, h), rig.main)
    rig.ball((0.0, c[1] - h * 0.28, c[2] + h * 0.82), (h * 0.72, h * 0.48, h * 0.66), rig.main)
    rig.ball((0.0, c[1] - h * 0.5, c[2] + h * 0.72), (h * 0.62, h * 0.3, h * 0.62), rig.second)
    rig.ball((h * 0.26, c[1] - h * 0.04, c[2] + h * 1.34), (0.018, 0.018, 0.014), DARK, mirror=True)
    rig.eye_pair((0.0, c[1] + h * 0.34, c[2] + h * 0.78), h * 0.5, 0.048 * rig.head, rig.subject.eyes)
    _spikes(rig, c, h, mid, by, bz)
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, c[1] + h * 0.8, c[2]), h * 0.62
    anchors.eyes, anchors.eye_gap, anchors.eye_radius = (0.0, c[1] + h * 0.34, c[2] + h * 0.78 + 0.05), h * 0.5, 0.076
    anchors.neck, anchors.neck_radius = (0.0, mid + by * 0.74, 0.02), (0.145 * g, 0.15 * g)
    anchors.back, anchors.back_width, anchors.drop = (0.0, mid + by * 0.62, -bz * 0.75), bx * 1.0, mid + 0.1
    return c, h, mid + by * 0.4


def _spikes(rig: Rig, c: Vec, h: float, mid: float, by: float, bz: float) -> None:
    """A row down the back; `ears` sets their size and whether they are cones or plates."""
    v = rig.subject.ears
    size = (1.0, 1.45, 0.8, 1.1)[v]
    spots = (
        (c[1] + h * 0.75, c[2] - h * 0.5),
        (c[1] + h * 0.1, c[2] - h * 0.9),
        (mid + by * 0.55, -bz * 0.78),
        (mid, -bz * 0.98),
        (mid - by * 0.5, -bz * 1.05),
    )
    for i, (y, z) in enumerate(spots):
        up = 0.09 * size * (1.0 - 0.08 * i)
        if v == 3:
            rig.ball((0.0, y + 0.02, z - 0.02), (0.025, up, up * 0.9), rig.second)
        else:
            rig.rod(
                (0.0, y - 0.02, z + 0.03),
                (0.0, y + up * (1.0 - 0.2 * i), z - up * (0.35 + 0.2 * i)),
                0.05 * size,
                rig.second,
                0.08,
            )


def dinosaur(rig: Rig) -> None:
    """A friendly tyrannosaur with a toothy snout."""
    c, h, _ = _saurian(rig)
    for x in (-0.4, -0.14, 0.14, 0.4):
        y = c[1] - h * 0.44
        z = c[2] + h * (1.36 - 0.6 * x * x)
        rig.rod((h * x, y, z), (h * x, y - 0.045, z), 0.022, CLAW, 0.1)


def dragon(rig: Rig) -> None:
    """The same body with horns and bat wings."""
    c, h, y = _saurian(rig)
    rig.rod(
        (h * 0.5, c[1] + h * 0.6, c[2] - h * 0.2),
        (h * 0.85, c[1] + h * 1.35, c[2] - h * 0.65),
        0.05,
        CLAW,
        0.08,
        mirror=True,
    )
    up = 0.16 if rig.pose in ("waving", "walking") else 0.0
    wing = Paint(mix(rig.c2, (1.0, 1.0, 1.0), 0.1), gloss=0.3)
    for i, (dx, dy) in enumerate(((0.34, 0.3), (0.4, 0.12), (0.34, -0.06))):
        a = (0.07, y - 0.02 - 0.03 * i, -0.17)
        b = (0.07 + dx, y + dy + up, -0.3)
        rig.limb(a, b, 0.085, wing, mirror=True, flat=0.2)
    rig.limb((0.07, y, -0.165), (0.44, y + 0.33 + up, -0.29), 0.03, rig.main, mirror=True)
    rig.rod((-0.02, c[1] - h * 0.55, c[2] + h * 1.2), (-0.02, c[1] - h * 0.6, c[2] + h * 1.36), 0.02, CLAW, 0.2)


def turtle(rig: Rig) -> None:
    """A turtle on four stubby legs under a domed shell in the second colour's rim."""
    g, legs = rig.girth, 0.1 * rig.legs
    sit = rig.pose == "sitting"
    lift = 0.03 if sit else legs
    step = 0.05 if rig.pose == "walking" else 0.0
    skin = rig.second
    for sx in (-1.0, 1.0):
        for sz in (-1.0, 1.0):
            z = sz * 0.21 + step * sx * sz
            out = 1.3 if sit else 1.0
            rig.limb((sx * 0.17 * g, lift + 0.1, z * 0.9), (sx * 0.25 * g * out, 0.055, z * out), 0.085, skin)
    mid = lift + 0.14
    rig.ball((0.0, mid, 0.0), (0.29 * g, 0.1, 0.34), Paint(mix(rig.c2, (1.0, 1.0, 0.9), 0.35)))
    rise = (0.26, 0.32, 0.21, 0.27)[rig.subject.ears]
    rig.ball((0.0, mid + 0.03, -0.01), (0.285 * g, rise, 0.33), rig.shiny)
    if rig.subject.ears == 3:
        for x, y, z in ((0.0, rise + 0.02, 0.0), (0.0, rise * 0.83, 0.17), (0.0, rise * 0.83, -0.19)):
            rig.ball((x, mid + y, z), (0.06, 0.035, 0.06), rig.second)
    rig.put(FRUSTUM, (0.0, mid + 0.03, -0.01), (0.3 * g, 0.032, 0.345), rig.shiny, taper=0.97)
    h = 0.155 * rig.head
    up = 0.08 if rig.pose == "waving" else 0.0
    c = (0.0, mid + 0.2 + up, 0.45)
    rig.limb((0.0, mid + 0.02, 0.24), (0.0, c[1] - 0.06, c[2] - 0.03), 0.085, skin)
    rig.ball(c, (h, h * 0.95, h * 1.05), skin)
    rig.ball((0.0, c[1] - h * 0.35, c[2] + h * 0.5), (h * 0.75, h * 0.5, h * 0.68), skin)
    size = (0.07, 0.11, 0.05)[rig.subject.tail]
    rig.rod((0.0, mid, -0.31), (0.0, mid - 0.03, -0.34 - size), 0.045, skin, 0.1)
    rig.eye_pair((0.0, c[1] + h * 0.28, c[2] + h * 0.82), h * 0.5, 0.042 * rig.head, rig.subject.eyes)
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, c[1] + h * 0.82, c[2] - 0.01), h * 0.7
    anchors.eyes, anchors.eye_gap, anchors.eye_radius = (0.0, c[1] + h * 0.28, c[2] + h * 0.82 + 0.045), h * 0.52, 0.066
    anchors.neck, anchors.neck_radius = (0.0, mid + 0.09 + up * 0.5, 0.37), (0.09, 0.1)
    anchors.back, anchors.back_width, anchors.drop = (0.0, mid + rise * 0.8, -0.27), 0.2 * g, rise * 0.9
