"""What the controls of the page hold, as typed forms; from a form to a request and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from PIL import Image

from customcontrast.errors import RequestError
from customcontrast.specs import BASES
from customcontrast.ui.service.cutouts import CutOut
from customcontrast.ui.service.request import PLACES, STYLE, Request, StyleRequest, SubjectRequest, check, place_box
from customcontrast.ui.service.view_layout import DIRECTIONS, read_turn

AREA = "box"  # what the page's choice of a place says where the box's numbers count
AS_INPUT = "input"  # a size: the shape of the first subject's picture


@dataclass(frozen=True)
class SubjectForm:
    """What the slot of one subject holds."""

    cut: CutOut | None = None  # the picture in hand
    others: tuple[CutOut, ...] = ()  # further pictures of the same subject
    noun: str = ""
    strength: float = 1.0
    place: str = ""  # a named place, AREA, or ""
    area: str = ""  # the box's numbers, where place is AREA
    turn: str = ""  # see `read_turn`
    pose: str = ""

    @property
    def album(self) -> tuple[CutOut, ...]:
        """All pictures of the subject, the one in hand first."""
        return (*(() if self.cut is None else (self.cut,)), *(self.others or ()))

    def request(self, k: int) -> SubjectRequest | None:
        """The subject in slot k, or None where there is no picture. Raises RequestError."""
        album = self.album
        pictures = tuple(cut.current for cut in album if cut.current is not None)
        if len(pictures) < len(album):
            raise RequestError("One of your pictures has no subject yet: click on it in the cut-out.")
        if not album:
            return None
        place = chosen_place(k, self.place, self.area)
        return SubjectRequest(pictures, self.noun, self.strength, place, read_turn(self.turn), self.pose)

    @classmethod
    def of(cls, request: SubjectRequest) -> SubjectForm:
        """The form that makes this request."""
        first, *others = map(CutOut.of, request.segmentations)
        place, area = as_controls(request.place)
        turn = turn_text(request.azimuth)
        return cls(first, tuple(others), request.noun, request.strength, place, area, turn, request.pose)


@dataclass(frozen=True)
class StyleForm:
    """What the slot of the style picture holds."""

    picture: Image.Image | None = None
    strength: float = 1.0
    role: str = STYLE

    def request(self) -> StyleRequest | None:
        """The style or layout picture, or None where there is none."""
        return None if self.picture is None else StyleRequest(self.picture, self.strength, self.role)


@dataclass(frozen=True)
class GenerationForm:
    """What all controls of a run hold."""

    prompt: str = ""
    negative_prompt: str = ""
    steps: int | None = None
    guidance: float | None = None
    subject_scale: float | None = None
    subject_start: float = 0.0
    subject_end: float = 1.0
    subject_guidance_end: float | None = None
    seed: int = 0
    pictures: int = 1
    location_masks: bool = True
    base: str | None = None
    size: str = ""  # "WIDTHxHEIGHT", "" or AS_INPUT
    scheduler: str = ""
    text_tokens: bool = True
    apart: bool = True
    camera: Any = ""  # its height in degrees; "" or None = any
    resolution: Any = ""  # at which references are seen, px; "" or None = the image encoder's own
    subjects: tuple[SubjectForm, ...] = ()
    style: StyleForm = StyleForm()

    def request(self) -> Request:
        """The checked request. Raises RequestError."""
        subjects = [form.request(k) for k, form in enumerate(self.subjects, start=1)]
        size = self.size
        if size == AS_INPUT:
            pictures = [form.album[0].picture.size for form in self.subjects if form.album]
            size = size_like(pictures[0], self.base) if pictures else ""
        return check(
            Request(
                subjects=tuple(filter(None, subjects)),
                elevation=read_camera(self.camera),
                reference_resolution=read_resolution(self.resolution),
                size=size,
                style=self.style.request(),
                **{name: getattr(self, name) for name in SETTINGS if name != "size"},
            )
        )


SETTINGS = (  # fields of a Request that have a control of the same name
    "prompt",
    "negative_prompt",
    "steps",
    "guidance",
    "subject_scale",
    "subject_start",
    "subject_end",
    "subject_guidance_end",
    "seed",
    "pictures",
    "location_masks",
    "base",
    "size",
    "scheduler",
    "text_tokens",
    "apart",
)


def read_camera(text: Any) -> float | None:
    """The camera's height as a control tells it → degrees; None = any. Raises RequestError."""
    words = str("" if text is None else text).lower().replace("°", " ").strip()
    if words in ("", "any"):
        return None
    try:
        return float(words)
    except ValueError:
        raise RequestError(f"The camera's height “{words[:40]}” must be any, or degrees, such as 15.") from None


def read_resolution(text: Any) -> Any:
    """A reference resolution as a control tells it, such as “48” or “48 px” → the number; None = the encoder's own.

    What is no number is left for the request's check to name.
    """
    words = str("" if text is None else text).lower().removesuffix("px").strip()
    return int(words) if words.isdecimal() else words or None


def turn_text(azimuth: float | None) -> str:
    """Degrees → the name of that turn, or the number as text; "" for any."""
    if azimuth is None:
        return ""
    return next((name for name, degrees in DIRECTIONS.items() if degrees == azimuth), f"{azimuth:g}")


def size_like(picture: tuple[int, int], base: str | None) -> str:
    """A size with the shape of a picture (w, h) and about the area of the base's own, sides multiples of 64 px.

    An embedded base was trained with few shapes: of its sizes the one whose shape is nearest.
    """
    spec = BASES.get(base or "")
    if spec is None:
        return ""
    if spec.embedded:
        shape = math.log(picture[0] / picture[1])
        return min(spec.sizes, key=lambda size: abs(math.log(_ratio(size)) - shape))
    own = [int(side) for side in spec.sizes[0].split("x")]
    scale = math.sqrt(own[0] * own[1] / (picture[0] * picture[1]))
    width, height = (max(64, 64 * round(side * scale / 64)) for side in picture)
    return f"{width}x{height}"


def _ratio(size: str) -> float:
    """“192x256” → width over height."""
    width, height = (int(side) for side in size.split("x"))
    return width / height


def as_controls(place: str) -> tuple[str, str]:
    """A place as `read_place` spells it → the choice and the numbers of its box; the inverse of `chosen_place`."""
    boxed = place_box(place) is not None and place not in PLACES
    return (AREA, place) if boxed else (place, "")


def chosen_place(k: int, place: str | None, area: str | None) -> str:
    """What the controls of slot k say → a place for `read_place`. Raises RequestError."""
    if place != AREA:
        return "" if place is None else place
    if area is None or not str(area).strip():
        raise RequestError(f"Say where subject {k} stands: draw its box, or choose another place.")
    return area
