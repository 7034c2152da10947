"""Machines and household things."""

from __future__ import annotations

from train.toyland.parts import DARK, FRUSTUM, GLASS, METAL, RUBBER, SPARK, Paint, Rig, Vec, rotation

LAMP = Paint((1.0, 0.95, 0.7), gloss=0.5, glow=0.6)
TAIL_LAMP = Paint((0.9, 0.1, 0.1), gloss=0.5, glow=0.3)


def robot(rig: Rig) -> None:
    """A tin robot: box head, box body, rod limbs, antenna."""
    g, legs = rig.girth, 0.17 * rig.legs
    sit = rig.pose == "sitting"
    base = 0.02 if sit else legs
    bx, by, bz = 0.2 * g, 0.18, 0.145 * g
    mid = base + by
    step = 0.09 if rig.pose == "walking" else 0.0
    for side in (-1.0, 1.0):
        x, z = side * bx * 0.55, side * step
        if sit:
            rig.rod((x, 0.07, 0.05), (x * 1.15, 0.07, 0.25), 0.055, METAL)
            rig.box((x * 1.15, 0.085, 0.27), (0.078, 0.095, 0.05), rig.shiny2)
        else:
            rig.rod((x, base + 0.03, 0.0), (x, 0.07, z), 0.055, METAL)
            rig.box((x, 0.045, z + 0.03), (0.085, 0.05, 0.115), rig.shiny2)
    rig.box((0.0, mid, 0.0), (bx, by, bz), rig.shiny)
    _panel(rig, (0.0, mid, bz), bx)
    _robot_arms(rig, bx, mid + by * 0.5)
    hx, hy, hz = 0.215 * rig.head, 0.17 * rig.head, 0.165 * rig.head
    neck = mid + by
    rig.rod((0.0, neck - 0.02, 0.0), (0.0, neck + 0.09, 0.0), 0.07, METAL)
    c = (0.0, neck + 0.06 + hy, 0.0)
    rig.box(c, (hx, hy, hz), rig.shiny)
    front = c[2] + hz
    rig.box((0.0, c[1] + hy * 0.18, front - 0.012), (hx * 0.8, hy * 0.46, 0.035), DARK)
    eye = Paint((0.35, 0.95, 1.0), gloss=0.8, glow=0.9)
    gap, r = hx * 0.4, 0.046 * rig.head
    form = ((r, r, 0.03), (r * 1.25, r * 0.72, 0.03), (r * 0.78, r * 1.2, 0.03))[rig.subject.eyes]
    rig.ball((gap, c[1] + hy * 0.18, front + 0.018), form, eye, mirror=True)
    rig.box((0.0, c[1] - hy * 0.6, front), (hx * 0.46, hy * 0.12, 0.016), DARK)
    rig.put(
        FRUSTUM,
        (hx + 0.02, c[1], c[2]),
        (0.055, 0.03, 0.055),
        rig.shiny2,
        rotation(0.0, 0.0, 90.0),
        mirror=True,
    )
    _antenna(rig, (0.0, c[1] + hy, c[2]), hx)
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, c[1] + hy * 0.98, 0.0), hx * 0.66
    anchors.eyes, anchors.eye_gap, anchors.eye_radius = (0.0, c[1] + hy * 0.18, front + 0.045), gap, r * 1.6
    anchors.neck, anchors.neck_radius = (0.0, neck + 0.022, 0.0), (bx * 0.92, bz * 1.02)
    anchors.back, anchors.back_width, anchors.drop = (0.0, neck - 0.02, -bz - 0.01), bx * 0.95, neck - 0.1


