"""Generating: from the form to progress, previews and pictures; and the requests of programs, without a form."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from customcontrast.errors import RequestError
from customcontrast.images.loading import load_picture
from customcontrast.output import Result, Step
from customcontrast.ui.handlers.forms import GenerationForm
from customcontrast.ui.handlers.messages import Changes, Set, error_text, note, progress
from customcontrast.ui.handlers.viewers import RunView
from customcontrast.ui.service import figures, recipe
from customcontrast.ui.service.cutouts import MAX_SIDE
from customcontrast.ui.service.recipe import MAX_REFERENCES
from customcontrast.ui.service.request import STYLE, Request, StyleRequest, SubjectRequest, check, read_place
from customcontrast.ui.service.service import Service
from customcontrast.ui.service.view_layout import read_turn

PREVIEW_EVERY = 2  # denoising steps between two live previews
REPORT_EVERY = 0.2  # seconds between two messages of a run, at least; it can be stopped at each
STOPPING = "Stopping …"  # what the browser says at once when Stop is pressed
NOT_BEGUN = (
    "The run did not begin: a setting is outside the range of its control, or too many are waiting. "
    "Check the settings and try again."
)

Stream = Callable[[Request, int], Iterator[Step | Result]]


class Generation:
    """Handlers of the Generate button.

    folder: makes a new folder for files of one answer, inside a cache that is emptied after a while.
    stream: runs a request; the service's own, or that wrapped for a machine that lends its GPU by the call.
    """

    def __init__(self, service: Service, folder: Callable[[], Path], stream: Stream | None = None) -> None:
        self.service = service
        self.folder = folder
        self.stream = stream or service.stream

    def generate(self, form: GenerationForm) -> Iterator[Changes]:
        """The controls → progress, previews, pictures."""
        try:
            request = form.request()
            yield {"status": note("Getting ready …"), "stop": Set(interactive=True)}
            for message in self.loading(request.base):
                yield {"status": message}
            if kept := self.service.models.about_memory(request.base):
                yield {"status": note(f"Getting ready … {kept}")}
            yield from self._running(request)
        except Exception as error:
            yield {"status": note(error_text(error), "error"), "stop": Set(interactive=False)}

    def loading(self, base: str | None) -> Iterator[str]:
        """A message every half second until the model is loaded. Raises RequestError."""
        while True:
            try:
                self.service.models.model(base, timeout=0.5)
                return
            except TimeoutError:
                yield note("The model is being loaded; this happens once …")

    def _running(self, request: Request) -> Iterator[Changes]:
        began = reported = time.monotonic()
        previews: list[tuple[int, Image.Image]] = []
        for event in self.stream(request, PREVIEW_EVERY):
            now = time.monotonic()
            seconds = now - began
            if isinstance(event, Result):
                yield self._finished(RunView(request, event, previews=tuple(previews)), seconds)
                return
            if event.preview is None and now - reported < REPORT_EVERY:
                continue
            reported = now
            changes: Changes = {"status": progress(event.index, event.total, seconds)}
            if event.preview is not None:
                previews.append((event.index, event.preview))
                changes["gallery"] = Set(value=[figures.enlarged(event.preview)], selected_index=0)
            yield changes

    def _finished(self, run: RunView, seconds: float) -> Changes:
        request, result = run.request, run.result
        files = self.save(request, result)
        cut = [f"“{result.truncated}” did not fit into the prompt and was left out."] if result.truncated else []
        messages = note(f"Done in {seconds:.1f} s.", "good")
        messages += "".join(note(text, "warn") for text in [*cut, *result.notes])
        return {
            "gallery": Set(value=files, selected_index=0),
            "run": replace(run, files=tuple(files)),
            "status": messages,
            "stop": Set(interactive=False),
        }

    def save(self, request: Request, result: Result) -> list[str]:
        """Write the pictures as PNG files that carry their recipe; one that was withheld, as a plain picture alone."""
        folder, settings, paths = self.folder(), request.settings(), []
        if request.subject_scale is None:  # said, so that the picture comes again with whatever adapter's own
            settings["subject_scale"] = result.recipe["subject_scale"]
        for i, image in enumerate(result.images, start=1):
            if any(result.flagged[i - 1 : i]):
                paths.append(str(folder / f"withheld-{i}.png"))
                image.save(paths[-1])
                continue
            path = folder / f"customcontrast-seed{request.seed}-{i}.png"
            path.write_bytes(recipe.png_bytes(image, {**settings, "picture": i}, request.references))
            paths.append(str(path))
        return paths

    def run(self, call: ProgramCall) -> RunView:
        """Run a program's request to its end. Raises RequestError."""
        request = call.request(self.service)
        *_, result = self.stream(request, 0)
        if not isinstance(result, Result):
            raise RequestError("The run ended before its pictures were there: try again.")
        return RunView(request, result)


