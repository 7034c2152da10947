"""What a visitor asks for: cut-outs, subjects and settings as plain values, checked in one place."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from customcontrast.errors import RequestError
from customcontrast.segmentation import Segmentation, Stroke
from customcontrast.ui.service.recipe import MAX_SUBJECTS
from customcontrast.ui.service.wording import shortened

MAX_SIDE = 768  # px; a reference picture is reduced to this on entry, so that recipes stay small and exact
MAX_PICTURES = 4  # per request
MAX_STEPS = 100
MAX_PROMPT = 20_000  # characters
MAX_NOUN = 40  # characters
MAX_SEED = 2**31 - 1
MAX_POINTS = 64  # clicks on one picture
MIN_SIZE, MAX_SIZE = 32, 2048  # px, a side of a generated picture
MAX_AREA = 1536 * 1536  # px, of a generated picture
SCHEDULER_TITLES = {  # keys of sampling.SCHEDULERS (a test holds it to them), and as people know them
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "dpm": "DPM-Solver++",
    "dpm_sde": "DPM-Solver++, stochastic",
    "euler": "Euler",
    "euler_ancestral": "Euler ancestral",
    "heun": "Heun",
    "pndm": "PNDM",
    "unipc": "UniPC",
}
ADD, REMOVE, BOX = 1, 0, 2  # what a click says; two BOX clicks are the corners of a box
ANYWHERE = "anywhere"  # the place of a subject that is not masked at all
PLACES = {  # named places of a subject in the new picture: left, top, right, bottom in percent of it
    "left": (0.0, 0.0, 50.0, 100.0),
    "middle": (25.0, 0.0, 75.0, 100.0),
    "right": (50.0, 0.0, 100.0, 100.0),
}
MIN_PLACE = 5.0  # percent, a side of a place
Point = tuple[int, int, int]  # x, y in pixels of the picture, and one of the above


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """A reference picture, the clicks and brush strokes on it so far, and the subject they lead to."""

    picture: Image.Image  # RGB, longer side at most MAX_SIDE
    auto: Segmentation | None = None  # what was found without clicks
    points: tuple[Point, ...] = ()
    current: Segmentation | None = None  # the subject with the clicks and strokes
    trouble: str = ""  # a sentence, when there is no subject yet
    strokes: tuple[Stroke, ...] = ()
    clicked: Segmentation | None = None  # the subject with the clicks alone, where there are strokes

    @property
    def mask(self) -> np.ndarray | None:
        """(H, W) bool, or None while there is no subject."""
        return self.current.mask if self.current else None

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """The last box that was clicked: (x0, y0, x1, y1)."""
        corners = [(x, y) for x, y, label in self.points if label == BOX]
        if len(corners) < 2:
            return None
        (xa, ya), (xb, yb) = corners[len(corners) // 2 * 2 - 2 : len(corners) // 2 * 2]
        return min(xa, xb), min(ya, yb), max(xa, xb) + 1, max(ya, yb) + 1


@dataclasses.dataclass(frozen=True)
class Picked:
    """One subject as a visitor gave it."""

    segmentations: tuple[Segmentation, ...]  # its reference pictures, cut out
    noun: str  # class word
    strength: float = 1.0  # weight of this subject's visual branch, 0 … 2
    place: str = ""  # where in the picture: see `read_place`; "" = where its own maps say


@dataclasses.dataclass(frozen=True)
class Request:
    """All settings of one run; with the pictures of the subjects it is the whole recipe."""

    prompt: str
    subjects: tuple[Picked, ...] = ()
    negative_prompt: str = ""
    steps: int | None = None  # denoising steps; None = the base's default
    guidance: float | None = None  # classifier-free guidance scale; None = the base's default
    subject_scale: float = 1.0  # λ of Eq. 3
    seed: int = 0
    pictures: int = 1  # pictures made in one go
    location_masks: bool = True  # inject M_t into the next step (section 3.4)
    base: str | None = None  # key of the base model; None = the studio's
    size: str = ""  # "WIDTHxHEIGHT" in px; "" = the size the base was trained at
    scheduler: str = ""  # key of SCHEDULER_TITLES; "" = the base's own
    text_tokens: bool = True  # S* in the prompt; False = the visual branch alone, in the manner of IP-Adapter
    apart: bool = False  # several subjects: each is drawn in a pass of its own
    contrast: bool = True  # False = the adapter that was trained without CSCL and MACL, to compare with

    @property
    def width_height(self) -> tuple[int, int] | None:
        """The size in px; None = the base's own."""
        return read_size(self.size)

    def settings(self) -> dict[str, Any]:
        """The JSON part of the recipe; the inverse of :func:`request_from`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "subjects"}
        rows = [{"noun": s.noun, "strength": s.strength, "place": s.place} for s in self.subjects]
        return values | {"subjects": rows}


def request_from(settings: dict[str, Any], references: Sequence[Sequence[Segmentation]]) -> Request:
    """Rebuild a request from a recipe; values are checked as if a visitor had typed them.

    Raises:
        RequestError: a value is missing or of the wrong kind.
    """
    try:
        words = settings.get("subjects", [])
        subjects = tuple(
            Picked(tuple(pictures), str(word["noun"]), float(word.get("strength", 1.0)), word.get("place", ""))
            for pictures, word in zip(references, words, strict=True)
        )
        names = {f.name for f in dataclasses.fields(Request)} - {"subjects"}
        request = Request(subjects=subjects, **{k: v for k, v in settings.items() if k in names})
        return check(request)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError("The recipe is incomplete or damaged; download the PNG again.") from error


def check(request: Request) -> Request:
    """Return `request` with clean types, or raise a RequestError that says what to do."""
    if not isinstance(request.prompt, str) or not request.prompt.strip():
        raise RequestError("The prompt is empty: write what the picture should show.")
    if len(request.prompt) > MAX_PROMPT or len(str(request.negative_prompt or "")) > MAX_PROMPT:
        raise RequestError(f"The prompt is longer than {MAX_PROMPT:,} characters: shorten it.")
    if len(request.subjects) > MAX_SUBJECTS:
        raise RequestError(f"At most {MAX_SUBJECTS} subjects fit in one picture: remove some.")
    if not isinstance(request.base, str | None):
        raise RequestError("The model must be a name, such as “toyland”.")
    if not isinstance(request.location_masks, bool | int | float | str | None):
        raise RequestError("The location masks must be on or off: true or false.")
    return dataclasses.replace(
        request,
        prompt=request.prompt.strip(),
        negative_prompt=str(request.negative_prompt or "").strip(),
        subjects=tuple(_check_subject(k, s) for k, s in enumerate(request.subjects, start=1)),
        steps=None if request.steps is None else int(_within("number of steps", request.steps, 1, MAX_STEPS)),
        guidance=None if request.guidance is None else _within("guidance", request.guidance, 0, 30),
        subject_scale=_within("subject scale", request.subject_scale, 0, 5),
        seed=int(_within("seed", request.seed, 0, MAX_SEED)),
        pictures=int(_within("number of pictures", request.pictures, 1, MAX_PICTURES)),
        location_masks=bool(request.location_masks),
        size="{}x{}".format(*size) if (size := read_size(request.size)) else "",
        scheduler=_one_of("scheduler", request.scheduler or "", ("", *SCHEDULER_TITLES)),
        text_tokens=bool(request.text_tokens),
        apart=bool(request.apart),
        contrast=bool(request.contrast),
    )


def read_size(text: str | None) -> tuple[int, int] | None:
    """“96 x 128” or “96×128” → (width, height) in px; None for no size. Raises RequestError."""
    if not str(text or "").strip():
        return None
    match = re.fullmatch(r"\s*(\d{1,5})\s*[x×]\s*(\d{1,5})\s*", str(text))
    if match is None:
        raise RequestError(f"The size “{text}” must be width x height in pixels, for example 512x768.")
    width, height = int(match[1]), int(match[2])
    if not (MIN_SIZE <= min(width, height) and max(width, height) <= MAX_SIZE and width * height <= MAX_AREA):
        raise RequestError(
            f"The size {width}x{height} does not fit: each side is {MIN_SIZE} to {MAX_SIZE} pixels, "
            f"and a picture has at most {MAX_AREA:,} pixels."
        )
    return width, height


def read_place(text: Any) -> str:
    """A place as a visitor or a recipe gives it → its one spelling. Raises RequestError.

    "": where the subject's own maps say. "left", "middle", "right": that half. "anywhere": it is not masked.
    "left, top, right, bottom" in percent of the picture, such as "10, 20, 60, 100": that box.
    """
    text = " ".join(str(text or "").lower().split())
    if text in ("", ANYWHERE, *PLACES):
        return text
    parts = [part for part in re.split(r"[\s,;]+", text.replace("%", " ")) if part]
    try:
        box = x0, y0, x1, y1 = [float(part) for part in parts]
    except ValueError:
        raise RequestError(
            f"The place “{shortened(text, 40)}” must be left, middle, right, anywhere, or four numbers with commas: "
            "left, top, right and bottom edge in percent of the picture, such as 10, 20, 60, 100."
        ) from None
    if not (0 <= x0 and 0 <= y0 and x1 <= 100 and y1 <= 100 and x1 - x0 >= MIN_PLACE and y1 - y0 >= MIN_PLACE):
        raise RequestError(
            f"The place {shortened(text, 40)} does not fit: its edges are left, top, right and bottom from 0 to 100 "
            f"percent of the picture, and it is at least {MIN_PLACE:g} percent wide and high."
        )
    return ", ".join(f"{value:g}" for value in box)


def place_box(place: str) -> tuple[float, ...] | None:
    """A place as `read_place` spells it → (left, top, right, bottom) in percent; None where no box is meant."""
    if place in ("", ANYWHERE):
        return None
    return PLACES.get(place) or tuple(float(part) for part in place.split(","))


def _one_of(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise RequestError(f"There is no {name} “{value}”; choose one of {', '.join(filter(None, choices))}.")
    return value


def _check_subject(k: int, subject: Picked) -> Picked:
    noun = " ".join(re.sub(r"[<>*]", " ", str(subject.noun or "")).split())
    if not noun:
        raise RequestError(f"Say what subject {k} is in one word, for instance “dog”.")
    if len(noun) > MAX_NOUN:
        raise RequestError(f"The word for subject {k} is too long: use one or two words, such as “teddy bear”.")
    strength = _within("strength", subject.strength, 0, 3)
    return dataclasses.replace(subject, noun=noun, strength=strength, place=read_place(subject.place))


def _within(name: str, value: Any, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise RequestError(f"The {name} must be a number from {low} to {high:,}.") from None
    if not low <= number <= high:
        raise RequestError(f"The {name} is {number:g}; it must be from {low} to {high:,}.")
    return number


def points_from(values: Any) -> list[Point]:
    """Check clicks sent by a client: [[x, y, label], …] → tuples. Raises RequestError."""
    try:
        points = [(int(x), int(y), int(label)) for x, y, label in values or ()]
    except (TypeError, ValueError):
        raise RequestError("`points` must be a list of [x, y, label] with label 1 to add and 0 to remove.") from None
    if len(points) > MAX_POINTS or any(label not in (ADD, REMOVE) for *_, label in points):
        raise RequestError(f"`points` takes at most {MAX_POINTS} points, each with label 1 or 0.")
    return points