def _panel(rig: Rig, at: Vec, bx: float) -> None:
    _, y, z = at
    v = rig.subject.tail
    rig.box((0.0, y, z), (bx * 0.66, 0.1, 0.018), rig.shiny2)
    red, green = Paint((0.95, 0.2, 0.2), gloss=0.8, glow=0.4), Paint((0.3, 0.95, 0.4), gloss=0.8, glow=0.4)
    if v == 0:
        rig.ball((-bx * 0.3, y + 0.03, z + 0.018), 0.028, red)
        rig.ball((bx * 0.3, y + 0.03, z + 0.018), 0.028, green)
        rig.box((0.0, y - 0.045, z + 0.015), (bx * 0.5, 0.016, 0.012), DARK)
    elif v == 1:
        rig.put(FRUSTUM, (0.0, y, z + 0.016), (0.07, 0.012, 0.07), Paint((0.98, 0.98, 0.95)), rotation(90.0))
        rig.rod((0.0, y, z + 0.034), (0.035, y + 0.035, z + 0.034), 0.01, DARK)
    else:
        for i in (-1.0, 0.0, 1.0):
            rig.box((0.0, y + i * 0.05, z + 0.012), (bx * 0.5, 0.014, 0.014), DARK)


def _robot_arms(rig: Rig, bx: float, y: float) -> None:
    for side in (-1.0, 1.0):
        x = side * (bx + 0.045)
        elbow, hand = (x + side * 0.035, y - 0.11, 0.02), (x + side * 0.04, y - 0.22, 0.07)
        if rig.pose == "waving" and side < 0:
            elbow, hand = (x + side * 0.09, y + 0.02, 0.04), (x + side * 0.11, y + 0.15, 0.08)
        elif rig.pose == "walking":
            hand = (hand[0], hand[1] + 0.03, 0.05 - side * 0.13)
        rig.ball((x, y, 0.0), 0.062, rig.shiny2)
        rig.rod((x, y, 0.0), elbow, 0.04, METAL)
        rig.ball(elbow, 0.045, METAL)
        rig.rod(elbow, hand, 0.046, rig.shiny)
        rig.ball(hand, 0.062, rig.shiny2)


def _antenna(rig: Rig, top: Vec, hx: float) -> None:
    _, y, z = top
    v = rig.subject.ears
    knob = Paint((0.95, 0.2, 0.2), gloss=0.9, glow=0.3)
    if v in (0, 2):
        for px in (0.0,) if v == 0 else (-hx * 0.5, hx * 0.5):
            rig.rod((px, y - 0.01, z), (px * 1.3, y + 0.12, z), 0.015, METAL)
            rig.ball((px * 1.3, y + 0.14, z), 0.036, knob)
    elif v == 1:
        rig.put(FRUSTUM, (0.0, y + 0.025, z), (0.07, 0.03, 0.07), METAL, taper=0.7)
        rig.ball((0.0, y + 0.06, z), (0.055, 0.06, 0.055), knob)
    else:
        rig.box((0.0, y + 0.035, z), (0.028, 0.05, 0.12), rig.shiny2)