def ended(status: str | None) -> Changes:
    """A run did not end by itself: it was stopped (status: STOPPING), or it never reached its handler."""
    text = note("Stopped.") if STOPPING in (status or "") else note(NOT_BEGUN, "error")
    return {"status": text, "stop": Set(interactive=False), "button": Set(interactive=True)}


@dataclass(frozen=True)
class ProgramCall:
    """A request as a program sends it: files and texts. See `api.Endpoints.generate` for each."""

    references: Sequence[str] = ()
    nouns: str = ""
    per_subject: str = ""
    places: str = ""
    strengths: str = ""
    turns: str = ""
    poses: str = ""
    settings: dict[str, Any] | None = None  # fields of a Request
    style: str | None = None
    style_strength: float = 1.0
    style_role: str = STYLE

    def request(self, service: Service) -> Request:
        """The checked request, its pictures cut out. Raises PictureError, RequestError."""
        nouns = [word.strip() for word in (self.nouns or "").split(",") if word.strip()]
        count = len(nouns)
        counts, places = read_counts(self.per_subject, count), _each("places", self.places, count, "left; right")
        if sum(counts) != len(self.references):
            each = not (self.per_subject or "").strip()
            hint = "send one word for each" if each else f"per_subject asks for {sum(counts)}"
            raise RequestError(f"The nouns are {count} words for {len(self.references)} pictures; {hint}.")
        strengths = _each("strengths", self.strengths, count, "1; 0.5", ",;")
        turns = _each("turns", self.turns, count, "left; any", ",;")
        poses = _each("poses", self.poses, count, "sitting; any", ",;")
        files = iter(self.references)
        subjects = tuple(
            SubjectRequest(
                tuple(service.cutouts.segmented(next(files)) for _ in range(pictures)),
                noun,
                1.0 if strength == "" else strength,
                read_place(place),
                read_turn(turn),
                pose,
            )
            for noun, pictures, strength, place, turn, pose in zip(
                nouns, counts, strengths, places, turns, poses, strict=True
            )
        )
        style = None
        if self.style:
            picture = load_picture(self.style, "style", max_side=MAX_SIDE)
            style = StyleRequest(picture, self.style_strength, self.style_role or STYLE)
        return check(Request(subjects=subjects, style=style, **(self.settings or {})))


def read_counts(text: str, subjects: int) -> list[int]:
    """“2, 1” → [2, 1], one number from 1 to MAX_REFERENCES for each subject. Raises RequestError."""
    if not str(text or "").strip():
        return [1] * subjects
    parts = [part.strip() for part in str(text).split(",")]
    if len(parts) != subjects or not all(part.isdecimal() and 1 <= int(part) <= MAX_REFERENCES for part in parts):
        raise RequestError(
            f"per_subject: send a number from 1 to {MAX_REFERENCES} for each of the {subjects} subjects."
        )
    return [int(part) for part in parts]


def _each(name: str, text: str, subjects: int, such_as: str, marks: str = ";") -> list[str]:
    """“left; right” → one text for each subject; nothing for all where there is none. Raises RequestError."""
    text = str("" if text is None else text)
    if not text.strip():
        return [""] * subjects
    for mark in marks[:-1]:
        text = text.replace(mark, marks[-1])
    parts = [part.strip() for part in text.split(marks[-1])]
    if len(parts) != subjects:
        raise RequestError(
            f"{name.capitalize()} must be one for each of the {subjects} subjects with semicolons between them, "
            f"such as “{such_as}”."
        )
    return parts
