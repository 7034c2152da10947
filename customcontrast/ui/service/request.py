"""A request: subjects and settings as plain values, checked in one place, and what the pipeline makes of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from customcontrast.config import LIMITS, MAX_SUBJECTS, ROLES, GenerationConfig, LocationConfig, RecordConfig
from customcontrast.errors import RequestError
from customcontrast.layout import POSES, Layout
from customcontrast.segmentation import Segmentation
from customcontrast.specs import SCHEDULERS
from customcontrast.ui.service.phrases import shortened

MAX_PROMPT = 20_000  # characters
MAX_NOUN = 40  # characters
LOOK_EVERY = 5  # steps between two records of which parts of the references were looked at
ANYWHERE = "anywhere"  # the place of a subject that is not masked at all
PLACES = {  # named places of a subject in the new picture: left, top, right, bottom in percent of it
    "left": (0.0, 0.0, 50.0, 100.0),
    "middle": (25.0, 0.0, 75.0, 100.0),
    "right": (50.0, 0.0, 100.0, 100.0),
}
MIN_PLACE = 5.0  # percent, a side of a place
SUBJECT, STYLE, LAYOUT = ROLES  # what a reference picture is for
_SWITCHES = {  # fields that are on or off, as a sentence calls them
    "location_masks": "The location masks",
    "text_tokens": "The subject’s own tokens in the prompt",
    "apart": "Passes of their own for several subjects",
    "contrast": "The adapter with the contrastive losses",
}
_SUBJECT_SETTINGS = ("noun", "strength", "place", "azimuth", "pose")  # of a recipe


@dataclasses.dataclass(frozen=True)
class SubjectRequest:
    """One subject as a visitor gave it."""

    segmentations: tuple[Segmentation, ...]  # its reference pictures, cut out
    noun: str  # class word
    strength: float = 1.0  # weight of this subject's visual branch, 0 … 2
    place: str = ""  # where in the picture: see `read_place`; "" = where its own maps say
    azimuth: float | None = None  # degrees it is turned, 0 = facing the camera; None = any (bases with layout)
    pose: str = ""  # one of `layout.POSES`; "" = any (bases with layout)


@dataclasses.dataclass(frozen=True)
class StyleRequest:
    """A whole picture whose style or layout the result is to have, for a base that takes one."""

    picture: Image.Image  # RGB
    strength: float = 1.0  # its own λ, which `subject_scale` leaves alone
    role: str = STYLE  # or LAYOUT

    @property
    def whole(self) -> Segmentation:
        """The picture as a recipe keeps it: a reference of which everything is marked."""
        return Segmentation(self.picture, np.ones((self.picture.height, self.picture.width), bool))


@dataclasses.dataclass(frozen=True)
class Request:
    """All settings of one run; with the reference pictures it is the whole recipe."""

    prompt: str
    subjects: tuple[SubjectRequest, ...] = ()
    negative_prompt: str = ""
    steps: int | None = None  # denoising steps; None = the base's default
    guidance: float | None = None  # classifier-free guidance scale; None = the base's default
    subject_scale: float | None = None  # λ of Eq. 3; None = the adapter's own
    seed: int = 0
    pictures: int = 1  # pictures made in one go
    location_masks: bool = True  # inject M_t into the next step (section 3.4)
    base: str | None = None  # key of the base model; None = the server's
    size: str = ""  # "WIDTHxHEIGHT" in px; "" = the size the base was trained at
    scheduler: str = ""  # key of `specs.SCHEDULERS`; "" = the base's own
    text_tokens: bool = True  # S* in the prompt; False = the visual branch alone, in the manner of IP-Adapter
    apart: bool = False  # several subjects: each is drawn in a pass of its own
    contrast: bool = True  # False = the adapter that was trained without CSCL and MACL, to compare with
    subject_start: float = 0.0  # λ holds from this share of the steps …
    subject_end: float = 1.0  # … to this one
    subject_guidance_end: float | None = None  # share of the steps, the first, in which guidance is on the subjects
    elevation: float | None = None  # degrees of the camera above the ground; None = any (bases with layout)
    reference_resolution: int | None = None  # px at which references are seen; None = the image encoder's own
    style: StyleRequest | None = None  # (SD-1.5 and SDXL with an IP-Adapter)

    @property
    def width_height(self) -> tuple[int, int] | None:
        """The size in px; None = the base's own."""
        return read_size(self.size)

    @property
    def views(self) -> bool:
        """Whether the view of anything was chosen."""
        return self.elevation is not None or any(s.azimuth is not None or s.pose for s in self.subjects)

    def settings(self) -> dict[str, Any]:
        """The JSON part of the recipe; the inverse of :func:`request_from`."""
        names = [f.name for f in dataclasses.fields(self) if f.name not in ("subjects", "style")]
        rows = [{name: getattr(subject, name) for name in _SUBJECT_SETTINGS} for subject in self.subjects]
        rows = [row | {"role": SUBJECT} for row in rows]
        rows += [] if self.style is None else [{"role": self.style.role, "strength": self.style.strength}]
        return {name: getattr(self, name) for name in names} | {"subjects": rows}

    @property
    def references(self) -> list[Sequence[Segmentation]]:
        """The reference pictures of each row of `settings()["subjects"]`."""
        styles = [] if self.style is None else [(self.style.whole,)]
        return [*(subject.segmentations for subject in self.subjects), *styles]

    def to_config(self, preview_every: int = 0, layout: Layout | None = None) -> GenerationConfig:
        """What the pipeline runs. preview_every: steps between two previews, 0 = none. Raises ConfigError."""
        width, height = self.width_height or (None, None)
        return GenerationConfig(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            subject_scale=self.subject_scale,
            subject_start=self.subject_start,
            subject_end=self.subject_end,
            subject_guidance_end=self.subject_guidance_end,
            seed=self.seed,
            width=width,
            height=height,
            num_images=self.pictures,
            location=LocationConfig(enabled=self.location_masks, apart=self.apart),
            record=RecordConfig(looked_at=bool(self.subjects), looked_at_every=LOOK_EVERY),
            preview_every=preview_every,
            scheduler=self.scheduler or None,
            layout=layout,
        )


