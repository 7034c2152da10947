"""People: one doll rig, dressed as knight, astronaut, wizard, chef."""

from __future__ import annotations

from train.toyland.parts import DARK, FRUSTUM, METAL, SKIN, Paint, Rig, Vec, mix, rotation

STEEL = Paint((0.74, 0.77, 0.82), gloss=1.0)
WOOD = Paint((0.5, 0.33, 0.18), gloss=0.2)
WHITE_SPOT = Paint((1.0, 1.0, 1.0), gloss=0.0, glow=0.85)
GOLD = Paint((0.98, 0.8, 0.25), gloss=0.9)


def doll(rig: Rig, cloth: Paint, hand: Paint, shoe: Paint, robe: bool = False) -> tuple[Vec, float]:
    """Body, limbs and a bare head. Returns the head's centre and radius; hands are left in `rig.hands`."""
    g, legs = rig.girth, 0.2 * rig.legs
    sit = rig.pose == "sitting"
    base = 0.03 if sit else legs
    bx, by, bz = 0.188 * g, 0.195, 0.15 * g
    mid = base + by * 0.9
    step = 0.085 if rig.pose == "walking" else 0.0
    for side in (-1.0, 1.0):
        x, z = side * bx * 0.56, side * step
        if sit:
            rig.limb((x, 0.075, 0.04), (x * 1.4, 0.07, 0.24), 0.075, cloth)
            rig.ball((x * 1.45, 0.085, 0.29), (0.068, 0.085, 0.055), shoe)
        else:
            rig.limb((x, base + 0.05, 0.0), (x, 0.06, z), 0.077, cloth)
            rig.ball((x, 0.048, z + 0.035), (0.078, 0.052, 0.115), shoe)
    if robe and not sit:
        rig.rod((0.0, 0.045, 0.0), (0.0, mid + by * 0.5, 0.0), bx * 1.45, cloth, 0.55)
    rig.ball((0.0, mid, 0.0), (bx, by * 1.08, bz), cloth)
    hands = []
    y = mid + by * 0.6
    for side in (-1.0, 1.0):
        a = (side * bx * 0.88, y, 0.0)
        b = (side * (bx + 0.1), y - 0.19, 0.07 - side * step)
        if rig.pose == "waving" and side < 0:
            b = (side * (bx + 0.17), y + 0.13, 0.06)
        elif sit:
            b = (side * (bx + 0.08), y - 0.15, 0.14)
        rig.limb(a, b, 0.062, cloth)
        rig.ball(b, 0.058, hand)
        hands.append(b)
    rig.hands = hands
    h = 0.215 * rig.head
    top = mid + by * 0.92
    c = (0.0, top + h * 0.82, 0.015)
    rig.ball(c, (h, h, h * 0.95), SKIN)
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, c[1] + h * 0.9, 0.01), h * 0.66
    anchors.eyes, anchors.eye_gap, anchors.eye_radius = (0.0, c[1] + h * 0.08, c[2] + h * 0.95), h * 0.4, 0.066
    anchors.neck, anchors.neck_radius = (0.0, top - 0.005, 0.008), (bx * 0.86, bz * 0.98)
    anchors.back, anchors.back_width, anchors.drop = (0.0, top - 0.02, -bz * 0.8), bx * 1.1, top - 0.08
    return c, h


