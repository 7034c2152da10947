"""Who lives in Toyland: identities. A subject is what stays the same in every picture of it.

`ToySubject` holds only intrinsic traits (species, two colours, pattern, proportions, part shapes). Everything
that may change between two pictures of one subject (view, pose, shape edit, accessory) lives in
`world.Placement`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

RGB = tuple[float, float, float]

COLORS: dict[str, RGB] = {
    "red": (0.87, 0.15, 0.14),
    "orange": (0.97, 0.51, 0.10),
    "yellow": (0.99, 0.83, 0.18),
    "green": (0.22, 0.65, 0.28),
    "blue": (0.16, 0.38, 0.88),
    "purple": (0.53, 0.24, 0.76),
    "pink": (0.98, 0.56, 0.72),
    "brown": (0.49, 0.29, 0.16),
    "black": (0.12, 0.12, 0.14),
    "white": (0.96, 0.96, 0.95),
    "gray": (0.56, 0.57, 0.60),
    "teal": (0.08, 0.66, 0.65),
    "beige": (0.91, 0.80, 0.61),
    "lime": (0.67, 0.87, 0.20),
}
PATTERNS: tuple[str, ...] = ("plain", "striped", "spotted", "patched")
SIZES: tuple[float, ...] = (0.87, 1.0, 1.15)  # the three levels of head, girth and legs
EARS, TAILS, EYES = 4, 3, 3  # number of part variants; what they mean is the species' affair
BUILD = {"head": len(SIZES), "girth": len(SIZES), "legs": len(SIZES), "ears": EARS, "tail": TAILS, "eyes": EYES}


@dataclass(frozen=True)
class ToySubject:
    """One individual. Two subjects are the same exactly when all fields are equal, and so are their ids."""

    species: str  # key of `bodies.SPECIES`
    color_1: str  # main colour, key of COLORS
    color_2: str  # second colour (markings, belly, details), differs from color_1
    pattern: str  # one of PATTERNS, painted in object space
    head: int = 1  # index into SIZES
    girth: int = 1  # index into SIZES
    legs: int = 1  # index into SIZES
    ears: int = 0  # 0..EARS-1: ears, antenna, plume, roof …
    tail: int = 0  # 0..TAILS-1: tail, tool, spoiler …
    eyes: int = 0  # 0..EYES-1

    def __post_init__(self) -> None:
        for name in ("color_1", "color_2"):
            if getattr(self, name) not in COLORS:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(COLORS)}")
        if self.color_1 == self.color_2:
            raise ValueError(f"color_1 and color_2 are both {self.color_1!r}; choose two different colours")
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern is {self.pattern!r}; choose one of {', '.join(PATTERNS)}")

    @property
    def id(self) -> str:
        """Readable and stable: `bear-red-white-striped-1203012`-like."""
        parts = "".join(str(getattr(self, name)) for name in BUILD)
        return "-".join((self.species, self.color_1, self.color_2, self.pattern, parts))

    @property
    def noun(self) -> str:
        """The plain class noun used in captions."""
        return self.species

    @property
    def hash(self) -> int:
        """32 bits of the id's SHA-256: the seed of the subject's own markings and of the split."""
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:4], "big")


def is_heldout(subject: ToySubject) -> bool:
    """True for about 5 % of all subjects, held out of training for ever (by a hash of the id)."""
    return subject.hash % 20 == 0


def variants_per_look() -> int:
    """Number of distinct bodies for one (species, colours, pattern)."""
    return len(SIZES) ** 3 * EARS * TAILS * EYES
