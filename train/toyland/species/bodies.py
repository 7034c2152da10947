"""The registry of species, and the assembly of one placed toy into an array of primitives."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from train.toyland.parts import BOX, ELLIPSOID, FRUSTUM, ROW, Rig
from train.toyland.species import animals, birds, household, people, reptiles, things
from train.toyland.species.accessories import dress
from train.toyland.subjects import PATTERNS, ToySubject

SPECIES: dict[str, Callable[[Rig], None]] = {
    **dict.fromkeys(animals.BIPEDS, animals.biped),
    "elephant": animals.elephant,
    "duck": birds.duck,
    "penguin": birds.penguin,
    "owl": birds.owl,
    "turtle": reptiles.turtle,
    "dinosaur": reptiles.dinosaur,
    "dragon": reptiles.dragon,
    "robot": things.robot,
    "car": things.car,
    "truck": things.truck,
    "rocket": household.rocket,
    "teapot": household.teapot,
    "vase": household.vase,
    "backpack": household.backpack,
    "lamp": household.lamp,
    **people.PEOPLE,
}
POSES: tuple[str, ...] = ("standing", "sitting", "walking", "waving")
SHAPES: tuple[str, ...] = ("normal", "cube shaped", "tall", "chubby", "tiny")
_STRETCH = {"tall": (0.88, 1.42, 0.88), "chubby": (1.34, 0.97, 1.34)}
_SMALL = 0.062  # parts with a half-size under this do not change form when the toy becomes cube shaped


def extent(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner (3,) of the axis-aligned box around primitives (n, ROW)."""
    m = rows[:, 4:13].reshape(-1, 3, 3)
    round_ = np.linalg.norm(m, axis=2)
    box = np.abs(m).sum(axis=2)
    disc = np.linalg.norm(m[:, :, ::2], axis=2) + np.abs(m[:, :, 1])
    kind = rows[:, :1]
    half = np.where(kind == ELLIPSOID, round_, np.where(kind == FRUSTUM, disc, 0.5 * (round_ + box)))
    return (rows[:, 1:4] - half).min(0), (rows[:, 1:4] + half).max(0)


@lru_cache(maxsize=4096)
def assemble(subject: ToySubject, shape: str, pose: str, accessory: str, accessory_color: str) -> np.ndarray:
    """Primitives (n, ROW) of one toy standing on y = 0 at the origin, facing +z, about 1 unit high.

    The size is set by the body alone, so an accessory never rescales its wearer.
    Raises ValueError for an unknown species, shape or pose.
    """
    for name, value, known in (
        ("species", subject.species, SPECIES),
        ("shape", shape, SHAPES),
        ("pose", pose, POSES),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(known)}")
    rig = Rig(subject, pose)
    SPECIES[subject.species](rig)
    count = len(rig.rows)
    dress(rig, accessory, accessory_color)
    rows = np.array(rig.rows, dtype=np.float64).reshape(-1, ROW)
    _reshape(rows, count, shape)
    low, high = extent(rows[:count])
    size = high - low
    fit = 1.0 / max(size[1], 0.8 * size[0], 0.72 * size[2])
    if shape == "tall":
        fit *= 1.15
    elif shape == "tiny":
        fit *= 0.56
    if pose == "sitting":
        fit *= 0.94
    middle = np.array([0.0, low[1], 0.5 * (low[2] + high[2]) * 0.5])
    rows[:, 1:4] = (rows[:, 1:4] - middle) * fit
    rows[:, 4:13] *= fit
    return rows


def _reshape(rows: np.ndarray, count: int, shape: str) -> None:
    """The shape edit, in place: geometry changes, paint and parts stay."""
    if shape == "cube shaped":
        body = rows[:count]
        big = body[:, 13:16].max(1) > _SMALL
        soft = big & (body[:, 0] != BOX)
        ball = soft & (body[:, 0] == ELLIPSOID)
        body[ball, 4:13] *= 0.9
        body[soft, 0] = BOX
        low, high = extent(body)
        size = high - low
        stretch = (np.prod(size) ** (1 / 3) / size) ** 0.55
    elif shape in _STRETCH:
        stretch = np.array(_STRETCH[shape])
    else:
        return
    rows[:, 1:4] *= stretch
    rows[:, 4:13] = (rows[:, 4:13].reshape(-1, 3, 3) * stretch[:, None]).reshape(-1, 9)


def pattern_code(subject: ToySubject) -> tuple[float, float, float, float]:
    """(pattern index, frequency, offset, offset): the subject's own markings, from its id."""
    h = subject.hash
    frequency = 0.88 + 0.3 * ((h >> 8) & 255) / 255
    return (
        float(PATTERNS.index(subject.pattern)),
        frequency,
        ((h >> 16) & 255) / 40.0,
        ((h >> 24) & 255) / 40.0,
    )
