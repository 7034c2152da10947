"""Things about the house: teapot, vase, backpack, lamp; and a toy rocket."""

from __future__ import annotations

import math

from train.toyland.parts import FRUSTUM, GLASS, METAL, Paint, Rig, mix, rotation


def _tilt(rig: Rig) -> float:
    """Things cannot sit or wave; their poses are small leans (degrees)."""
    return {"standing": 0.0, "sitting": -5.0, "walking": 8.0, "waving": -9.0}[rig.pose]


def _lean(rig: Rig) -> None:
    """Lean the finished body about its foot, anchors included."""
    angle = math.radians(_tilt(rig))
    if not angle:
        return
    c, s = math.cos(angle), math.sin(angle)

    def spin(x: float, y: float) -> tuple[float, float]:
        return c * x - s * y, s * x + c * y

    for row in rig.rows:
        row[1], row[2] = spin(row[1], row[2])
        for j in range(3):
            row[4 + j], row[7 + j] = spin(row[4 + j], row[7 + j])
    anchors = rig.anchors
    for name in ("top", "eyes", "neck", "back"):
        x, y, z = getattr(anchors, name)
        setattr(anchors, name, (*spin(x, y), z))


def teapot(rig: Rig) -> None:
    """A round pot: spout to its right, handle to its left, a lid with a knob."""
    g, tall = rig.girth, 0.27 * rig.legs**0.6
    mid = 0.06 + tall
    rig.put(FRUSTUM, (0.0, 0.035, 0.0), (0.2 * g, 0.035, 0.2 * g), rig.shiny2, taper=0.85)
    rig.ball((0.0, mid, 0.0), (0.34 * g, tall, 0.34 * g), rig.shiny)
    rig.put(FRUSTUM, (0.0, mid, 0.0), (0.346 * g, 0.03, 0.346 * g), rig.shiny2)
    r = 0.19 * rig.head
    lid = mid + tall * 0.88
    rig.ball((0.0, lid, 0.0), (r, 0.075, r), rig.shiny2)
    knob = ((0.05, 0.05), (0.07, 0.045), (0.035, 0.08), (0.055, 0.055))[rig.subject.ears]
    rig.ball(
        (0.0, lid + 0.08 + knob[1] * 0.4, 0.0),
        (knob[0], knob[1], knob[0]),
        rig.shiny if rig.subject.ears != 3 else METAL,
    )
    x = 0.3 * g
    rig.rod((x, mid - 0.08, 0.0), (x + 0.17, mid + 0.12, 0.0), 0.085, rig.shiny, 0.55)
    rig.rod((x + 0.15, mid + 0.09, 0.0), (x + 0.24, mid + 0.19, 0.0), 0.052, rig.shiny, 0.8)
    rig.ball((x + 0.235, mid + 0.185, 0.0), (0.045, 0.03, 0.045), rig.shiny2)
    wide, high = ((0.17, 0.16), (0.14, 0.2), (0.21, 0.13))[rig.subject.tail]
    n = 7
    for i in range(n):
        t0, t1 = (-1.45 + 2.9 * k / n for k in (i, i + 1))
        p0 = (-x + 0.03 - math.cos(t0) * wide, mid + math.sin(t0) * high, 0.0)
        p1 = (-x + 0.03 - math.cos(t1) * wide, mid + math.sin(t1) * high, 0.0)
        rig.limb(p0, p1, 0.036, rig.shiny2)
    _faces(rig, mid, 0.34 * g, lid + 0.05, r * 0.8, tall)


def vase(rig: Rig) -> None:
    """A vase: belly, neck and lip; `ears` picks the silhouette, `tail` handles, ring or flowers."""
    g, v = rig.girth, rig.subject.ears
    low, wide, neck = ((0.34, 0.26, 0.11), (0.28, 0.29, 0.09), (0.42, 0.23, 0.13), (0.4, 0.27, 0.17))[v]
    wide, tall = wide * g, 0.3 * rig.legs**0.6
    rig.put(FRUSTUM, (0.0, 0.04, 0.0), (wide * 0.66, 0.04, wide * 0.66), rig.shiny2, taper=0.85)
    rig.ball((0.0, low, 0.0), (wide, tall, wide), rig.shiny)
    top = low + tall + 0.14 * rig.head
    rig.rod((0.0, low + tall * 0.6, 0.0), (0.0, top, 0.0), neck * 1.15, rig.shiny, 0.95)
    rig.rod((0.0, top - 0.05, 0.0), (0.0, top + 0.02, 0.0), neck * 0.95, rig.shiny2, 1.5)
    rig.put(FRUSTUM, (0.0, top + 0.016, 0.0), (neck * 1.2, 0.012, neck * 1.2), Paint((0.12, 0.10, 0.10)))
    rig.put(FRUSTUM, (0.0, low + tall * 0.68, 0.0), (neck * 1.5, 0.022, neck * 1.5), rig.shiny2)
    if rig.subject.tail == 0:
        for i in range(5):
            t0, t1 = (-1.3 + 2.6 * k / 5 for k in (i, i + 1))
            y = low + tall * 0.75
            a = (neck * 0.9 + math.cos(t0) * 0.14, y + math.sin(t0) * 0.15, 0.0)
            b = (neck * 0.9 + math.cos(t1) * 0.14, y + math.sin(t1) * 0.15, 0.0)
            rig.limb(a, b, 0.027, rig.shiny2, mirror=True)
    elif rig.subject.tail == 1:
        rig.put(FRUSTUM, (0.0, low, 0.0), (wide * 1.02, 0.035, wide * 1.02), rig.shiny2)
    _faces(rig, low, wide, top + 0.01, neck * 1.25, tall)