def knight(rig: Rig) -> None:
    """Steel helmet with a coloured plume, coloured surcoat, sword and shield."""
    c, h = doll(rig, rig.main, STEEL, STEEL)
    g = rig.girth
    neck = rig.anchors.neck
    rig.ball((0.2 * g, neck[1] - 0.04, 0.0), (0.082, 0.07, 0.085), STEEL, mirror=True)
    rig.rod((0.0, neck[1] - 0.27, 0.0), (0.0, neck[1] - 0.22, 0.0), 0.186 * g, Paint(rig.c2, gloss=0.5), 1.0)
    rig.ball((0.0, c[1] + h * 0.12, c[2] - 0.012), (h * 1.07, h * 0.98, h * 1.03), STEEL)
    rig.put(FRUSTUM, (0.0, c[1] - h * 0.28, c[2] - 0.012), (h * 1.08, h * 0.48, h * 1.05), STEEL)
    band = (0.0, c[1] + h * 0.36, c[2] - 0.012)
    rig.put(FRUSTUM, band, (h * 1.1, h * 0.09, h * 1.06), rig.shiny2, taper=0.97)
    front = c[2] + h * 0.98
    v = rig.subject.eyes
    if v == 0:  # open visor: the face looks out
        rig.ball((0.0, c[1] - h * 0.04, c[2] + h * 0.3), (h * 0.78, h * 0.5, h * 0.88), SKIN)
        rig.eye_pair((0.0, c[1] + h * 0.05, front + 0.025), h * 0.34, 0.034, 0)
    else:
        slit = 0.2 if v == 1 else 0.12
        rig.box((0.0, c[1] + h * 0.05, front - 0.01), (h * 0.66, h * slit, 0.05), DARK)
        rig.box((0.0, c[1] - h * 0.1, front + 0.022), (0.016, h * 0.6, 0.03), STEEL)
        if v == 1:
            lit = Paint((1.0, 1.0, 1.0), glow=0.9)
            rig.ball((h * 0.32, c[1] + h * 0.05, front + 0.03), (0.03, 0.03, 0.018), lit, mirror=True)
    top = c[1] + h * 1.06
    plume = rig.shiny2
    kind = rig.subject.ears
    if kind == 0:
        for i, z in enumerate((0.05, -0.03, -0.11, -0.18)):
            rig.ball((0.0, top + 0.05 - 0.018 * i * i, c[2] + z), (0.055, 0.1, 0.082), plume)
    elif kind == 1:
        rig.rod((0.0, top - 0.02, c[2]), (0.0, top + 0.17, c[2]), 0.085, plume, 0.05)
    elif kind == 2:
        horn = Paint(mix(rig.c2, (1.0, 1.0, 1.0), 0.12), gloss=0.6)
        rig.rod((h * 0.8, c[1] + h * 0.6, c[2]), (h * 1.35, c[1] + h * 1.35, c[2]), 0.068, horn, 0.1, True)
    else:
        rig.ball((0.0, top + 0.05, c[2]), 0.085, plume)
    left, right = rig.hands[1], rig.hands[0]
    if rig.subject.tail != 1:
        up = (right[0] - 0.03, right[1] + 0.36, right[2] + 0.08)
        rig.rod(right, up, 0.03, STEEL, 0.45)
        rig.rod(
            (right[0] - 0.08, right[1] + 0.05, right[2] + 0.02),
            (right[0] + 0.07, right[1] + 0.05, right[2] + 0.02),
            0.022,
            GOLD,
        )
    if rig.subject.tail != 2:
        at = (left[0] + 0.02, left[1] + 0.02, left[2] + 0.07)
        rig.ball(at, (0.125, 0.155, 0.03), rig.shiny2, rotation(0.0, 20.0))
        rig.ball((at[0] + 0.008, at[1], at[2] + 0.018), (0.085, 0.11, 0.025), rig.flat, rotation(0.0, 20.0))
        rig.ball((at[0] + 0.016, at[1], at[2] + 0.04), 0.03, GOLD)
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, c[1] + h * 1.06, c[2]), h * 0.72
    anchors.eyes, anchors.eye_radius = (0.0, c[1] + h * 0.05, front + 0.06), 0.07


def _face(rig: Rig, c: Vec, h: float, beard: Paint | None = None) -> None:
    """Eyes, nose, cheeks and a mouth on the bare head."""
    front = c[2] + h * 0.9
    rig.eye_pair((0.0, c[1] + h * 0.1, front), h * 0.36, 0.036 * rig.head, rig.subject.eyes)
    rig.ball((0.0, c[1] - h * 0.14, front + 0.03), (0.034, 0.03, 0.03), Paint((0.95, 0.68, 0.55), gloss=0.2))
    rig.ball((h * 0.55, c[1] - h * 0.24, front - 0.06), (0.04, 0.03, 0.03), Paint((0.98, 0.62, 0.55)), mirror=True)
    if beard is None:
        rig.ball((0.0, c[1] - h * 0.42, front - 0.02), (0.05, 0.016, 0.02), Paint((0.75, 0.25, 0.25)))


