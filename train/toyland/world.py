"""What a picture holds, and how pictures are drawn at random: scenes, worlds, sampling."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from train.toyland.backgrounds.scenes import BACKGROUNDS
from train.toyland.geometry import GROUND_Y, frame_box
from train.toyland.scene import Placement, ToyScene
from train.toyland.species.accessories import ACCESSORIES, FRONT_ONLY
from train.toyland.species.bodies import POSES, SHAPES, SPECIES, assemble, extent
from train.toyland.styles.registry import STYLES
from train.toyland.subjects import (
    COLORS,
    EARS,
    EYES,
    PATTERNS,
    SIZES,
    TAILS,
    ToySubject,
    is_heldout,
    variants_per_look,
)


@dataclass(frozen=True)
class World:
    """A part of Toyland: its species, colours and places, and the probabilities that scenes are drawn with."""

    species: tuple[str, ...]
    colors: tuple[str, ...]
    patterns: tuple[str, ...]
    backgrounds: tuple[str, ...]
    styles: tuple[str, ...]  # the first is the plain one
    shapes: tuple[str, ...]  # the first is the plain one
    accessories: tuple[str, ...]  # the first is "none"
    accessory_colors: tuple[str, ...]
    poses: tuple[str, ...] = POSES
    p_two: float = 0.12  # share of pictures with two subjects
    p_photo: float = 0.6  # share of the first style
    p_normal: float = 0.7  # share of the first shape
    p_bare: float = 0.5  # share of "none"
    p_plain: float | None = None  # share of the first pattern; None: all patterns alike
    p_frontal: float = 0.68  # share of subjects that face the camera
    frontal: float = 65.0  # degrees to either side that still count as facing it
    variants: int | None = None  # fixed variants of each place (scene seeds 0 … variants - 1); None: free seeds
    heights: tuple[tuple[float, float], tuple[float, float]] | None = None  # height of one subject, and of each of
    # two, as shares of the picture's height; None: sizes of their own (`keep_inside`)

    @classmethod
    def named(cls, name: str) -> World:
        """The part of Toyland of that name. Raises ValueError where there is none."""
        known = [key for key, value in vars(cls).items() if isinstance(value, classmethod) and key != "named"]
        if name not in known:
            raise ValueError(f"world is {name!r}; choose one of {', '.join(known)}")
        return getattr(cls, name)()

    @classmethod
    def full(cls) -> World:
        """All of Toyland."""
        return cls(
            species=tuple(SPECIES), colors=tuple(COLORS), patterns=PATTERNS, backgrounds=tuple(BACKGROUNDS),
            styles=tuple(STYLES), shapes=SHAPES, accessories=ACCESSORIES,
            accessory_colors=tuple(c for c in COLORS if c not in ("brown", "beige", "gray")), p_two=0.2,
        )  # fmt: skip

    @classmethod
    def small(cls) -> World:
        """The part learned by the `cpu` preset: 8 species, 10 colours, 8 backgrounds, 4 styles."""
        return cls(
            species=("bear", "cat", "rabbit", "duck", "elephant", "robot", "car", "knight"),
            colors=("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"),
            patterns=PATTERNS,
            backgrounds=("beach", "jungle", "city", "snow", "desert", "underwater", "night", "studio"),
            styles=("photo", "watercolor", "sketch", "pixel art"),
            shapes=("normal", "cube shaped", "tall", "chubby"),
            accessories=("none", "hat", "crown", "scarf", "glasses"),
            accessory_colors=("red", "yellow", "green", "blue", "purple", "pink", "black", "white"),
        )

    @classmethod
    def demo(cls) -> World:
        """The part learned by the embedded model: 12 species, every colour, 8 places of 12 fixed variants, 6 styles.

        Subjects fill the picture, mostly face the camera, and half of them are plain.
        """
        return cls(
            species=(
                "bear", "cat", "dog", "rabbit", "elephant", "duck", "robot", "car", "knight", "backpack", "teapot",
                "vase",
            ),
            colors=tuple(COLORS), patterns=PATTERNS,
            backgrounds=("beach", "jungle", "city", "snow", "desert", "underwater", "night", "studio"),
            styles=("photo", "watercolor", "sketch", "pixel art", "cartoon", "oil painting"),
            shapes=("normal", "cube shaped", "tall", "chubby"),
            accessories=("none", "hat", "crown", "scarf", "glasses"),
            accessory_colors=("red", "yellow", "green", "blue", "purple", "pink", "black", "white"),
            p_two=0.25, p_plain=0.5, p_frontal=0.8, frontal=60.0, variants=12, heights=((0.65, 0.9), (0.55, 0.75)),
        )  # fmt: skip

    def count_subjects(self) -> int:
        """Number of distinct subjects in this world."""
        n = len(self.colors)
        return len(self.species) * n * (n - 1) * len(self.patterns) * variants_per_look()


@lru_cache(maxsize=1)
def default_world() -> World:
    return World.full()


def sample_subject(rng: random.Random, world: World | None = None, heldout: bool | None = False) -> ToySubject:
    """A random subject. heldout False: a training subject (default), True: a held-out one, None: any."""
    world = world or default_world()
    while True:
        color_1, color_2 = rng.sample(world.colors, 2)
        species, pattern = rng.choice(world.species), _pattern(rng, world)
        head, girth, legs = (rng.randrange(len(SIZES)) for _ in range(3))
        ears, tail, eyes = (rng.randrange(count) for count in (EARS, TAILS, EYES))
        subject = ToySubject(species, color_1, color_2, pattern, head, girth, legs, ears, tail, eyes)
        if heldout is None or is_heldout(subject) == heldout:
            return subject


def _pattern(rng: random.Random, world: World) -> str:
    return rng.choice(world.patterns) if world.p_plain is None else _mostly(rng, world.p_plain, world.patterns)


def _mostly(rng: random.Random, p_first: float, options: tuple[str, ...]) -> str:
    if len(options) == 1 or rng.random() < p_first:
        return options[0]
    return rng.choice(options[1:])


def _place(rng: random.Random, world: World, subject: ToySubject, index: int, count: int) -> Placement:
    accessory = _mostly(rng, world.p_bare, world.accessories)
    colors = [c for c in world.accessory_colors if c != subject.color_1] or list(world.accessory_colors)
    frontal = rng.random() < world.p_frontal
    azimuth = (
        rng.uniform(-world.frontal, world.frontal) if frontal or accessory in FRONT_ONLY else rng.uniform(-180.0, 180.0)
    )
    pose = _mostly(rng, 0.4, world.poses)
    shape = _mostly(rng, world.p_normal, world.shapes)
    color = rng.choice(colors)
    if count == 1:
        x, z, scale = rng.uniform(-0.3, 0.3), rng.uniform(-0.25, 0.2), rng.uniform(1.08, 1.42)
    else:
        side = -1.0 if index == 0 else 1.0
        x, z, scale = side * rng.uniform(0.4, 0.5), rng.uniform(-0.25, 0.2), rng.uniform(0.9, 1.1)
    return Placement(subject, shape, accessory, color, azimuth, pose, x, z, scale)


def keep_inside(p: Placement, count: int = 1) -> Placement:
    """The placement scaled down and moved so that the toy is inside the picture.

    count: subjects in the picture; with two, each stays in its half.
    """
    low, high = extent(assemble(p.subject, p.shape, p.pose, p.accessory, p.accessory_color))
    a = math.radians(p.azimuth)
    wide, deep = np.maximum(-low, high)[[0, 2]]
    half = abs(math.cos(a)) * wide + abs(math.sin(a)) * deep
    room = 0.92 if count == 1 else 0.54
    scale = min(p.scale, 1.5 / high[1], room / half)
    free = max(0.0, 0.96 - half * scale)
    return replace(p, scale=float(scale), x=float(min(max(p.x, -free), free)))


def fill_frame(rng: random.Random, p: Placement, elevation: float, heights: tuple[float, float]) -> Placement:
    """The placement scaled to a random share of the picture's height, on the ground and inside the picture.

    elevation: of the camera, degrees. heights: least and greatest share. A subject that is too wide for its share
    becomes as large as its width allows: `p.x` other than 0 by more than 0.35 says that it has half the picture.
    """
    alone = abs(p.x) < 0.35
    low, high = (c - np.array([0.0, GROUND_Y]) for c in frame_box(replace(p, x=0.0, z=0.0, scale=1.0), elevation))
    wide, tall = high - low
    scale = min(2.0 * rng.uniform(*heights) / tall, (1.86 if alone else 0.98) / wide)
    left, right = (-0.96, 0.96) if alone else ((-0.98, 0.02) if p.x < 0 else (-0.02, 0.98))
    x = min(max(p.x, left - low[0] * scale), right - high[0] * scale)
    bottom = rng.uniform(-0.95, max(-0.95, min(-0.45, 0.95 - tall * scale)))  # of the picture, which ends at -1
    z = (GROUND_Y + low[1] * scale - bottom) / math.sin(math.radians(elevation))
    return replace(p, scale=float(scale), x=float(x), z=float(z))


def sample_scene(
    rng: random.Random,
    world: World | None = None,
    subjects: tuple[ToySubject, ...] | None = None,
    **fixed: Any,
) -> ToyScene:
    """A random picture of `subjects` (drawn too when None; two of them with probability world.p_two).

    fixed: any field of ToyScene, or of Placement (then given to every placement).
    Raises ValueError for a name that is neither.
    """
    world = world or default_world()
    if subjects is None:
        first = sample_subject(rng, world)
        second = sample_subject(rng, world) if rng.random() < world.p_two else None
        while second is not None and second.species == first.species:
            second = sample_subject(rng, world)
        subjects = (first,) if second is None else (first, second)
    placements = tuple(_place(rng, world, s, i, len(subjects)) for i, s in enumerate(subjects))
    scene = ToyScene(
        placements,
        background=rng.choice(world.backgrounds),
        style=_mostly(rng, world.p_photo, world.styles),
        light=(rng.choice((-1.0, 1.0)) * rng.uniform(15.0, 65.0), rng.uniform(38.0, 62.0)),
        elevation=rng.uniform(7.0, 27.0),
        seed=rng.getrandbits(30) if world.variants is None else rng.randrange(world.variants),
    )
    of_scene = {k: v for k, v in fixed.items() if k in ToyScene.__dataclass_fields__}
    of_place = {k: v for k, v in fixed.items() if k in Placement.__dataclass_fields__}
    if unknown := set(fixed) - set(of_scene) - set(of_place):
        raise ValueError(f"fixed has {sorted(unknown)}, which are fields of neither ToyScene nor Placement")
    if of_place:
        scene = replace(scene, placements=tuple(replace(p, **of_place) for p in scene.placements))
    if not {"x", "scale", "placements"} & set(fixed):
        n = len(scene.placements)
        if world.heights is None:
            inside = tuple(keep_inside(p, n) for p in scene.placements)
        else:
            tilt = of_scene.get("elevation", scene.elevation)
            inside = tuple(fill_frame(rng, p, tilt, world.heights[n - 1]) for p in scene.placements)
        scene = replace(scene, placements=inside)
    return replace(scene, **of_scene)


def attributes(scene: ToyScene) -> dict[str, Any]:
    """Labels of a scene, for classifiers: background, style, and all attributes of each placement."""
    return {
        "background": scene.background,
        "style": scene.style,
        "subjects": [
            {
                "id": p.subject.id, "species": p.subject.species, "color_1": p.subject.color_1,
                "color_2": p.subject.color_2, "pattern": p.subject.pattern, "shape": p.shape, "pose": p.pose,
                "accessory": p.accessory,
                "accessory_color": None if p.accessory == "none" else p.accessory_color,
            }
            for p in scene.placements
        ],
    }  # fmt: skip