def truck(rig: Rig) -> None:
    """A lorry looking along +z: cabin in the second colour, cargo box, open bed or tank in the first."""
    w, long = 0.25 * rig.girth, 0.46 * rig.legs**0.6
    wheel, v = 0.11, rig.subject.ears
    y = wheel + 0.06
    rig.box((0.0, y, 0.0), (w * 0.9, 0.05, long), DARK)
    cab_z, cab = long * 0.62, 0.22 * rig.head
    cy = y + 0.03 + cab
    rig.box((0.0, cy, cab_z), (w, cab, long * 0.36), rig.shiny2)
    rig.box((0.0, cy + cab * 0.3, cab_z + 0.012), (w * 0.82, cab * 0.38, long * 0.37), GLASS)
    rig.box((0.0, cy + cab * 0.3, cab_z + 0.03), (w * 1.02, cab * 0.36, long * 0.2), GLASS)
    back, deep = -long * 0.42, long * 0.62
    high = (0.3, 0.36, 0.12, 0.24)[v]
    if v == 3:
        rig.ball((0.0, y + 0.03 + high, back), (w * 1.0, high, deep), rig.shiny)
        rig.put(FRUSTUM, (0.0, y + 0.05 + high * 2, back), (0.08, 0.03, 0.08), METAL)
    else:
        rig.box((0.0, y + 0.04 + high, back), (w * 1.06, high, deep), rig.shiny)
    if v == 2:
        rig.box((0.0, y + 0.05 + high * 1.75, back), (w * 0.9, high * 0.3, deep * 0.88), Paint((0.62, 0.45, 0.3)))
        for i in (-0.5, 0.1, 0.6):
            rig.ball(
                (w * i * 0.7, y + high * 2.05, back + deep * i * 0.7),
                (w * 0.5, 0.1, w * 0.55),
                Paint((0.58, 0.42, 0.28)),
            )
    for sz, wide in ((0.62, 1.0), (-0.3, 1.0), (-0.72, 1.0)):
        for sx in (-1.0, 1.0):
            steer = {"walking": 22.0, "sitting": -22.0}.get(rig.pose, 0.0) if sz > 0 else 0.0
            turn = rotation(0.0, steer, 90.0)
            at = (sx * w * 0.94 * wide, wheel, sz * long)
            rig.put(FRUSTUM, at, (wheel, 0.055, wheel), RUBBER, turn)
            rig.put(FRUSTUM, (at[0] + sx * 0.008, wheel, at[2]), (wheel * 0.56, 0.055, wheel * 0.56), METAL, turn)
    front = cab_z + long * 0.36
    lamp = (0.05, 0.06, 0.044)[rig.subject.eyes]
    rig.ball((w * 0.66, y + 0.07, front), (lamp, lamp, 0.035), LAMP, mirror=True)
    rig.box((0.0, y + 0.065, front + 0.002), (w * 0.36, 0.045, 0.016), METAL)
    rig.box((0.0, y - 0.02, front), (w * 1.0, 0.032, 0.04), METAL)
    top = cy + cab
    if rig.subject.tail == 0:
        rig.box((0.0, top + 0.02, cab_z), (w * 0.5, 0.03, 0.03), Paint((1.0, 0.7, 0.15), glow=0.5))
    elif rig.subject.tail == 1:
        rig.rod(
            (w * 0.9, cy, cab_z - long * 0.42),
            (w * 0.9, top + 0.16, cab_z - long * 0.42),
            0.026,
            METAL,
            1.0,
            True,
        )
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, top - 0.005, cab_z), w * 0.62
    anchors.eyes, anchors.eye_gap, anchors.eye_radius = (0.0, y + 0.07, front + 0.04), w * 0.66, 0.08
    anchors.neck, anchors.neck_radius = (0.0, cy - cab * 0.32, cab_z + 0.01), (w * 1.14, long * 0.44)
    anchors.back, anchors.back_width, anchors.drop = (0.0, y + high * 1.9, back - deep), w * 0.95, 0.4
    anchors.side = (cy + cab * 0.3, w * 1.08, top - cy - cab * 0.3 + 0.04)