def astronaut(rig: Rig) -> None:
    """Puffy suit, glass visor, life-support pack."""
    suit = rig.main
    c, h = doll(rig, suit, rig.second, rig.second)
    neck = rig.anchors.neck
    g = rig.girth
    rig.ball((0.0, c[1] + h * 0.04, c[2] - 0.015), (h * 1.22, h * 1.14, h * 1.14), suit)
    visor = Paint((0.10, 0.16, 0.30) if rig.subject.eyes != 1 else (0.95, 0.7, 0.25), gloss=1.0)
    rig.ball((0.0, c[1] + h * 0.06, c[2] + h * 0.34), (h * 0.98, h * 0.74, h * 0.92), rig.second)
    rig.ball((0.0, c[1] + h * 0.06, c[2] + h * 0.42), (h * 0.84, h * 0.62, h * 0.92), visor)
    rig.ball((h * 0.35, c[1] + h * 0.34, c[2] + h * 1.16), (h * 0.16, h * 0.1, h * 0.05), WHITE_SPOT)
    rig.put(FRUSTUM, (0.0, neck[1] + 0.01, 0.0), (0.165 * g, 0.03, 0.15 * g), rig.second)
    rig.box((0.0, neck[1] - 0.12, -0.185 * g), (0.14 * g, 0.15, 0.07), METAL)
    panel = neck[1] - 0.13
    rig.box((0.0, panel, 0.15 * g), (0.085 * g, 0.055, 0.03), METAL)
    rig.ball((-0.035, panel + 0.01, 0.15 * g + 0.03), 0.02, Paint((0.95, 0.2, 0.2), glow=0.4))
    rig.ball((0.035, panel + 0.01, 0.15 * g + 0.03), 0.02, Paint((0.25, 0.8, 0.95), glow=0.4))
    kind = rig.subject.ears
    if kind:
        x = 0.0 if kind == 1 else h * 1.1
        y = c[1] + (h * 1.14 if kind == 1 else h * 0.3)
        rig.rod((x, y - 0.02, c[2]), (x * 1.05, y + 0.13, c[2] - 0.02), 0.014, METAL, 1.0, mirror=kind == 3)
        rig.ball((x * 1.05, y + 0.15, c[2] - 0.02), 0.034, rig.shiny2, mirror=kind == 3)
    if rig.subject.tail:
        rig.rod((0.08, neck[1] - 0.3, -0.2 * g), (0.08, neck[1] - 0.22, -0.2 * g), 0.055, METAL, 0.6, mirror=True)
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, c[1] + h * 1.1, c[2]), h * 0.74
    anchors.eyes, anchors.eye_radius = (0.0, c[1] + h * 0.1, c[2] + h * 1.34), 0.075
    anchors.back = (0.0, neck[1] - 0.02, -0.26 * g)


def wizard(rig: Rig) -> None:
    """Robe, pointed hat with a brim, long beard, a staff with a glowing ball."""
    c, h = doll(rig, rig.main, SKIN, Paint((0.35, 0.22, 0.14)), robe=True)
    snow = Paint(((0.96, 0.96, 0.97), (0.62, 0.62, 0.66), (0.55, 0.36, 0.2))[rig.subject.tail])
    _face(rig, c, h, snow)
    long = (0.2, 0.3, 0.14, 0.24)[rig.subject.ears]
    rig.limb(
        (0.0, c[1] - h * 0.5, c[2] + h * 0.62),
        (0.0, c[1] - h * 0.5 - long, c[2] + h * 0.66),
        0.11,
        snow,
        flat=0.55,
    )
    rig.ball(
        (h * 0.3, c[1] - h * 0.34, c[2] + h * 0.92),
        (h * 0.36, h * 0.13, h * 0.16),
        snow,
        rotation(0.0, 0.0, -14.0),
        mirror=True,
    )
    rig.ball((0.0, c[1] - h * 0.08, c[2] - h * 0.3), (h * 1.04, h * 0.86, h * 0.8), snow)
    brim = c[1] + h * 0.5
    rig.put(FRUSTUM, (0.0, brim, c[2] - 0.01), (h * 1.5, 0.022, h * 1.5), rig.main)
    bend = (0.0, 0.08, -0.1, 0.05)[rig.subject.ears]
    rig.rod((0.0, brim, c[2] - 0.01), (bend * 0.5, brim + 0.24, c[2] - 0.03), h * 0.98, rig.main, 0.42)
    rig.rod(
        (bend * 0.5, brim + 0.23, c[2] - 0.03),
        (bend * 1.8, brim + 0.4, c[2] - 0.06),
        h * 0.43,
        rig.main,
        0.05,
    )
    rig.rod((0.0, brim + 0.01, c[2] - 0.01), (0.0, brim + 0.07, c[2] - 0.015), h * 1.0, rig.second, 0.87)
    waist = rig.anchors.neck[1] - 0.22
    rig.rod((0.0, waist - 0.03, 0.0), (0.0, waist + 0.02, 0.0), 0.225 * rig.girth, rig.second, 0.94)
    x, y, z = rig.hands[0]
    rig.rod((x - 0.02, max(y - 0.36, 0.02), z + 0.05), (x - 0.02, y + 0.3, z + 0.05), 0.022, WOOD)
    rig.ball((x - 0.02, y + 0.34, z + 0.05), 0.058, Paint(mix(rig.c2, (1.0, 1.0, 1.0), 0.3), gloss=1.0, glow=0.5))
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (bend * 0.4, brim + 0.2, c[2] - 0.025), h * 0.56
    anchors.side = (c[1] + h * 0.05, h * 1.1, h * 1.1)
    anchors.neck = (0.0, anchors.neck[1] - 0.02, 0.02)
    anchors.neck_radius = (anchors.neck_radius[0] * 1.12, anchors.neck_radius[1] * 1.3)