def _faces(rig: Rig, mid: float, radius: float, top: float, top_radius: float, tall: float) -> None:
    """Anchors of a faceless turned thing, then its lean."""
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, top, 0.0), max(top_radius, 0.13)
    anchors.eyes, anchors.eye_gap, anchors.eye_radius = (0.0, mid + tall * 0.3, radius * 0.97), 0.11, 0.085
    anchors.neck, anchors.neck_radius = (0.0, mid + tall * 0.62, 0.0), (radius * 0.82, radius * 0.82)
    anchors.back, anchors.back_width, anchors.drop = (0.0, mid + tall * 0.6, -radius * 0.8), radius * 0.8, mid
    anchors.side = (mid + tall * 0.2, radius * 1.03, top - mid - tall * 0.2 + 0.05)
    _lean(rig)


def backpack(rig: Rig) -> None:
    """A school backpack: rounded bag, flap, front pocket with a buckle, straps behind."""
    g, tall = rig.girth, 0.37 * rig.legs**0.5
    w, d = 0.28 * g, 0.165
    mid = tall
    rig.box((0.0, mid, 0.0), (w, tall, d), rig.main)
    rig.ball((0.0, mid + tall * 0.72, 0.0), (w * 0.98, tall * 0.42, d * 1.02), rig.main)
    v = rig.subject.ears
    flap = (0.3, 0.42, 0.22, 0.36)[v]
    rig.box((0.0, mid + tall * (1.0 - flap), d * 0.35), (w * 1.03, tall * flap, d * 0.85), rig.second)
    rig.box((0.0, mid - tall * 0.45, d * 1.0), (w * 0.74, tall * 0.42, 0.08 * rig.head), rig.main)
    rig.box((0.0, mid - tall * 0.16, d + 0.015), (w * 0.78, tall * 0.1, 0.09 * rig.head), rig.second)
    for x in (0.0,) if v in (0, 2) else (-w * 0.45, w * 0.45):
        rig.box((x, mid + tall * 0.06, d * 1.17), (0.035, tall * 0.3, 0.02), Paint((0.42, 0.27, 0.16)))
        rig.box((x, mid - tall * 0.1, d * 1.24), (0.042, 0.04, 0.02), Paint((0.98, 0.82, 0.35), gloss=0.9))
    size = (0.1, 0.17, 0.05)[rig.subject.tail]
    rig.ball((w * 1.02, mid - tall * 0.45, 0.0), (size * 0.8, tall * 0.36, d * 0.7), rig.second, mirror=True)
    strap = Paint(mix(rig.c2, (0.0, 0.0, 0.0), 0.25))
    rig.limb(
        (w * 0.5, mid + tall * 0.75, -d),
        (w * 0.62, mid - tall * 0.6, -d * 1.15),
        0.055,
        strap,
        mirror=True,
        flat=0.7,
    )
    for i in range(5):
        t0, t1 = (math.pi * k / 5 for k in (i, i + 1))
        y = mid + tall * 1.0
        a, b = ((math.cos(t) * 0.09, y + math.sin(t) * 0.11, 0.0) for t in (t0, t1))
        rig.limb(a, b, 0.026, strap)
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, mid + tall * 1.04, 0.0), w * 0.56
    anchors.eyes, anchors.eye_gap, anchors.eye_radius = (0.0, mid + tall * 0.55, d * 1.25), 0.11, 0.085
    anchors.neck, anchors.neck_radius = (0.0, mid + tall * 0.16, 0.04), (w * 1.08, d * 1.5)
    anchors.back, anchors.back_width, anchors.drop = (0.0, mid + tall * 0.7, -d), w, tall * 1.5
    anchors.side = (mid + tall * 0.55, w * 1.05, tall * 0.62)
    _lean(rig)


