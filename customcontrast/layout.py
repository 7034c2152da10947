"""Layout of a picture: where each subject is, how it is turned, camera and light.

A base that was trained with it (the embedded Toyland 2) draws subjects in the given boxes; `layout_channels` turns it
into input channels. Everything is painted into the subject's box, so that the denoiser reads *where* a view holds.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Box = tuple[float, float, float, float]  # left, top, right, bottom in shares of the picture, 0..1


POSES = ("standing", "sitting", "walking", "waving")


MAX_SUBJECTS = 2


FACING = 40.0  # degrees to either side up to which a subject shows its face; drawn layouts stay within


LAYOUT_CHANNELS = 13  # elevation; light (3); box of each of two subjects; sin, cos, sin 2 of the azimuth; four poses


@dataclass(frozen=True)
class SubjectLayout:
    """Place and view of one subject.

    box: (left, top, right, bottom) in shares of the picture's width and height, 0..1 from the upper left corner.
    azimuth: degrees, 0 = facing the camera, positive = turned to its left, -180..180. pose: one of POSES.
    Raises ValueError for a box that is empty or outside, an azimuth that is not finite or an unknown pose.
    """

    box: Box
    azimuth: float = 0.0
    pose: str = "standing"

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"box is {self.box}; pass (left, top, right, bottom) with 0 <= left < right <= 1, top too")
        if not math.isfinite(self.azimuth):
            raise ValueError(f"azimuth is {self.azimuth}; pass degrees between -180 and 180")
        if self.pose not in POSES:
            raise ValueError(f"pose is {self.pose!r}; choose one of {', '.join(POSES)}")

    def mirrored(self) -> SubjectLayout:
        """The same place and view in a mirror: left and right change places."""
        left, top, right, bottom = self.box
        return replace(self, box=(1 - right, top, 1 - left, bottom), azimuth=-self.azimuth)


@dataclass(frozen=True)
class Layout:
    """Layout of a picture: where its subjects stand and how they are turned, camera and light.

    subjects: one or two, in the order in which the prompt names them. elevation: of the camera above the ground,
    degrees. light: azimuth and elevation of where the light comes from, degrees.
    Raises ValueError for no subject, or more than two.
    """

    subjects: tuple[SubjectLayout, ...]
    elevation: float = 15.0
    light: tuple[float, float] = (-35.0, 50.0)

    def __post_init__(self) -> None:
        if not 1 <= len(self.subjects) <= MAX_SUBJECTS:
            raise ValueError(f"subjects has {len(self.subjects)}; pass one or two SubjectLayout")

    def mirrored(self) -> Layout:
        """The same layout in a mirror: subjects, their turns and the light change sides."""
        subjects = tuple(s.mirrored() for s in self.subjects)
        return replace(self, subjects=subjects, light=(-self.light[0], self.light[1]))

    def numbers(self) -> list[float]:
        """The layout as a row of NUMBERS floats, for `layout_channels.channels`; 0 for a subject that is not there."""
        row: list[float] = [self.elevation, *self.light]
        for k in range(MAX_SUBJECTS):
            if k < len(self.subjects):
                s = self.subjects[k]
                row += [*s.box, s.azimuth, float(POSES.index(s.pose))]
            else:
                row += [0.0] * 6
        return row


NUMBERS = 3 + 6 * MAX_SUBJECTS


@dataclass(frozen=True)
class LayoutPrior:
    """Layouts that a base was trained on, for pictures that come without one.

    nouns: every word for a kind of subject -> the kind. kinds: for each, boxes and views that it had when alone, as
    (left, top, right, bottom, azimuth, pose, shape). shapes: words of a prompt -> the shape they mean.
    """

    nouns: dict[str, str]
    kinds: dict[str, list[list[Any]]]
    shapes: dict[str, str]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LayoutPrior:
        """Make one of a JSON object with the fields' names."""
        return cls(values["nouns"], values["kinds"], values["shapes"])

    def named(self, prompt: str) -> list[tuple[str, str, str | None]]:
        """The subjects that a prompt names, in its order: (kind, shape, pose or None), at most MAX_SUBJECTS.

        Of nouns that follow each other ("teddy bear") the last one counts. A shape or pose word belongs to the nearest
        noun after it, or before it.
        """
        words = re.findall(r"[a-z]+|\*", prompt.lower())
        at = [i for i, word in enumerate(words) if word in self.nouns]
        at = [i for i in at if i + 1 not in at][:MAX_SUBJECTS]
        found = []
        for n, i in enumerate(at):
            start, end = (at[n - 1] + 1 if n else 0), (at[n + 1] if n + 1 < len(at) else len(words))
            before, after = words[start:i], words[i + 1 : end]
            shape = next((self.shapes[w] for w in before if w in self.shapes), self.shapes.get("", "normal"))
            pose = next((w for w in after if w in POSES), None)
            found.append((self.nouns[words[i]], shape, pose))
        return found

    def draw(self, prompt: str, seed: int, places: Sequence[Box | None] = (), aspect: float = 1.0) -> Layout | None:
        """A layout for the subjects that `prompt` names, facing the camera; None where it names none.

        seed: decides it. places: of each named subject, a box (left, top, right, bottom; 0..1) that it is to stand in,
        or None. aspect: width / height of the picture.
        """
        named = self.named(prompt)
        if not named:
            return None
        rng = random.Random(f"layout-{seed}")
        subjects = []
        for k, (kind, shape, pose) in enumerate(named):
            rows = [row for row in self.kinds[kind] if row[6] == shape] or self.kinds[kind]
            rows = [row for row in rows if pose is None or row[5] == pose] or rows
            rows = [row for row in rows if abs(row[4]) <= FACING] or rows
            left, top, right, bottom, azimuth, own_pose, _ = rng.choice(rows)
            place = places[k] if k < len(places) else None
            if place is None:
                middle = (k + 0.5) / len(named) if len(named) > 1 else (left + right) / 2
                room = 0.96 / len(named)
                place = (
                    middle - room / 2,
                    bottom - (0.7 if len(named) > 1 else bottom - top),
                    middle + room / 2,
                    bottom,
                )
            subjects.append(
                SubjectLayout(_fitted((right - left) / (bottom - top) / aspect, place), azimuth, pose or own_pose)
            )
        light = (rng.choice((-1.0, 1.0)) * rng.uniform(15.0, 65.0), rng.uniform(38.0, 62.0))
        return Layout(tuple(subjects), rng.uniform(9.0, 23.0), light)


def _fitted(shape: float, place: Box) -> Box:
    """The largest box of this width / height in `place` and in the picture, on its floor, in its middle."""
    left, top, right, bottom = (min(max(x, 0.0), 1.0) for x in place)
    height = min(bottom - top, (right - left) / shape)
    middle, wide = (left + right) / 2, height * shape
    return max(0.0, middle - wide / 2), bottom - height, min(1.0, middle + wide / 2), bottom