def chef(rig: Rig) -> None:
    """White toque, jacket in the first colour, apron in the second, spoon or pan in the hand."""
    c, h = doll(rig, rig.main, SKIN, Paint((0.2, 0.2, 0.23), gloss=0.5))
    _face(rig, c, h)
    hair = Paint(((0.3, 0.18, 0.1), (0.12, 0.1, 0.1), (0.75, 0.5, 0.2))[rig.subject.tail])
    rig.ball((0.0, c[1] + h * 0.12, c[2] - h * 0.2), (h * 1.05, h * 0.98, h * 0.95), hair)
    if rig.subject.ears in (1, 3):
        rig.ball(
            (h * 0.26, c[1] - h * 0.3, c[2] + h * 0.95),
            (h * 0.28, h * 0.1, h * 0.1),
            hair,
            rotation(0.0, 0.0, 12.0),
            mirror=True,
        )
    cloth = Paint((0.98, 0.98, 0.97))
    brim = c[1] + h * 0.66
    puff = (1.0, 0.85, 1.18, 1.05)[rig.subject.ears]
    rig.put(FRUSTUM, (0.0, brim + 0.045, c[2] - 0.01), (h * 0.84, 0.065, h * 0.84), cloth)
    rig.put(FRUSTUM, (0.0, brim + 0.005, c[2] - 0.01), (h * 0.87, 0.022, h * 0.87), rig.second)
    top = brim + 0.13
    for dx, dz in ((0.5, 0.2), (-0.5, 0.2), (0.0, 0.45), (0.3, -0.4), (-0.3, -0.4)):
        rig.ball(
            (dx * h * puff, top + 0.02, c[2] + dz * h * puff),
            (h * 0.58 * puff, 0.1 * puff, h * 0.56 * puff),
            cloth,
        )
    rig.ball((0.0, top + 0.07, c[2]), (h * 0.66, 0.09, h * 0.66), cloth)
    neck = rig.anchors.neck
    g = rig.girth
    rig.box((0.0, neck[1] - 0.2, 0.085 * g), (0.125 * g, 0.13, 0.085), rig.second)
    rig.put(FRUSTUM, (0.0, neck[1] - 0.18, 0.0), (0.197 * g, 0.016, 0.16 * g), rig.second)
    for i in (0.0, 1.0):
        rig.ball((0.05, neck[1] - 0.04 - 0.06 * i, 0.15 * g - 0.008), 0.017, cloth, mirror=True)
    x, y, z = rig.hands[0]
    rig.rod((x, y - 0.04, z + 0.04), (x - 0.03, y + 0.2, z + 0.06), 0.018, WOOD)
    rig.ball((x - 0.035, y + 0.24, z + 0.062), (0.055, 0.07, 0.025), WOOD)
    anchors = rig.anchors
    anchors.top, anchors.top_radius = (0.0, top + 0.12, c[2]), h * 0.62
    anchors.side = (c[1] + h * 0.05, h * 1.08, h * 1.1)


PEOPLE = {"knight": knight, "astronaut": astronaut, "wizard": wizard, "chef": chef}