def rocket(rig: Rig) -> None:
    """A toy rocket: body, nose cone, portholes, fins."""
    g, tall = rig.girth, 0.32 * rig.legs**0.6
    r, low = 0.19 * g, 0.16
    mid = low + tall
    rig.put(FRUSTUM, (0.0, 0.1, 0.0), (0.1, 0.1, 0.1), METAL, taper=0.7)
    rig.ball((0.0, mid, 0.0), (r * 1.16, tall * 1.25, r * 1.16), rig.shiny)
    tip = mid + tall * 0.6
    nose = (0.42, 0.52, 0.34, 0.44)[rig.subject.ears] * rig.head
    rig.rod((0.0, tip, 0.0), (0.0, tip + nose, 0.0), r * 1.02, rig.shiny2, 0.03)
    if rig.subject.ears == 3:
        rig.ball((0.0, tip + nose, 0.0), 0.05, Paint((0.95, 0.2, 0.2), gloss=0.9, glow=0.3))
    rig.put(FRUSTUM, (0.0, low + 0.05, 0.0), (r * 0.85, 0.04, r * 0.85), rig.shiny2)
    count = (3, 4, 5)[rig.subject.tail]
    for i in range(count):
        a = 2 * math.pi * (i + 0.5) / count
        x, z = math.sin(a), math.cos(a)
        turn = rotation(0.0, math.degrees(a))
        rig.box((x * r * 1.25, 0.16, z * r * 1.25), (0.024, 0.16, 0.1), rig.shiny2, turn)
        rig.box((x * r * 1.65, 0.07, z * r * 1.65), (0.026, 0.07, 0.07), rig.shiny2, turn)
    for i, y in enumerate((mid + tall * 0.22, mid - tall * 0.4)[: 1 + (rig.subject.eyes > 0)]):
        z = r * (1.08 if i == 0 else 1.05)
        size = 0.085 if i == 0 else 0.06
        rig.put(FRUSTUM, (0.0, y, z), (size, 0.035, size), METAL, rotation(90.0))
        rig.put(FRUSTUM, (0.0, y, z + 0.012), (size * 0.74, 0.03, size * 0.74), GLASS, rotation(90.0))
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, tip + nose * 0.5, 0.0), r * 0.66
    anchors.eyes, anchors.eye_gap, anchors.eye_radius = (0.0, mid + tall * 0.22, r * 1.1 + 0.05), 0.1, 0.08
    anchors.neck, anchors.neck_radius = (0.0, mid - tall * 0.1, 0.0), (r * 1.12, r * 1.12)
    anchors.back, anchors.back_width, anchors.drop = (0.0, mid + tall * 0.4, -r * 1.05), r * 1.1, tall * 1.3
    _lean(rig)


def lamp(rig: Rig) -> None:
    """A table lamp: foot, stem in the second colour, shade in the first."""
    g, tall = rig.girth, 0.34 * rig.legs
    rig.put(FRUSTUM, (0.0, 0.03, 0.0), (0.2 * g, 0.03, 0.2 * g), rig.shiny2, taper=0.9)
    v = rig.subject.ears
    if v in (0, 3):
        for i in range(3):
            rig.ball((0.0, 0.1 + tall * 0.3 * i, 0.0), (0.085, tall * 0.19, 0.085), rig.shiny2)
    elif v == 1:
        rig.ball((0.0, 0.06 + tall * 0.45, 0.0), (0.15, tall * 0.45, 0.15), rig.shiny2)
    rig.rod((0.0, 0.03, 0.0), (0.0, tall + 0.2, 0.0), 0.034, METAL if v != 2 else rig.shiny2)
    low, high = 0.06 + tall * 0.86, 0.32 * rig.head
    bulb = Paint((1.0, 0.95, 0.7), gloss=0.2, glow=0.8)
    wide, taper = ((0.31, 0.55), (0.29, 0.8), (0.34, 0.35))[rig.subject.tail]
    rig.ball((0.0, low + 0.02, 0.0), (wide * 0.5, 0.04, wide * 0.5), bulb)
    rig.rod((0.0, low, 0.0), (0.0, low + high, 0.0), wide, rig.main, taper)
    rig.rod((0.0, low - 0.004, 0.0), (0.0, low + 0.04, 0.0), wide * 1.015, rig.second, 0.97)
    rig.rod((0.0, low + high - 0.03, 0.0), (0.0, low + high + 0.006, 0.0), wide * (taper + 0.06), rig.second, 0.94)
    if rig.subject.eyes:
        rig.rod((wide * 0.5, low - 0.13, wide * 0.5), (wide * 0.5, low, wide * 0.5), 0.008, METAL)
        rig.ball((wide * 0.5, low - 0.15, wide * 0.5), 0.03 if rig.subject.eyes == 1 else 0.042, rig.shiny2)
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, low + high, 0.0), max(wide * taper * 0.85, 0.13)
    anchors.eyes, anchors.eye_gap, anchors.eye_radius = (
        (0.0, low + high * 0.45, wide * (0.55 + 0.45 * taper) + 0.03),
        0.1,
        0.085,
    )
    anchors.neck, anchors.neck_radius = (0.0, low - 0.13, 0.0), (0.13, 0.13)
    anchors.back, anchors.back_width, anchors.drop = (0.0, low + high * 0.4, -wide * 0.85), wide * 0.7, low * 0.9
    _lean(rig)
