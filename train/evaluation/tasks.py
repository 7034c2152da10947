"""What is asked at evaluation: subjects never seen in training, and prompts in the paper's categories.

Toyland: held-out subjects; for each one reconstruction prompt and one edit of each kind (style, shape, scene,
accessorisation), each with the real render of what was asked, which is the ceiling. A folder of pictures (DreamBench's
layout): a sub-folder per subject, and prompts made for its class noun.

References of Toyland are portraits, or "edited": the subject in another style and shape and wearing something, none of
which is asked for. What a picture shows of that has leaked: the paper's irrelevant attributes, counted.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from customcontrast.segmentation import Segmentation
from train.data.toyland_source import reference_scene, render_references
from train.evaluation.attribute_reader import COLORLESS, COLORS
from train.evaluation.metrics import CATEGORIES
from train.toyland import (
    Placement,
    ToyScene,
    ToySubject,
    World,
    attributes,
    describe,
    fill_frame,
    render,
    sample_scene,
    sample_subject,
)

DISTRACTORS = 50  # subjects among which the right one has to be found
EDITED = {  # what a Toyland prompt of a category asks for, as the attribute reader calls it
    "style": ("style",),
    "shape": ("shape",),
    "scene": ("background",),
    "accessorisation": ("accessory", "accessory_color"),
}
INCIDENTAL = ("style", "shape", "accessory")  # what a reference may show that is not the subject's own
SIDE = 256  # px of a Toyland reference picture, as a visitor would bring it
EDITS: dict[str, tuple[str, ...]] = {  # prompts for real pictures; {} = the class noun, where S* goes
    "reconstruction": ("a photo of a {}",),
    "style": ("a watercolor painting of a {}", "a pencil sketch of a {}", "a {} in pixel art style"),
    "shape": ("a cube shaped {}", "a round, chubby {}", "a very tall {}"),
    "scene": ("a {} on the beach", "a {} in the snow", "a {} in the jungle", "a {} on a city street"),
    "accessorisation": ("a {} wearing a red hat", "a {} wearing a rainbow scarf", "a {} wearing sunglasses"),
}
CARRIED = ("species", "color_1", "color_2", "pattern")  # what of a subject its pictures should show


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
        values = labels_of(self.scene)
        return {name: values[name] for name in EDITED.get(self.category, ())}


@dataclass(frozen=True, eq=False)
class Case:
    """One subject, one reference, several tasks."""

    subject: str
    noun: str
    reference: Segmentation  # what a method is shown
    tasks: tuple[Task, ...]
    toy: ToySubject | None = None
    portrait: Segmentation | None = None  # of an edited reference: the subject as it is, which pictures are held to
    incidental: dict[str, str] = field(default_factory=dict)  # of an edited reference: {attribute of INCIDENTAL: value}

    @property
    def likeness(self) -> Segmentation:
        """What a picture of the subject is compared with."""
        return self.portrait or self.reference

    @property
    def key(self) -> str:
        """Subject and reference in a word."""
        return self.subject + ("-edited" if self.incidental else "")

    def leaks(self, task: Task) -> dict[str, str]:
        """What `reference` shows and the picture should not, {attribute: value}; {} for a portrait."""
        if task.scene is None:
            return {}
        wanted = labels_of(task.scene)
        return {name: value for name, value in self.incidental.items() if value != wanted[name]}

    def carried(self, task: Task) -> dict[str, str]:
        """What of the subject a picture of the task should show, {attribute of CARRIED: value}; {} without a scene."""
        if task.scene is None:
            return {}
        shown = labels_of(task.scene)
        hidden = COLORS if shown["style"] in COLORLESS else ()
        return {name: shown[name] for name in CARRIED if name not in hidden}


def labels_of(scene: ToyScene) -> dict[str, str]:
    """Attributes of a scene and of its first subject, {name: value}."""
    labels = attributes(scene)
    return {**labels["subjects"][0], **labels}


def toyland_cases(count: int, world: World, seed: int = 0, edited: bool = False) -> list[Case]:
    """`count` held-out subjects of `world` with five tasks each, the same for the same seed.

    edited: their references are in another style and shape and wear something; subjects and tasks are the same.
    """
    names = [f"benchmark-{seed}-{i}" for i in range(count)]
    cases = [_toyland_case(random.Random(name), world) for name in names]
    if not edited:
        return cases
    return [_edited(random.Random(f"{name}-edited"), world, c) for name, c in zip(names, cases, strict=True)]


def _toyland_case(rng: random.Random, world: World) -> Case:
    subject = sample_subject(rng, world, heldout=True)
    reference = portrait(rng, world, subject)
    return Case(subject.id, subject.noun, reference, tuple(_toyland_tasks(rng, world, subject)), subject)


def portrait(rng: random.Random, world: World, subject: ToySubject) -> Segmentation:
    """A reference of a subject as a visitor would bring it: in plain shape and bare, in any place."""
    scene = reference_scene(rng, world, subject)
    bare = {"shape": world.shapes[0], "accessory": world.accessories[0]}
    return exact(_faced(rng, scene, **bare))


def _faced(rng: random.Random, scene: ToyScene, shape: str, accessory: str) -> ToyScene:
    """The scene with its subjects turned so that a reference shows their faces, in this shape and wearing this."""
    azimuth = rng.uniform(-45.0, 45.0)
    turned = (replace(p, azimuth=azimuth, shape=shape, accessory=accessory) for p in scene.placements)
    return replace(scene, placements=tuple(turned))


def _edited(rng: random.Random, world: World, case: Case) -> Case:
    """The case with a reference in a style that shows colours, a shape and a thing to wear, none of them asked for."""
    asked = [value for task in case.tasks for value in task.edit.values()]
    assert case.toy is not None  # cases of Toyland have one

    def another(values: Sequence[str]) -> str:
        return rng.choice([value for value in values[1:] if value not in asked and value not in COLORLESS])

    style = another(world.styles)
    worn = {"shape": another(world.shapes), "accessory": another(world.accessories)}
    scene = _faced(rng, sample_scene(rng, world, subjects=(case.toy,), style=style, **worn), **worn)
    incidental = {name: labels_of(scene)[name] for name in INCIDENTAL}
    return replace(case, reference=exact(scene), portrait=case.reference, incidental=incidental)


def _toyland_tasks(rng: random.Random, world: World, subject: ToySubject) -> Iterator[Task]:
    plain = ToyScene(
        (Placement(subject, azimuth=rng.uniform(-40.0, 40.0), scale=1.1),),
        background="studio",
        style=world.styles[0],
        seed=rng.getrandbits(30) % (world.variants or 2**30),  # places as the world has them
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
        if world.heights is not None:  # a ceiling is seen as the world's own pictures are
            toy = fill_frame(random.Random(f"{subject.id}-{category}"), toy, scene.elevation, world.heights[0])
        scene = replace(scene, placements=(toy,))
        yield Task(category, describe(scene, subject_words="noun").marked, scene)


def exact(scene: ToyScene, side: int = SIDE) -> Segmentation:
    """A render with its exact mask, as a segmentation."""
    rendered = render([scene], side)
    picture = to_pil_image(rendered.images[0])
    return Segmentation(image=picture, mask=rendered.masks[0, 0].numpy(), score=1.0, method="exact")


@functools.lru_cache(maxsize=4)
def toy_distractors(world: World, seed: int, count: int = DISTRACTORS) -> list[Image.Image]:
    """Segmented references of held-out subjects that are not in the benchmark."""
    rng = random.Random(f"distractors-{seed}")
    subjects = [sample_subject(rng, world, heldout=True) for _ in range(count)]
    crops = render_references([reference_scene(rng, world, subject) for subject in subjects], 128, 96)
    return [to_pil_image(crop) for crop in crops]


def photograph_tasks(
    noun: str, rng: random.Random, prompts: dict[str, tuple[str, ...]] | None = None, every: bool = False
) -> tuple[Task, ...]:
    """Prompts for a photographed subject: one of each category that `prompts` (EDITS) has, or every one."""
    prompts = prompts or EDITS
    chosen = ((c, t) for c in prompts for t in (prompts[c] if every else (rng.choice(prompts[c]),)))
    return tuple(Task(category, text.format(f"<{noun}>")) for category, text in chosen)


def read_prompts(path: Path) -> dict[str, tuple[str, ...]]:
    """A YAML or JSON file of prompts, {category of metrics.CATEGORIES: ["a {} on the beach", …]}; {} = the class noun.

    Raises ValueError with one sentence.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts {path} cannot be read ({str(error).splitlines()[0]}); give a YAML file") from error
    if not isinstance(values, dict) or not values:
        raise ValueError(f"--prompts {path} must be a mapping of categories to lists of prompts")
    for category, texts in values.items():
        if category not in CATEGORIES:
            raise ValueError(f"--prompts {path}: {category!r} is no category; choose {', '.join(CATEGORIES)}")
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"--prompts {path}: {category} must be a list of prompts")
        bad = [text for text in texts if text.count("{}") != 1 or set("{}") & set(text.replace("{}", ""))]
        if bad:
            raise ValueError(f"--prompts {path}: {bad[0]!r} must hold {{}} once, where the class noun goes")
    return {category: tuple(texts) for category, texts in values.items()}


def folder_cases(
    folder: Path,
    count: int | None = None,
    seed: int = 0,
    prompts: dict[str, tuple[str, ...]] | None = None,
    find: Callable[[Image.Image, str], Segmentation | None] | None = None,
) -> list[Case]:
    """Subjects of a folder, a sub-folder each; the first picture is the reference.

    prompts: all of these are asked of every subject (`read_prompts`); None = one of EDITS for each category.
    find: what segments the references, such as Grounded SAM; None = masks beside them, or `Segmenter`.

    The class noun is that of noun.txt in the sub-folder, or of DreamBench's prompts_and_classes.txt, or the folder's
    name. Raises ValueError when there is no subject.
    """
    from train.data.folder import subject_folders

    cases = []
    for name, noun, segmentation in subject_folders(folder, count, find):
        rng = random.Random(f"benchmark-{seed}-{name}")
        tasks = photograph_tasks(noun, rng, prompts, every=prompts is not None)
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
