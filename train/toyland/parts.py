"""Primitives and the rig: a toy is a list of affine images of three unit solids.

Object space: x to the toy's left when it faces us, y up, z forward; a toy is about 1 unit high.
Every primitive is `p = center + M @ l` for l in a unit solid, so a ray stays a ray in l-space and
intersections are closed-form (render.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from train.toyland.subjects import COLORS, RGB, SIZES, ToySubject

ELLIPSOID, BOX, FRUSTUM = 0.0, 1.0, 2.0  # |l|₂ ≤ 1; |l|₈ ≤ 1; |y| ≤ 1 and √(x²+z²) ≤ 1 → taper
ROW = 27  # floats per primitive, laid out as in Rig.put
Vec = tuple[float, float, float]
Turn = tuple[float, ...]  # 9 floats, row-major rotation
IDENTITY: Turn = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Paint:
    """Surface of a primitive."""

    color: RGB
    mark: RGB | None = None  # colour of the subject's pattern; None = unpatterned
    gloss: float = 0.25  # strength of the highlight, 0..1
    glow: float = 0.0  # share of light given off by itself, 0..1


DARK = Paint((0.09, 0.08, 0.10), gloss=0.9)
WHITE = Paint((0.98, 0.98, 0.98), gloss=0.6, glow=0.15)
SPARK = Paint((1.0, 1.0, 1.0), gloss=0.0, glow=1.0)
METAL = Paint((0.72, 0.75, 0.80), gloss=0.9)
RUBBER = Paint((0.13, 0.13, 0.15), gloss=0.15)
GLASS = Paint((0.62, 0.84, 0.96), gloss=1.0, glow=0.1)
SKIN = Paint((0.97, 0.78, 0.64), gloss=0.15)


def luminance(c: RGB) -> float:
    return 0.3 * c[0] + 0.59 * c[1] + 0.11 * c[2]


def mix(a: RGB, b: RGB, t: float) -> RGB:
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


def rotation(rx: float = 0.0, ry: float = 0.0, rz: float = 0.0) -> Turn:
    """Rotation about z, then y, then x (degrees)."""
    cx, sx = math.cos(math.radians(rx)), math.sin(math.radians(rx))
    cy, sy = math.cos(math.radians(ry)), math.sin(math.radians(ry))
    cz, sz = math.cos(math.radians(rz)), math.sin(math.radians(rz))
    return (
        cy * cz, -cy * sz, sy,
        cx * sz + sx * sy * cz, cx * cz - sx * sy * sz, -sx * cy,
        sx * sz - cx * sy * cz, sx * cz + cx * sy * sz, cx * cy,
    )  # fmt: skip


def aim(a: Vec, b: Vec) -> tuple[Turn, float]:
    """Rotation that lays the local y axis along b − a, and the length |b − a|."""
    d = (b[0] - a[0], b[1] - a[1], b[2] - a[2])
    n = math.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2) or 1e-6
    y = (d[0] / n, d[1] / n, d[2] / n)
    f = (0.0, 0.0, 1.0) if abs(y[2]) < 0.9 else (0.0, 1.0, 0.0)
    x = (y[1] * f[2] - y[2] * f[1], y[2] * f[0] - y[0] * f[2], y[0] * f[1] - y[1] * f[0])
    m = math.sqrt(x[0] ** 2 + x[1] ** 2 + x[2] ** 2)
    x = (x[0] / m, x[1] / m, x[2] / m)
    z = (x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0])
    return (x[0], y[0], z[0], x[1], y[1], z[1], x[2], y[2], z[2]), n


@dataclass
class Anchors:
    """Where accessories sit, in object units."""

    top: Vec = (0.0, 1.0, 0.0)  # crown of the head
    top_radius: float = 0.15  # radius a hat's band should have
    eyes: Vec = (0.0, 0.8, 0.2)  # middle of the two eyes, on the surface
    eye_gap: float = 0.09  # half distance between the eyes
    eye_radius: float = 0.07  # radius a lens should have
    neck: Vec = (0.0, 0.6, 0.0)
    neck_radius: tuple[float, float] = (0.15, 0.15)  # along x and z
    back: Vec = (0.0, 0.55, -0.18)  # between the shoulders, on the surface
    back_width: float = 0.2  # half width of a cape at the shoulders
    drop: float = 0.45  # length a cape may hang
    side: Vec | None = None  # headphones: height and half width at the ears, rise of the band; None = from the head


@dataclass
class Rig:
    """A toy under construction: paints derived from the subject, growing rows of primitives, anchors."""

    subject: ToySubject
    pose: str
    rows: list[list[float]] = field(default_factory=list)
    anchors: Anchors = field(default_factory=Anchors)
    accessory: float = 0.0  # 1 while accessory primitives are being added
    hands: list[Vec] = field(default_factory=list)  # right and left, for what people hold

    def __post_init__(self) -> None:
        s = self.subject
        self.c1, self.c2 = COLORS[s.color_1], COLORS[s.color_2]
        mark = None if s.pattern == "plain" else self.c2
        self.main = Paint(self.c1, mark)
        self.flat = Paint(self.c1)
        self.second = Paint(self.c2)
        self.shiny = Paint(self.c1, mark, gloss=0.8)
        self.shiny2 = Paint(self.c2, gloss=0.8)
        self.head, self.girth, self.legs = SIZES[s.head], SIZES[s.girth], SIZES[s.legs]

    def put(
        self, kind: float, center: Vec, half: Vec, paint: Paint, turn: Turn = IDENTITY, taper: float = 1.0,
        mirror: bool = False,
    ) -> None:  # fmt: skip
        """Add one solid (and its mirror image in x): kind, center 3, M 9, rest half-size 3, colour 3, mark 3,
        patterned, gloss, glow, taper, accessory."""
        hx, hy, hz = half
        r = turn
        mark = paint.mark or paint.color
        row = [
            kind, *center,
            r[0] * hx, r[1] * hy, r[2] * hz, r[3] * hx, r[4] * hy, r[5] * hz, r[6] * hx, r[7] * hy, r[8] * hz,
            hx, hy, hz, *paint.color, *mark, 0.0 if paint.mark is None else 1.0, paint.gloss, paint.glow,
            taper, self.accessory,
        ]  # fmt: skip
        self.rows.append(row)
        if mirror:
            twin = list(row)
            for i in (1, 4, 5, 6):
                twin[i] = -twin[i]
            self.rows.append(twin)

    def ball(self, center: Vec, half: Vec | float, paint: Paint, turn: Turn = IDENTITY, mirror: bool = False) -> None:
        h = (half, half, half) if isinstance(half, float) else half
        self.put(ELLIPSOID, center, h, paint, turn, mirror=mirror)

    def box(self, center: Vec, half: Vec, paint: Paint, turn: Turn = IDENTITY, mirror: bool = False) -> None:
        self.put(BOX, center, half, paint, turn, mirror=mirror)

    def limb(self, a: Vec, b: Vec, radius: float, paint: Paint, mirror: bool = False, flat: float = 1.0) -> None:
        """A stretched ellipsoid whose ends reach a little past a and b."""
        turn, length = aim(a, b)
        mid = ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, (a[2] + b[2]) / 2)
        half = (radius, length / 2 + radius * 0.7, radius * flat)
        self.put(ELLIPSOID, mid, half, paint, turn, mirror=mirror)

    def rod(self, a: Vec, b: Vec, radius: float, paint: Paint, taper: float = 1.0, mirror: bool = False) -> None:
        """A frustum from a (radius) to b (radius · taper); taper 0 makes a cone."""
        turn, length = aim(a, b)
        mid = ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, (a[2] + b[2]) / 2)
        self.put(FRUSTUM, mid, (radius, length / 2, radius), paint, turn, taper, mirror)

    def eye_pair(self, center: Vec, gap: float, radius: float, style: int, tilt: float = 0.0) -> None:
        """Two eyes looking along +z. style 0: glossy beads, 1: white with pupil, 2: tall ovals."""
        if style == 0 and luminance(self.c1) < 0.3:
            style = 1
        x, y, z = gap, center[1], center[2]
        r = radius
        turn = rotation(0.0, 18.0, tilt)
        if style == 1:
            self.ball((x, y, z), (r * 1.25, r * 1.3, r * 0.7), WHITE, turn, mirror=True)
            self.ball((x * 0.96, y, z + r * 0.48), (r * 0.72, r * 0.8, r * 0.45), DARK, turn, mirror=True)
        elif style == 2:
            self.ball((x, y, z), (r * 1.18, r * 1.55, r * 0.65), WHITE, turn, mirror=True)
            self.ball((x * 0.97, y - r * 0.1, z + r * 0.34), (r * 0.9, r * 1.25, r * 0.5), DARK, turn, mirror=True)
        else:
            self.ball((x, y, z), (r, r * 1.15, r * 0.7), DARK, turn, mirror=True)
        lift = z + r * (0.62 if style == 0 else 0.85)
        for side in (-1.0, 1.0):
            self.ball((side * x + r * 0.25, y + r * 0.42, lift), (r * 0.32, r * 0.32, r * 0.2), SPARK)
