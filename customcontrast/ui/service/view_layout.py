"""The chosen views of a request as the layout that a base takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from customcontrast.errors import RequestError
from customcontrast.layout import MAX_SUBJECTS, Box, Layout, SubjectLayout
from customcontrast.ui.service.request import Request, SubjectRequest, in_fractions

if TYPE_CHECKING:
    from customcontrast.base_model import BaseModel

DIRECTIONS = {  # names of a turn in degrees, as the page and the API take them
    "front": 0.0,
    "front left": 45.0,
    "left": 90.0,
    "back left": 135.0,
    "back": 180.0,
    "back right": -135.0,
    "right": -90.0,
    "front right": -45.0,
}
USUAL = SubjectLayout((0.25, 0.22, 0.75, 0.92))  # where nothing else says where a subject is


def chosen_layout(base: BaseModel, request: Request) -> Layout | None:
    """The layout of a request that chooses a view; what it leaves open is drawn by its seed, as without a view.

    None: no view was chosen. Raises RequestError for a base that takes none, or too many subjects for one.
    """
    if not request.views:
        return None
    if not base.layout_channels:
        raise RequestError(
            f"The model “{base.name}” is not told how subjects are turned; leave turn, pose and camera at “any”."
        )
    order = named_order(request)
    if len(order) > MAX_SUBJECTS:
        raise RequestError(f"A view can be chosen for {MAX_SUBJECTS} subjects at most; remove some, or leave it open.")
    width, height = request.width_height or (base.default_size, base.default_size)
    boxes = [in_fractions(subject.place) for subject in order]
    drawn = base.layout_prior.draw(request.prompt, request.seed, boxes, width / height) if base.layout_prior else None
    if drawn is None or len(drawn.subjects) < len(order):  # words that the base's prior does not know
        drawn = replace(drawn or Layout((USUAL,)), subjects=tuple(_usual(k, boxes) for k in range(max(len(order), 1))))
    views = [_viewed(layout, subject) for layout, subject in zip(drawn.subjects, order, strict=False)]
    elevation = drawn.elevation if request.elevation is None else request.elevation
    return replace(drawn, subjects=(*views, *drawn.subjects[len(views) :]), elevation=elevation)


def named_order(request: Request) -> list[SubjectRequest]:
    """The subjects in the order in which the prompt names them."""
    from customcontrast.conditioning.prompt import parse_prompt  # torch

    words = parse_prompt(request.prompt, [subject.noun for subject in request.subjects]).words
    return [request.subjects[word.subject] for word in words if word.subject is not None]


def read_turn(text: object) -> float | None:
    """“left”, “-30”, 45 → degrees; "", “any” or None → None. Raises RequestError."""
    words = " ".join(str("" if text is None else text).lower().replace("°", " ").split())
    if words in ("", "any"):
        return None
    if words in DIRECTIONS:
        return DIRECTIONS[words]
    try:
        return float(words)
    except ValueError:
        raise RequestError(
            f"The turn “{words[:40]}” must be any, {', '.join(DIRECTIONS)}, or degrees from -180 to 180."
        ) from None


def _viewed(layout: SubjectLayout, subject: SubjectRequest) -> SubjectLayout:
    azimuth = layout.azimuth if subject.azimuth is None else subject.azimuth
    return replace(layout, azimuth=azimuth, pose=subject.pose or layout.pose)


def _usual(k: int, boxes: list[Box | None]) -> SubjectLayout:
    box = boxes[k] if k < len(boxes) else None
    if box is not None:
        return replace(USUAL, box=box)
    if len(boxes) < 2:
        return USUAL
    return replace(USUAL, box=(0.04 + 0.48 * k, 0.3, 0.48 + 0.48 * k, 0.95))