def request_from(settings: dict[str, Any], references: Sequence[Sequence[Segmentation]]) -> Request:
    """Rebuild a request from a recipe; values are checked as if a visitor had typed them.

    A row of "subjects" with the role "style" or "layout" is the style picture; rows of older recipes have no role and
    are subjects.

    Raises:
        RequestError: a value is missing or of the wrong kind.
    """
    try:
        rows = settings.get("subjects", [])
        if not isinstance(rows, list):
            raise TypeError("subjects must be a list")
        rows = list(zip(references, rows, strict=True))
        subjects = tuple(
            SubjectRequest(
                tuple(pictures),
                row["noun"],
                **{k: row[k] for k in _SUBJECT_SETTINGS[1:] if row.get(k) is not None},
            )
            for pictures, row in rows
            if row.get("role", SUBJECT) == SUBJECT
        )
        styles = [(pictures, row) for pictures, row in rows if row.get("role", SUBJECT) != SUBJECT]
        if len(styles) > 1:
            raise RequestError("This recipe has several style pictures; one is taken.")
        style = _style_of(*styles[0]) if styles else None
        names = {f.name for f in dataclasses.fields(Request)} - {"subjects", "style"}
        settings = {"subject_guidance_end": 0.0} | settings  # of a recipe older than this setting
        request = Request(subjects=subjects, style=style, **{k: v for k, v in settings.items() if k in names})
        return check(request)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError("The recipe is incomplete or damaged; download the PNG again.") from error


def _style_of(pictures: Sequence[Segmentation], row: dict[str, Any]) -> StyleRequest:
    return StyleRequest(pictures[0].image, row.get("strength", 1.0), row["role"])


def check(request: Request) -> Request:
    """Return `request` with clean types, or raise a RequestError that says what to do."""
    if not isinstance(request.prompt, str) or not request.prompt.strip():
        raise RequestError("The prompt is empty: write what the picture should show.")
    if not isinstance(request.negative_prompt, str | None):
        raise RequestError("The negative prompt must be text: write what the picture should not show, or nothing.")
    for name in ("prompt", "negative_prompt"):
        if len(getattr(request, name) or "") > MAX_PROMPT:
            raise RequestError(f"The {name.replace('_', ' ')} is longer than {MAX_PROMPT:,} characters: shorten it.")
    if len(request.subjects) > MAX_SUBJECTS:
        raise RequestError(f"At most {MAX_SUBJECTS} subjects fit in one picture: remove some.")
    if not isinstance(request.base, str | None):
        raise RequestError("The model must be a name, such as “toyland”.")
    for name, called in _SWITCHES.items():
        if not isinstance(getattr(request, name), bool):  # "false" is no switch: as text it would count as on
            raise RequestError(f"{called} must be on or off: true or false.")
    start = _public("start of the image guidance", "subject_start", request.subject_start)
    end = _public("end of the image guidance", "subject_end", request.subject_end)
    if start >= end:
        raise RequestError(f"The image guidance starts at {start:g} of the steps and ends at {end:g}: end it later.")
    return dataclasses.replace(
        request,
        prompt=request.prompt.strip(),
        negative_prompt=(request.negative_prompt or "").strip(),
        subjects=tuple(_check_subject(k, s) for k, s in enumerate(request.subjects, start=1)),
        steps=_public("number of steps", "num_inference_steps", request.steps, True),
        guidance=_public("guidance", "guidance_scale", request.guidance, True),
        subject_scale=_public("subject scale", "subject_scale", request.subject_scale, True),
        subject_start=start,
        subject_end=end,
        subject_guidance_end=_public(
            "end of the guidance on subjects", "subject_guidance_end", request.subject_guidance_end, True
        ),
        seed=_public("seed", "seed", request.seed),
        pictures=_public("number of pictures", "num_images", request.pictures),
        size="{}x{}".format(*size) if (size := read_size(request.size)) else "",
        scheduler=_one_of("scheduler", "" if request.scheduler is None else request.scheduler, ("", *SCHEDULERS)),
        elevation=_public("camera's height", "elevation", request.elevation, True),
        reference_resolution=_public(
            "reference resolution", "reference_resolution", request.reference_resolution, True
        ),
        style=_check_style(request.style),
    )