def car(rig: Rig) -> None:
    """A toy car looking along +z; `ears` is the kind of cabin, `tail` spoiler, rack or nothing."""
    w, long = 0.27 * rig.girth, 0.46 * rig.legs**0.6
    v = rig.subject.ears
    wheel = 0.115
    jump = 5.0 if rig.pose == "waving" else 0.0
    y = wheel + 0.085
    rig.box((0.0, y, 0.0), (w, 0.1, long), rig.shiny, rotation(-jump))
    rig.box((0.0, y - 0.06, 0.0), (w * 1.04, 0.035, long * 1.04), rig.shiny2)
    cab_z, cab_l, cab_h = ((-0.06, 0.25, 0.13), (-0.1, 0.34, 0.17), (0.06, 0.17, 0.14), (-0.04, 0.28, 0.14))[v]
    cab_h *= rig.head
    top = y + 0.08 + cab_h * 2 * 0.86
    cy = y + 0.07 + cab_h * 0.86
    if v == 3:  # a beetle: everything round
        rig.ball((0.0, y + 0.06, -0.04), (w * 0.9, 0.3 * rig.head**0.5, cab_l * 1.15), rig.shiny)
        cy, cab_h, top = y + 0.16, 0.13 * rig.head, y + 0.06 + 0.3 * rig.head**0.5
        rig.ball((0.0, y + 0.03, 0.0), (w * 1.02, 0.13, long * 1.02), rig.shiny)
        high = 0.3 * rig.head**0.5
        at = (0.0, y + 0.06 + high * 0.54, -0.04)
        rig.put(FRUSTUM, at, (w * 0.87, high * 0.2, cab_l * 1.11), GLASS, taper=0.74)
        rig.box(at, (w * 0.84, high * 0.2, 0.02), rig.flat)
    else:
        rig.box((0.0, cy, cab_z), (w * 0.84, cab_h, cab_l), rig.shiny)
        rig.box((0.0, cy + 0.012, cab_z), (w * 0.87, cab_h * 0.56, cab_l * 0.8), GLASS)
        rig.box((0.0, cy + 0.012, cab_z), (w * 0.7, cab_h * 0.56, cab_l * 1.035), GLASS)
        rig.box((0.0, cy, cab_z - 0.02), (w * 0.875, cab_h * 0.7, 0.022), rig.flat)
    if v == 2:  # a pickup: open bed behind
        rig.box((0.0, y + 0.1, -long * 0.55), (w * 0.74, 0.012, long * 0.36), DARK)
        rig.box((w * 0.86, y + 0.11, -long * 0.5), (0.035, 0.05, long * 0.45), rig.shiny, mirror=True)
    steer = {"walking": 24.0, "sitting": -24.0}.get(rig.pose, 0.0)
    for sz in (-1.0, 1.0):
        for sx in (-1.0, 1.0):
            turn = rotation(0.0, steer if sz > 0 else 0.0, 90.0)
            at = (sx * w * 0.96, wheel, sz * long * 0.6)
            rig.put(FRUSTUM, at, (wheel, 0.055, wheel), RUBBER, turn)
            rig.put(FRUSTUM, (at[0] + sx * 0.008, wheel, at[2]), (wheel * 0.56, 0.055, wheel * 0.56), METAL, turn)
    front = long * 1.0
    lamp = (0.058, 0.066, 0.05)[rig.subject.eyes]
    wide = (1.0, 1.3, 1.0)[rig.subject.eyes]
    rig.ball((w * 0.62, y + 0.02, front - 0.012), (lamp * wide, lamp, 0.045), LAMP, mirror=True)
    rig.box((0.0, y - 0.01, front), (w * 0.3, 0.03, 0.016), DARK)
    rig.box((w * 0.66, y + 0.02, -front), (0.05, 0.028, 0.014), TAIL_LAMP, mirror=True)
    if rig.subject.tail == 0:
        rig.box((0.0, y + 0.17, -long * 0.92), (w * 0.9, 0.018, 0.06), rig.shiny2)
        rig.box((w * 0.6, y + 0.12, -long * 0.92), (0.02, 0.06, 0.03), rig.shiny2, mirror=True)
    elif rig.subject.tail == 1:
        rig.rod(
            (w * 0.5, top - 0.005, cab_z - cab_l * 0.6),
            (w * 0.5, top - 0.005, cab_z + cab_l * 0.6),
            0.025,
            rig.shiny2,
            1.0,
            True,
        )
    rig.ball((w * 0.55, y + 0.045, front + 0.03), (0.012, 0.012, 0.01), SPARK, mirror=True)
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, top - 0.012, cab_z), w * 0.6
    anchors.eyes, anchors.eye_gap, anchors.eye_radius = (0.0, y + 0.02, front + 0.045), w * 0.62, 0.085
    anchors.neck, anchors.neck_radius = (0.0, y + 0.135, cab_z), (w * 0.98, cab_l * 1.12)
    anchors.back, anchors.back_width, anchors.drop = (0.0, top - 0.04, cab_z - cab_l - 0.01), w * 0.8, 0.3
    anchors.side = (cy, w * 0.93, top - cy + 0.04)
