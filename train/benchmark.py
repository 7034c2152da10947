"""What is asked at evaluation: subjects never seen in training, and prompts in the paper's categories.

Toyland: held-out subjects; for each one reconstruction prompt and one edit of each kind (style, shape, scene,
accessorisation), each with the real render of what was asked, which is the ceiling. A folder of pictures (DreamBench's
layout): a sub-folder per subject, and prompts made for its class noun.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from customcontrast.segmentation import Segmentation
from train.metrics import CATEGORIES
from train.sources import reference_scene, render_references
from train.toyland import Placement, ToyScene, ToySubject, World, attributes, describe, render, sample_subject

DISTRACTORS = 50  # subjects among which the right one has to be found
EDITED = {  # what a Toyland prompt of a category asks for, as the attribute reader calls it
    "style": ("style",),
    "shape": ("shape",),
    "scene": ("background",),
    "accessorisation": ("accessory", "accessory_color"),
}
SIDE = 256  # px of a Toyland reference picture, as a visitor would bring it
EDITS: dict[str, tuple[str, ...]] = {  # prompts for real pictures; {} = the class noun, where S* goes
    "reconstruction": ("a photo of a {}",),
    "style": ("a watercolor painting of a {}", "a pencil sketch of a {}", "a {} in pixel art style"),
    "shape": ("a cube shaped {}", "a round, chubby {}", "a very tall {}"),
    "scene": ("a {} on the beach", "a {} in the snow", "a {} in the jungle", "a {} on a city street"),
    "accessorisation": ("a {} wearing a red hat", "a {} wearing a rainbow scarf", "a {} wearing sunglasses"),
}


@dataclass(frozen=True)
class Task:
    """One picture to make."""

    category: str  # one of metrics.CATEGORIES
    prompt: str  # the class noun in <angle brackets>: S* goes there
    scene: ToyScene | None = None  # Toyland: what the picture should show

    @property
    def text(self) -> str:
        """The prompt for a reader: without the mark."""
        return self.prompt.replace("<", "").replace(">", "")

    @property
    def edit(self) -> dict[str, str]:
        """What is asked beyond the subject, {attribute: value}; {} for a reconstruction and outside Toyland."""
        if self.scene is None:
            return {}
        labels = attributes(self.scene)
        values = {**labels["subjects"][0], **labels}
        return {name: values[name] for name in EDITED.get(self.category, ())}


@dataclass(frozen=True, eq=False)
class Case:
    """One subject, one reference, several tasks."""

    subject: str
    noun: str
    reference: Segmentation
    tasks: tuple[Task, ...]
    toy: ToySubject | None = None


def toyland_cases(count: int, world: World, seed: int = 0) -> list[Case]:
    """`count` held-out subjects of `world` with five tasks each, the same for the same seed."""
    return [_toyland_case(random.Random(f"benchmark-{seed}-{i}"), world) for i in range(count)]


def _toyland_case(rng: random.Random, world: World) -> Case:
    subject = sample_subject(rng, world, heldout=True)
    reference = portrait(rng, world, subject)
    return Case(subject.id, subject.noun, reference, tuple(_toyland_tasks(rng, world, subject)), subject)


def portrait(rng: random.Random, world: World, subject: ToySubject) -> Segmentation:
    """A reference of a subject as a visitor would bring it: in plain shape and bare, in any place."""
    scene = reference_scene(rng, world, subject)
    bare = {"shape": world.shapes[0], "accessory": world.accessories[0]}
    front = {"azimuth": rng.uniform(-45.0, 45.0)}  # so that a reference shows the subject's face
    return exact(replace(scene, placements=tuple(replace(p, **bare, **front) for p in scene.placements)))


def _toyland_tasks(rng: random.Random, world: World, subject: ToySubject) -> Iterator[Task]:
    plain = ToyScene(
        (Placement(subject, azimuth=rng.uniform(-40.0, 40.0), scale=1.1),),
        background="studio",
        style=world.styles[0],
        seed=rng.getrandbits(30),
    )
    somewhere = [name for name in world.backgrounds if name != "studio"]
    colors = [c for c in world.accessory_colors if c not in (subject.color_1, subject.color_2)]
    for category in CATEGORIES:
        toy, scene = plain.placements[0], plain
        if category == "style":
            scene = replace(plain, style=rng.choice(world.styles[1:]))
        elif category == "shape":
            toy = replace(toy, shape=rng.choice(world.shapes[1:]))
        elif category == "scene":
            scene = replace(plain, background=rng.choice(somewhere))
        elif category == "accessorisation":
            toy = replace(toy, accessory=rng.choice(world.accessories[1:]), accessory_color=rng.choice(colors))
        scene = replace(scene, placements=(toy,))
        yield Task(category, describe(scene, subject_words="noun").marked, scene)


def exact(scene: ToyScene, side: int = SIDE) -> Segmentation:
    """A render with its exact mask, as a segmentation."""
    rendered = render([scene], side)
    picture = Image.fromarray(rendered.images[0].permute(1, 2, 0).numpy())
    return Segmentation(image=picture, mask=rendered.masks[0, 0].numpy(), score=1.0, method="exact")


def toy_distractors(world: World, seed: int, count: int = DISTRACTORS) -> list[Image.Image]:
    """Segmented references of held-out subjects that are not in the benchmark."""
    rng = random.Random(f"distractors-{seed}")
    subjects = [sample_subject(rng, world, heldout=True) for _ in range(count)]
    crops = render_references([reference_scene(rng, world, subject) for subject in subjects], 128, 96)
    return [Image.fromarray(crop.permute(1, 2, 0).numpy()) for crop in crops]


def folder_cases(folder: Path, count: int | None = None, seed: int = 0) -> list[Case]:
    """Subjects of a folder, a sub-folder each; the first picture is the reference, segmented by `Segmenter`.

    The class noun is that of noun.txt in the sub-folder, or of DreamBench's prompts_and_classes.txt, or the folder's
    name. Raises ValueError when there is no subject.
    """
    from train.folder import subject_folders

    cases = []
    for name, noun, segmentation in subject_folders(folder, count):
        rng = random.Random(f"benchmark-{seed}-{name}")
        tasks = tuple(Task(c, rng.choice(EDITS[c]).format(f"<{noun}>")) for c in CATEGORIES)
        cases.append(Case(name, noun, segmentation, tasks))
    if not cases:
        raise ValueError(f"{folder} holds no subject; it needs one sub-folder per subject with pictures in it")
    return cases


def ceiling(case: Case, task: Task, side: int) -> tuple[Image.Image, np.ndarray] | None:
    """The real render of what was asked and its mask (H, W), or None where there is no world to render."""
    if task.scene is None:
        return None
    truth = exact(task.scene, side)
    return truth.image, truth.mask
