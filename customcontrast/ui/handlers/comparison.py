"""Comparisons with equal seeds: several ways to bring the subject in, or a grid over parameters."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from customcontrast import visualize
from customcontrast.errors import RequestError
from customcontrast.output import Result
from customcontrast.specs import SCHEDULERS
from customcontrast.ui.handlers.forms import GenerationForm
from customcontrast.ui.handlers.generation_run import REPORT_EVERY, Generation, Stream
from customcontrast.ui.handlers.messages import Changes, Set, error_text, note, progress, value_or_hidden
from customcontrast.ui.service import figures
from customcontrast.ui.service.models import NO_PLAIN
from customcontrast.ui.service.request import Request, check
from customcontrast.ui.service.service import Service

WAYS = {  # key → its label
    "text": "Text only",
    "visual": "Picture only (IP-Adapter style)",
    "silent": "S* only (λ = 0)",
    "plain": "Without CSCL and MACL",
    "unmasked": "Without location masks",
    "full": "CustomContrast",
}
AXES = {  # what a grid can run over → its label
    "subject_scale": "Subject scale λ",
    "guidance": "Guidance",
    "seed": "Seed",
    "steps": "Steps",
    "prompt": "Prompt",
    "scheduler": "Scheduler",
}
PUBLISHED_WAYS = {"text": "Text only", "unmasked": "IP-Adapter", "full": "IP-Adapter, located"}  # with its weights
MAX_CELLS = 16  # pictures of one grid
ONE_A_LINE, WITH_COMMAS = "One prompt a line.", "With commas between them."

Labelled = tuple[str, Image.Image]


@dataclass(frozen=True)
class Compared:
    """The pictures of a comparison, by the key of their way."""

    pictures: dict[str, Labelled]


def require_subject(request: Request) -> None:
    """Raises RequestError for a request without a subject."""
    if not request.subjects:
        raise RequestError("There is no subject to compare with: give a picture of yours first.")


def ways(request: Request, plain: bool = False, published: bool = False) -> dict[str, Request]:
    """The same request in several ways, one picture each.

    text: the prompt alone. visual: no S* in the prompt and no masks, the subject comes through the visual branch alone,
    as in IP-Adapter, with this adapter's weights. silent: S* alone, λ = 0. plain (where there is such an adapter):
    everything, with the adapter trained without CSCL and MACL. unmasked: both branches, no location masks and no given
    places. full: both, with masks and the places that were given.
    published: the adapter is a published IP-Adapter, which has no S*: text, unmasked (as it was published) and full
    (located by the noun's map) are all there is.
    Raises RequestError for a request without a subject.
    """
    require_subject(request)
    full = replace(request, pictures=1, text_tokens=True, location_masks=True, contrast=True)
    loose = replace(full, location_masks=False, subjects=tuple(replace(s, place="") for s in full.subjects))
    if published:
        return {"text": replace(full, subjects=(), style=None), "unmasked": loose, "full": full}
    without = {"plain": replace(full, contrast=False)} if plain else {}
    return {
        "text": replace(full, subjects=(), style=None),
        "visual": replace(loose, text_tokens=False),
        "silent": replace(full, subject_scale=0.0),
        **without,
        "unmasked": loose,
        "full": full,
    }


def axis_values(axis: str, text: str) -> list[Any]:
    """“0.5, 1, 1.5” → values of a parameter; prompts are one a line. Raises RequestError."""
    if axis not in AXES:
        raise RequestError(f"A grid cannot run over “{axis}”; choose one of {', '.join(AXES.values())}.")
    parts = str(text or "").splitlines() if axis == "prompt" else str(text or "").replace("\n", ",").split(",")
    parts = [part.strip() for part in parts if part.strip()]
    if not parts:
        raise RequestError(f"Say which values of “{AXES[axis]}” the grid should have.")
    if axis == "prompt":
        return parts
    if axis == "scheduler":
        known = {spec.title.lower(): key for key, spec in SCHEDULERS.items()} | {key: key for key in SCHEDULERS}
        return [known.get(part.lower(), part) for part in parts]
    try:
        return [int(part) if axis in ("seed", "steps") else float(part) for part in parts]
    except ValueError:
        raise RequestError(f"The values of “{AXES[axis]}” must be numbers with commas between them.") from None


def cells(request: Request, x: str, xs: Sequence[Any], y: str, ys: Sequence[Any]) -> list[list[Request]]:
    """A request for each cell: rows over y, columns over x, one picture each, all checked. Raises RequestError."""
    if x == y:
        raise RequestError("Choose two different parameters for the grid.")
    if len(xs) * len(ys) > MAX_CELLS:
        raise RequestError(
            f"This grid has {len(xs) * len(ys)} pictures; at most {MAX_CELLS} are made: take fewer values."
        )
    one = replace(request, pictures=1)
    return [[check(replace(one, **{x: a, y: b})) for a in xs] for b in ys]


def axis_label(axis: str, value: Any) -> str:
    """Such as “λ = 0.5”; prompts as they are."""
    if axis == "prompt":
        return str(value)
    if axis == "scheduler":
        return SCHEDULERS[value].title if value in SCHEDULERS else str(value)
    name = "λ" if axis == "subject_scale" else AXES[axis].lower()
    return f"{name} = {value:g}"


class Comparison:
    """Handlers of the Compare tab. generation: its stream runs the requests."""

    def __init__(self, service: Service, generation: Generation) -> None:
        self.service = service
        self.generation = generation

    def compare(self, form: GenerationForm) -> Iterator[Changes]:
        """The controls → progress, then the same seed in several ways."""
        try:
            request = form.request()
            require_subject(request)  # before any model is loaded
            yield {"status": note("Getting ready …"), "stop": Set(interactive=True)}
            for message in self.generation.loading(request.base):
                yield {"status": message}
            models = self.service.models
            published = models.published_adapter(request.base)
            requests = ways(request, models.plain_adapter(request.base) is not None, published)
            titles = PUBLISHED_WAYS if published else WAYS
            pictures: dict[str, Labelled] = {}
            for key, image in in_turn(self.generation.stream, list(requests.items())):
                if isinstance(image, str):
                    yield {"status": image}
                else:
                    pictures[key] = (titles[key], image)
            first = requests["full"].subjects[0].segmentations[0].on_plain()
            sheet = visualize.contact_sheet(
                [first, *(image for _, image in pictures.values())],
                ["Reference", *(label for label, _ in pictures.values())],
                columns=4 if published else 3,
                tile=288,
                title=f"{requests['full'].prompt} (seed {requests['full'].seed})",
            )
            compared, choices = Compared(pictures), [(label, key) for key, label in titles.items()]
            beside = self.side_by_side(compared, "unmasked" if published else "visual", "full")
            beside |= {side: Set(choices=choices, value=beside[side]) for side in ("left", "right")}
            yield {
                "compared": compared,
                "status": "",
                "stop": Set(interactive=False),
                "sides": Set(visible=True),
                **beside,
                "sheet": value_or_hidden(sheet),
            }
        except Exception as error:
            yield {"status": note(error_text(error), "error"), "stop": Set(interactive=False)}

    def side_by_side(self, compared: Compared | None, left: str, right: str) -> Changes:
        """Two of the ways under one slider."""
        if compared is None:
            return {}
        absent = [key for key in (left, right) if key not in compared.pictures]
        if absent == ["plain"]:
            raise RequestError(NO_PLAIN)
        if absent:
            raise RequestError("Choose two of the ways in the lists.")
        pictures = [figures.enlarged(compared.pictures[key][1]) for key in (left, right)]
        return {"left": left, "right": right, "slider": Set(value=tuple(pictures), visible=True)}

    def grid(self, x: str, x_values: str, y: str, y_values: str, form: GenerationForm) -> Iterator[Changes]:
        """Two parameters with their values, and the controls → progress, one picture."""
        try:
            xs, ys = axis_values(x, x_values), axis_values(y, y_values)
            rows = cells(form.request(), x, xs, y, ys)
            yield {"status": note("Getting ready …"), "stop": Set(interactive=True)}
            for message in self.generation.loading(rows[0][0].base):
                yield {"status": message}
            places = [((r, c), request) for r, row in enumerate(rows) for c, request in enumerate(row)]
            made: dict[tuple[int, int], Image.Image] = {}
            for place, image in in_turn(self.generation.stream, places):
                if isinstance(image, str):
                    yield {"status": image}
                else:
                    made[place] = image
            table = visualize.labelled_grid(
                [[made[r, c] for c in range(len(xs))] for r in range(len(ys))],
                [axis_label(y, value) for value in ys],
                [axis_label(x, value) for value in xs],
                title="" if "prompt" in (x, y) else rows[0][0].prompt,
            )
            yield {"made_grid": value_or_hidden(table), "status": "", "stop": Set(interactive=False)}
        except Exception as error:
            yield {"status": note(error_text(error), "error"), "stop": Set(interactive=False)}


def in_turn(stream: Stream, requests: Sequence[tuple[Any, Request]]) -> Iterator[tuple[Any, str | Image.Image]]:
    """Run requests one after the other: (key, progress as HTML) now and then, and (key, picture) for each."""
    for number, (key, request) in enumerate(requests, start=1):
        began = reported = time.monotonic()
        for event in stream(request, 0):
            now = time.monotonic()
            if isinstance(event, Result):
                yield key, event.images[0]
            elif now - reported >= REPORT_EVERY:
                reported = now
                yield key, progress(event.index, event.total, now - began, f"Picture {number} of {len(requests)}. ")


def axis_hint(axis: str) -> Changes:
    """Values to begin with, for a parameter that was just chosen."""
    hints = {
        "subject_scale": "0.5, 1, 1.5",
        "guidance": "2, 4, 7",
        "seed": "0, 1, 2",
        "steps": "10, 20, 40",
        "prompt": "",
        "scheduler": "ddim, dpm, euler",
    }
    return Set(value=hints.get(axis, ""), info=ONE_A_LINE if axis == "prompt" else WITH_COMMAS)
