"""Soft animals: one biped rig with a table of parts, and a few bodies of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass

from train.toyland.parts import DARK, FRUSTUM, Paint, Rig, Vec, luminance, mix, rotation

PINK = Paint((0.98, 0.62, 0.66), gloss=0.4)


@dataclass(frozen=True)
class Biped:
    """What makes a plush biped its species."""

    ear: str  # round | pointed | long | floppy | small | mane …
    muzzle: str  # bear | cat | dog | pig | rabbit | frog | fox
    tail: str  # stub | long | puff | curl | brush
    head: Vec = (0.245, 0.215, 0.215)
    body: Vec = (0.205, 0.235, 0.18)
    arm: float = 0.072
    leg: float = 0.085


BIPEDS: dict[str, Biped] = {
    "bear": Biped("round", "bear", "stub", body=(0.225, 0.24, 0.2), arm=0.082, leg=0.098),
    "cat": Biped("pointed", "cat", "long", head=(0.255, 0.205, 0.2), body=(0.175, 0.225, 0.155), arm=0.06, leg=0.07),
    "rabbit": Biped("long", "rabbit", "puff", head=(0.215, 0.2, 0.2), body=(0.185, 0.225, 0.17), arm=0.062, leg=0.08),
    "dog": Biped("floppy", "dog", "long", head=(0.22, 0.22, 0.205), body=(0.19, 0.235, 0.17), arm=0.07, leg=0.08),
    "pig": Biped("flap", "pig", "curl", head=(0.245, 0.215, 0.21), body=(0.235, 0.23, 0.21), arm=0.07, leg=0.085),
    "mouse": Biped(
        "dish", "mouse", "long", head=(0.215, 0.195, 0.205), body=(0.17, 0.215, 0.155), arm=0.055, leg=0.068
    ),
    "fox": Biped("pointed", "fox", "brush", head=(0.235, 0.195, 0.19), body=(0.17, 0.225, 0.15), arm=0.06, leg=0.07),
    "lion": Biped("mane", "bear", "tuft", head=(0.215, 0.205, 0.2), body=(0.2, 0.235, 0.175), arm=0.072, leg=0.085),
    "frog": Biped("bulge", "frog", "none", head=(0.255, 0.18, 0.2), body=(0.2, 0.215, 0.175), arm=0.055, leg=0.08),
}


def biped(rig: Rig) -> None:
    """A plush animal on two legs; poses standing, sitting, walking, waving."""
    spec = BIPEDS[rig.subject.species]
    g, legs = rig.girth, 0.12 * rig.legs
    bx, by, bz = spec.body[0] * g, spec.body[1], spec.body[2] * g
    sit = rig.pose == "sitting"
    base = 0.02 if sit else legs
    mid = base + by * 0.95
    _legs(rig, spec, bx, base, sit)
    rig.ball((0.0, mid, 0.0), (bx, by, bz), rig.main)
    rig.ball((0.0, mid - 0.025, bz * 0.3), (bx * 0.68, by * 0.74, bz * 0.78), rig.second)
    _arms(rig, spec, bx, mid + by * 0.5)
    hx, hy, hz = (1.12 * v * rig.head for v in spec.head)
    top = mid + by * 0.78
    head = (0.0, top + hy * 0.86, 0.03)
    rig.ball(head, (hx, hy, hz), rig.main)
    _face(rig, spec.muzzle, head, (hx, hy, hz))
    _ears(rig, spec.ear, head, (hx, hy, hz))
    _tail(rig, spec.tail, mid - by * 0.45, bz)
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, head[1] + hy * 0.86, 0.02), hx * 0.62
    anchors.neck, anchors.neck_radius = (0.0, top - 0.01, 0.012), (bx * 0.86, bz * 0.95)
    anchors.back, anchors.back_width = (0.0, top - 0.02, -bz * 0.75), bx * 1.05
    anchors.drop = top - (0.04 if sit else 0.1)


def _legs(rig: Rig, spec: Biped, bx: float, base: float, sit: bool) -> None:
    r, x = spec.leg, bx * 0.56
    foot = (r * 1.05, r * 0.72, r * 1.4)
    if sit:
        rig.limb((x * 1.2, 0.085, 0.08), (x * 1.65, 0.07, 0.24), r, rig.main, mirror=True)
        rig.ball((x * 1.72, 0.085, 0.31), (r * 1.0, r * 1.25, r * 0.72), rig.second, mirror=True)
        return
    step = 0.085 if rig.pose == "walking" else 0.0
    for side in (-1.0, 1.0):
        z, lift = side * step, 0.025 if step and side > 0 else 0.0
        rig.limb((side * x, base + 0.08, 0.0), (side * x, 0.05 + lift, z), r, rig.main)
        rig.ball((side * x, r * 0.62 + lift, z + r * 0.5), foot, rig.second, rotation(-lift * 700))


def _arms(rig: Rig, spec: Biped, bx: float, y: float) -> None:
    r, x = spec.arm, bx * 0.86
    swing = 0.1 if rig.pose == "walking" else 0.0
    for side in (-1.0, 1.0):
        a = (side * x, y, 0.0)
        b = (side * (x + 0.1), y - 0.19, 0.05 - side * swing)
        if rig.pose == "waving" and side < 0:
            b = (side * (x + 0.16), y + 0.14, 0.06)
        elif rig.pose == "sitting":
            b = (side * (x + 0.05), y - 0.15, 0.15)
        rig.limb(a, b, r, rig.main)
        rig.ball((b[0], b[1], b[2]), r * 1.02, rig.second if spec.muzzle != "bear" else rig.flat)


def _face(rig: Rig, kind: str, c: Vec, h: Vec) -> None:
    x, y, z = h
    eye_y, eye_z, gap, r = c[1] + y * 0.14, c[2] + z * 0.86, x * 0.4, 0.05 * rig.head
    nose = DARK if luminance(rig.c2) > 0.3 else PINK
    if kind in ("bear", "dog"):
        long = 1.25 if kind == "dog" else 1.0
        rig.ball((0.0, c[1] - y * 0.3, c[2] + z * 0.82), (x * 0.43, y * 0.36, z * 0.42 * long), rig.second)
        rig.ball((0.0, c[1] - y * 0.14, c[2] + z * (0.98 + 0.28 * long)), (x * 0.17, y * 0.13, z * 0.11), nose)
    elif kind in ("cat", "mouse", "rabbit"):
        rig.ball(
            (x * 0.17, c[1] - y * 0.36, c[2] + z * 0.86),
            (x * 0.24, y * 0.23, z * 0.26),
            rig.second,
            mirror=True,
        )
        rig.ball(
            (0.0, c[1] - y * 0.2, c[2] + z * 1.1),
            (x * 0.105, y * 0.095, z * 0.1),
            PINK if kind != "mouse" else DARK,
        )
        if kind == "rabbit":
            tooth = Paint((0.98, 0.98, 0.95))
            rig.box((0.0, c[1] - y * 0.6, c[2] + z * 0.9), (x * 0.11, y * 0.15, z * 0.07), tooth)
    elif kind == "pig":
        rig.put(
            FRUSTUM,
            (0.0, c[1] - y * 0.2, c[2] + z * 1.0),
            (x * 0.34, z * 0.2, y * 0.29),
            rig.second,
            rotation(90.0),
        )
        rig.ball((x * 0.13, c[1] - y * 0.2, c[2] + z * 1.2), (x * 0.06, y * 0.1, z * 0.04), DARK, mirror=True)
    elif kind == "fox":
        rig.rod(
            (0.0, c[1] - y * 0.25, c[2] + z * 0.55),
            (0.0, c[1] - y * 0.36, c[2] + z * 1.5),
            x * 0.44,
            rig.second,
            0.3,
        )
        rig.ball((0.0, c[1] - y * 0.33, c[2] + z * 1.52), (x * 0.15, y * 0.14, z * 0.13), DARK)
    elif kind == "frog":
        rig.ball((0.0, c[1] - y * 0.42, c[2] + z * 0.32), (x * 0.9, y * 0.45, z * 0.76), rig.second)
        eye_y, eye_z, gap, r = c[1] + y * 0.92, c[2] + z * 0.62, x * 0.52, 0.046 * rig.head
        rig.ball((gap, eye_y - 0.01, eye_z - 0.065), 0.083 * rig.head, rig.main, mirror=True)
    rig.eye_pair((0.0, eye_y, eye_z), gap, r, rig.subject.eyes)
    anchors = rig.anchors
    anchors.eyes, anchors.eye_gap, anchors.eye_radius = (0.0, eye_y, eye_z + r * 0.9), gap, r * 1.75


def _ears(rig: Rig, kind: str, c: Vec, h: Vec) -> None:
    x, y, z = h
    v = rig.subject.ears
    size = (1.0, 1.28, 0.82, 1.08)[v]
    inner = rig.second
    if kind in ("round", "dish"):
        r = (0.088 if kind == "round" else 0.135) * size
        px, py = x * (0.74 if v != 3 else 0.92), c[1] + y * (0.76 if v != 3 else 0.55)
        rig.ball((px, py, c[2] - 0.02), (r, r, r * 0.55), rig.main, mirror=True)
        rig.ball((px, py, c[2] + r * 0.3), (r * 0.64, r * 0.64, r * 0.34), inner, mirror=True)
    elif kind == "pointed":
        base, lean = (x * 0.58, c[1] + y * 0.55, c[2]), (0.05, 0.1, 0.02, 0.14)[v]
        tip = (x * 0.58 + lean, c[1] + y * 0.62 + 0.2 * size, c[2] - 0.01)
        rig.rod(base, tip, 0.105 * size, rig.main, 0.08, mirror=True)
        front = (base[0], base[1] + 0.02, c[2] + 0.05)
        rig.rod(front, (tip[0] - 0.01, tip[1] - 0.05, tip[2] + 0.035), 0.066 * size, inner, 0.08, mirror=True)
    elif kind == "long":
        lean, tall = (0.03, 0.1, 0.17, 0.05)[v], (0.3, 0.34, 0.24, 0.22)[v]
        a = (x * 0.42, c[1] + y * 0.7, c[2] - 0.02)
        b = (x * 0.42 + lean, c[1] + y * 0.7 + tall, c[2] - 0.03)
        w = 0.066 if v != 3 else 0.085
        rig.limb(a, b, w, rig.main, mirror=True, flat=0.62)
        f = 0.028
        rig.limb(
            (a[0], a[1] + 0.04, a[2] + f),
            (b[0], b[1] - 0.02, b[2] + f),
            w * 0.58,
            inner,
            mirror=True,
            flat=0.5,
        )
    elif kind in ("floppy", "flap"):
        drop = (0.2, 0.28, 0.14, 0.24)[v] if kind == "floppy" else (0.07, 0.1, 0.05, 0.02)[v]
        a = (x * 0.72, c[1] + y * (0.62 if kind == "floppy" else 0.78), c[2] + 0.02)
        b = (x * (1.1 if v != 3 else 1.3), a[1] - drop if kind == "floppy" else a[1] + drop, c[2] + 0.07)
        rig.limb(a, b, 0.078 * size, rig.second, mirror=True, flat=0.5)
    elif kind == "mane":
        ring = Paint(mix(rig.c2, (0.0, 0.0, 0.0), 0.08))
        n = 1.0 + 0.06 * v
        rig.ball((0.0, c[1], c[2] - z * 0.42), (x * 1.12, y * 1.12, z * 0.72), ring)
        for i in range(10):
            turn = math.pi * 2 * i / 10
            lock = (math.cos(turn) * x * 1.05 * n, c[1] + math.sin(turn) * y * 1.05 * n, c[2] - z * 0.22)
            rig.ball(lock, (0.088 * n, 0.088 * n, 0.095), ring)
            back = (math.cos(turn + 0.3) * x * 0.66, c[1] + math.sin(turn + 0.3) * y * 0.66, c[2] - z * 0.86)
            rig.ball(back, (0.085, 0.085, 0.07), ring)
        rig.ball((x * 0.72, c[1] + y * 0.78, c[2] + 0.01), (0.07, 0.07, 0.04), rig.main, mirror=True)


def _tail(rig: Rig, kind: str, y: float, bz: float) -> None:
    v, back = rig.subject.tail, -bz * 0.9
    if kind in ("stub", "puff"):
        r = (0.055, 0.075, 0.042)[v] * (1.25 if kind == "puff" else 1.0)
        rig.ball((0.0, y, back - r * 0.5), r, rig.second)
    elif kind in ("long", "tuft"):
        lift, side = (0.26, 0.1, 0.3)[v], (0.1, 0.22, -0.14)[v]
        p = [(0.0, y, back), (side * 0.6, y - 0.02, back - 0.14), (side, y + lift, back - 0.17)]
        rig.limb(p[0], p[1], 0.036, rig.main)
        rig.limb(p[1], p[2], 0.034, rig.main)
        rig.ball(p[2], 0.045 if kind == "long" else 0.066, rig.second)
    elif kind == "brush":
        rig.limb((0.0, y, back), (0.12, y + 0.1 + 0.07 * v, back - 0.2), 0.1, rig.main)
        rig.ball((0.155, y + 0.19 + 0.1 * v, back - 0.25), 0.075, rig.second)
    elif kind == "curl":
        for i, (dx, dy) in enumerate(((0.0, 0.0), (0.03, 0.035), (0.0, 0.065), (-0.03, 0.04))[: 2 + v]):
            rig.ball((dx, y + dy, back - 0.01 - 0.022 * i), 0.026, rig.second)


def elephant(rig: Rig) -> None:
    """A round quadruped with trunk, big ears and tusks."""
    g, legs = rig.girth, 0.2 * rig.legs
    sit = rig.pose == "sitting"
    bx, by, bz = 0.24 * g, 0.235 * g, 0.3
    mid = legs + by * 0.8
    tilt = -24.0 if sit else 0.0
    step = 0.07 if rig.pose == "walking" else 0.0
    for sx in (-1.0, 1.0):
        for sz in (-1.0, 1.0):
            z = sz * 0.175 + step * sx * sz
            if sit and sz < 0:
                rig.limb((sx * 0.17, 0.12, -0.1), (sx * 0.21, 0.085, 0.06), 0.09, rig.main)
                rig.ball((sx * 0.215, 0.085, 0.11), (0.075, 0.085, 0.035), rig.second)
                continue
            rig.rod((sx * bx * 0.62, 0.0, z), (sx * bx * 0.6, mid, z * 0.9), 0.1, rig.main, 0.92)
            rig.put(FRUSTUM, (sx * bx * 0.62, 0.022, z + 0.006), (0.107, 0.024, 0.107), rig.second)
    rig.ball((0.0, mid - (0.03 if sit else 0.0), -0.03), (bx, by, bz), rig.main, rotation(tilt))
    h = 0.22 * rig.head
    c = (0.0, mid + 0.2 + (0.09 if sit else 0.0), 0.22)
    rig.ball(c, (h, h * 1.02, h * 0.92), rig.main)
    ear = (0.17, 0.2, 0.145, 0.185)[rig.subject.ears]
    wide = (1.0, 0.85, 1.0, 1.2)[rig.subject.ears]
    turn = rotation(0.0, 28.0, -8.0)
    at = (h * 0.78 + ear * wide * 0.62, c[1] + 0.02, c[2] - 0.06)
    rig.ball(at, (ear * wide, ear * 1.18, 0.035), rig.main, turn, mirror=True)
    rig.ball((at[0], at[1], at[2] + 0.022), (ear * wide * 0.74, ear * 0.9, 0.03), rig.second, turn, mirror=True)
    up = rig.pose == "waving"
    path = ((0.0, -0.05, 0.17), (0.0, -0.17, 0.25), (0.0, -0.285, 0.275), (0.0, -0.365, 0.33))
    if up:
        path = ((0.0, -0.05, 0.17), (0.0, -0.1, 0.28), (0.0, -0.01, 0.37), (0.0, 0.12, 0.4))
    for i in range(3):
        a, b = ((p[0], c[1] + p[1], c[2] + p[2]) for p in path[i : i + 2])
        rig.limb(a, b, 0.068 - 0.012 * i, rig.main)
    rig.ball((0.0, c[1] + path[3][1], c[2] + path[3][2]), 0.044, rig.second)
    if rig.subject.tail != 2:
        size = (1.0, 1.5)[rig.subject.tail]
        tusk = Paint((0.99, 0.97, 0.9), gloss=0.6)
        rig.rod(
            (0.085, c[1] - 0.1, c[2] + 0.13),
            (0.115, c[1] - 0.17, c[2] + 0.16 + 0.09 * size),
            0.028,
            tusk,
            0.15,
            True,
        )
    rig.limb((0.0, mid + 0.06, -bz), (0.0, mid - 0.1, -bz - 0.07), 0.024, rig.main)
    rig.ball((0.0, mid - 0.13, -bz - 0.075), 0.036, rig.second)
    rig.eye_pair((0.0, c[1] + 0.05, c[2] + h * 0.82), h * 0.44, 0.042, rig.subject.eyes)
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, c[1] + h * 0.86, c[2] - 0.02), h * 0.62
    anchors.eyes, anchors.eye_gap, anchors.eye_radius = (0.0, c[1] + 0.05, c[2] + h * 0.82 + 0.035), h * 0.44, 0.066
    anchors.neck, anchors.neck_radius = (0.0, mid + 0.06, 0.15), (bx * 0.8, 0.17)
    anchors.back, anchors.back_width, anchors.drop = (0.0, mid + by * 0.9, -0.1), bx * 0.95, 0.34