def read_size(text: str | None) -> tuple[int, int] | None:
    """“96 x 128” or “96×128” → (width, height) in px; None for no size. Raises RequestError."""
    text = "" if text is None else str(text).strip()
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,5})\s*[x×]\s*(\d{1,5})", text)
    if match is None:
        raise RequestError(f"The size “{text}” must be width x height in pixels, for example 512x768.")
    width, height = int(match[1]), int(match[2])
    side, most = LIMITS["side"], LIMITS["area"].public_high
    if not (
        side.public_low <= min(width, height) and max(width, height) <= side.public_high and width * height <= most
    ):
        raise RequestError(
            f"The size {width}x{height} does not fit: each side is {side.public_low} to {side.public_high} pixels, "
            f"and a picture has at most {most:,} pixels."
        )
    return width, height


def read_place(text: Any) -> str:
    """A place as a visitor or a recipe gives it → its one spelling. Raises RequestError.

    "": where the subject's own maps say. "left", "middle", "right": that half. "anywhere": it is not masked.
    "left, top, right, bottom" in percent of the picture, such as "10, 20, 60, 100": that box.
    """
    text = " ".join(("" if text is None else str(text)).lower().split())
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
    if not (x0 >= 0 and y0 >= 0 and x1 <= 100 and y1 <= 100 and x1 - x0 >= MIN_PLACE and y1 - y0 >= MIN_PLACE):
        raise RequestError(
            f"The place {shortened(text, 40)} does not fit: its edges are left, top, right and bottom from 0 to 100 "
            f"percent of the picture, and it is at least {MIN_PLACE:g} percent wide and high."
        )
    return ", ".join(f"{value:g}" for value in box)


def place_box(place: str) -> tuple[float, float, float, float] | None:
    """A place as `read_place` spells it → (left, top, right, bottom) in percent; None where no box is meant."""
    if place in ("", ANYWHERE):
        return None
    if place in PLACES:
        return PLACES[place]
    left, top, right, bottom = (float(part) for part in place.split(","))
    return left, top, right, bottom


def in_fractions(place: str) -> tuple[float, float, float, float] | None:
    """The same in fractions of the picture, 0 to 1."""
    box = place_box(place)
    return None if box is None else (box[0] / 100, box[1] / 100, box[2] / 100, box[3] / 100)


def _any(value: Any) -> Any:
    """A choice as a program gives it: “any” is what the page leaves empty."""
    text = value.strip().lower() if isinstance(value, str) else value
    return "" if text == "any" else text


def _one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    if value not in choices:
        raise RequestError(f"There is no {name} “{value}”; choose one of {', '.join(filter(None, choices))}.")
    return value


def _check_subject(k: int, subject: SubjectRequest) -> SubjectRequest:
    noun = " ".join(re.sub(r"[<>*]", " ", subject.noun if isinstance(subject.noun, str) else "").split())
    if not noun:
        raise RequestError(f"Say what subject {k} is in one word, for instance “dog”.")
    if len(noun) > MAX_NOUN:
        raise RequestError(f"The word for subject {k} is too long: use one or two words, such as “teddy bear”.")
    return dataclasses.replace(
        subject,
        noun=noun,
        strength=_public("strength", "strength", subject.strength),
        place=read_place(subject.place),
        azimuth=_public(f"turn of subject {k}", "azimuth", subject.azimuth, True),
        pose=_one_of("pose", _any("" if subject.pose is None else subject.pose), ("", *POSES)),
    )


def _check_style(style: StyleRequest | None) -> StyleRequest | None:
    if style is None:
        return None
    return dataclasses.replace(
        style,
        strength=_public(f"strength of the {_one_of('role', style.role, (STYLE, LAYOUT))}", "strength", style.strength),
    )


def _public(name: str, limit: str, value: Any, may_lack: bool = False) -> Any:
    """A number within the public columns of LIMITS; None where it may be left to the base. Raises RequestError."""
    if value is None and may_lack:
        return None
    bounds = LIMITS[limit]
    low, high = bounds.public_low, bounds.public_high
    kind = "a whole number" if bounds.whole else "a number"
    try:
        if isinstance(value, bool | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise RequestError(f"The {name} must be {kind} from {low} to {high:,}.") from None
    if not low <= number <= high or (bounds.whole and not number.is_integer()):
        raise RequestError(f"The {name} is {number:g}; it must be {kind} from {low} to {high:,}.")
    return int(number) if bounds.whole else number
