"""What happens on the page: each visitor's action → what changes. No user interface library here.

A method of `Desk` takes the values of some controls and returns {name of a control: its new value}; `Set`
stands for other properties too (visible, choices, maximum). The page gives the names to its components and
wires its events, nothing else, so everything a visitor can do is tested here without a browser.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from customcontrast.errors import RequestError
from customcontrast.segmentation import Segmentation
from customcontrast.ui.handlers.comparison import Comparing
from customcontrast.ui.handlers.messages import NO_ROOM, OUR_FAULT, Changes, Set, note, notice, progress, said
from customcontrast.ui.handlers.subject_panel import AREA, Cutting, as_controls, chosen_place
from customcontrast.ui.handlers.viewers import Seeing, Shown
from customcontrast.ui.service import figures, recipe
from customcontrast.ui.service.recipe import MAX_REFERENCES, MAX_SUBJECTS
from customcontrast.ui.service.request import (
    MAX_SEED,
    Cut,
    Picked,
    Request,
    check,
    points_from,
    read_place,
    request_from,
)
from customcontrast.ui.service.service import CHOICES, Studio
from customcontrast.ui.service.wording import fill, noun_from_name, with_article

SLOTS = range(1, MAX_SUBJECTS + 1)
CONTROLS = (  # fields of a Request that have a control of the same name
    "prompt",
    "negative_prompt",
    "steps",
    "guidance",
    "subject_scale",
    "seed",
    "pictures",
    "location_masks",
    "base",
    "size",
    "scheduler",
    "text_tokens",
    "apart",
)
PREVIEW_EVERY = 2  # denoising steps between two live previews
TELL_EVERY = 0.2  # seconds between two messages of a run, at least; it can be stopped at each
PATIENCE = 30.0  # seconds that notes about a prompt wait for the model
ROW = ("cut", "rest", "noun", "strength", "place", "area")  # what a slot holds, in the order the page hands it over
EMPTY_ROW = (None, (), "", 1.0, "", "")  # a slot without a subject

__all__ = [
    "CONTROLS", "NO_ROOM", "OUR_FAULT", "SLOTS", "Changes", "Desk", "Set", "Shown", "note", "notice", "progress", "said"
]  # fmt: skip


class Desk(Cutting, Seeing, Comparing):
    """Handlers of one server; a visitor's own things come in and go out as values.

    folder: makes a new folder for files of one answer, inside a cache that is emptied after a while.
    stream: runs a request; the studio's own, or that wrapped for a machine that lends its GPU by the call.
    """

    def __init__(
        self,
        shared: Studio,
        examples: Path,
        folder: Callable[[], Path],
        stream: Callable[..., Iterator[Any]] | None = None,
    ) -> None:
        self.studio = shared
        self.presets: dict[str, list[dict[str, str]]] = json.loads((examples / "prompts.json").read_text("utf-8"))
        self.examples = sorted(examples.glob("*.png"))
        self.folder = folder
        self.stream = stream or shared.stream

    # ---- subjects -----------------------------------------------------------------------------

    def _counted(self, count: int) -> Changes:
        shown = {f"slot{k}": Set(visible=k <= count) for k in SLOTS}
        return {"count": count, "add": Set(visible=count < MAX_SUBJECTS), **shown}

    def add(self, count: int) -> Changes:
        """One more slot."""
        return self._counted(min(count + 1, MAX_SUBJECTS))

    def remove(self, k: int, count: int, *values: Any) -> Changes:
        """Slot k goes, those after it move up. values: a `ROW` of each slot."""
        rows = [values[i : i + len(ROW)] for i in range(0, len(values), len(ROW))]
        return {**self._filled([*rows[: k - 1], *rows[k:], EMPTY_ROW]), **self._counted(max(1, count - 1))}

    def _filled(self, rows: Sequence[Sequence[Any]]) -> Changes:
        changes: Changes = {}
        for k, (cut, rest, noun, strength, place, area) in zip(SLOTS, rows, strict=True):
            changes |= {f"upload{k}": cut.picture if cut else None, f"noun{k}": noun, f"strength{k}": strength}
            changes |= {**self._cut(k, cut), **self._rest(k, rest or ())}
            changes |= self._place(k, _readable(area if place == AREA else place))
        return changes

    def example(self, index: int, count: int, *cuts: Cut | None) -> Changes:
        """An example goes into the first empty slot, or else into the last."""
        k = next((k for k in SLOTS[:count] if cuts[k - 1] is None), count)
        path = self.examples[index]
        changes = {f"upload{k}": str(path), f"noun{k}": noun_from_name(path)}
        return {**changes, **self._cut(k, self.studio.cut(path)), **self._rest(k, ())}

    # ---- prompt -------------------------------------------------------------------------------

    def preset(self, kind: str, index: int, *nouns: str) -> Changes:
        """One of the preset edits, with the visitor's subjects in it."""
        return {"prompt": fill(self.presets[kind][index]["prompt"], [noun.strip() for noun in nouns if noun])}

    def prompt_notes(self, prompt: str, base: str, *nouns: str) -> Changes:
        """What is worth saying about the prompt before it is used; just after the start, once the model is there."""
        if not self.studio.ready(base):
            with contextlib.suppress(TimeoutError, RequestError):
                self.studio.model(base, timeout=PATIENCE)
        words = [noun.strip() for noun in nouns if noun and noun.strip()]
        return {"notes": notice(self.studio.prompt_notes(prompt, words, base) if prompt.strip() else [])}

    def chip(self, k: int, prompt: str, noun: str) -> Changes:
        """Put the word of subject k at the end of the prompt, marked as a subject."""
        if not (noun or "").strip():
            return {"notes": notice(f"Say what subject {k} is first.")}
        prompt = (prompt or "").rstrip()
        return {"prompt": f"{prompt} {'and ' if prompt else ''}{with_article(noun.strip())}".strip()}

    def chips(self, *nouns: str) -> Changes:
        """A button for each subject that has a word."""
        words = [(noun or "").strip() for noun in nouns]
        shown = {f"chip{k}": Set(value=f"+ {word}", visible=bool(word)) for k, word in zip(SLOTS, words, strict=True)}
        return {"chips": Set(visible=any(words)), **shown}

    def choose_base(self, base: str) -> Changes:
        """Another base model: it begins to load, and its defaults apply."""
        if not self.studio.offers(base):
            return {"base": self.studio.config.base, "base_note": notice(self.studio.missing(base))}
        self.studio.start(base)
        choice = CHOICES[base]
        defaults = {"steps": choice.steps, "guidance": choice.guidance, "scheduler": ""}
        return {**defaults, "size": Set(choices=self.sizes(base), value=""), "base_note": notice("")}

    def sizes(self, base: str) -> list[tuple[str, str]]:
        """Sizes that suit a base: what is shown → value."""
        own = ("as the model was trained", "")
        return [own, *((size.replace("x", " × "), size) for size in CHOICES[base].sizes)]

    def new_seed(self) -> Changes:
        return {"seed": secrets.randbelow(MAX_SEED)}

    def reuse_seed(self, shown: Shown | None) -> Changes:
        """The seed of the picture on view."""
        if shown is None:
            return {"status": note("Generate a picture first; then its seed can be used again.")}
        return {"seed": min(shown.request.seed + shown.index, MAX_SEED)}

    # ---- generating ---------------------------------------------------------------------------

    def _request(self, values: Sequence[Any]) -> Request:
        rows = values[len(CONTROLS) :]
        rows = [rows[i : i + len(ROW)] for i in range(0, len(rows), len(ROW))]
        subjects = []
        for k, (cut, rest, noun, strength, place, area) in enumerate(rows, start=1):
            album = (*(() if cut is None else (cut,)), *(rest or ()))
            if any(picture.current is None for picture in album):
                raise RequestError("One of your pictures has no subject yet: click on it in the cut-out.")
            if album:
                pictures = tuple(picture.current for picture in album)
                subjects.append(Picked(pictures, noun, strength, chosen_place(k, place, area)))
        return check(Request(subjects=tuple(subjects), **dict(zip(CONTROLS, values, strict=False))))

    def generate(self, *values: Any) -> Iterator[Changes]:
        """The controls, then a `ROW` of every slot → progress, previews, pictures."""
        try:
            request = self._request(values)
            yield {"status": note("Getting ready …"), "stop": Set(interactive=True)}
            yield from self._loading(request.base)
            yield from self._running(request)
        except Exception as error:
            yield {"status": note(said(error), "error"), "stop": Set(interactive=False)}

    def _loading(self, base: str | None, place: str = "status") -> Iterator[Changes]:
        while True:
            try:
                self.studio.model(base, timeout=0.5)
                return
            except TimeoutError:
                yield {place: note("The model is being loaded; this happens once …")}

    def _running(self, request: Request) -> Iterator[Changes]:
        began = told = time.monotonic()
        previews: list[tuple[int, Image.Image]] = []
        for event in self.stream(request, PREVIEW_EVERY):
            now = time.monotonic()
            seconds = now - began
            if hasattr(event, "images"):
                yield self._finished(Shown(request, event, previews=tuple(previews)), seconds)
                return
            if event.preview is None and now - told < TELL_EVERY:
                continue
            told = now
            changes: Changes = {"status": progress(event.index, event.total, seconds)}
            if event.preview is not None:
                previews.append((event.index, event.preview))
                changes["gallery"] = Set(value=[figures.enlarged(event.preview)], selected_index=0)
            yield changes

    def _finished(self, shown: Shown, seconds: float) -> Changes:
        request, result = shown.request, shown.result
        cut = [f"“{result.truncated}” did not fit into the prompt and was left out."] if result.truncated else []
        messages = note(f"Done in {seconds:.1f} s.", "good")
        messages += "".join(note(text, "warn") for text in [*cut, *result.notes])
        return {
            "gallery": Set(value=self.save(request, result), selected_index=0),
            "shown": shown,
            "status": messages,
            "stop": Set(interactive=False),
        }

    def save(self, request: Request, result: Any) -> list[str]:
        """Write the pictures as PNG files that carry their recipe."""
        folder = self.folder()
        references = [picked.segmentations for picked in request.subjects]
        paths = []
        for i, image in enumerate(result.images, start=1):
            path = folder / f"customcontrast-seed{request.seed}-{i}.png"
            path.write_bytes(recipe.png_bytes(image, {**request.settings(), "picture": i}, references))
            paths.append(str(path))
        return paths

    def stop(self, button: str = "go", stop: str = "stop", place: str = "status") -> Changes:
        """A run that `button` started was stopped: it can be started again."""
        return {place: note("Stopped."), stop: Set(interactive=False), button: Set(interactive=True)}

    def load(self, path: str) -> Changes:
        """Put the recipe of a downloaded PNG into every control."""
        settings, references = recipe.read_png(path)
        request = request_from(settings, references)
        rows = []
        for picked in request.subjects:
            first, *others = (Cut(found.image, found, (), found) for found in picked.segmentations)
            rows.append((first, tuple(others), picked.noun, picked.strength, *as_controls(picked.place)))
        count = max(1, len(rows))
        values = {name: getattr(request, name) for name in CONTROLS if getattr(request, name) is not None}
        status = note("The recipe is loaded: press Generate to make the same picture again.", "good")
        if request.base is not None and not self.studio.offers(request.base):
            del values["base"]
            status = note(f"The model of this recipe, “{request.base}”, is not on this machine.", "error")
        elif request.base is not None:
            values["size"] = Set(choices=self.sizes(request.base), value=request.size)
        filled = self._filled([*rows, *[EMPTY_ROW] * (MAX_SUBJECTS - len(rows))])
        return {**values, **filled, **self._counted(count), "status": status}

    # ---- for programs -------------------------------------------------------------------------

    def found(self, image: str | None, points: Any = None) -> Segmentation:
        """The subject of a picture, with a client's corrections. Raises RequestError."""
        if not image:
            raise RequestError("There is no picture: send one.")
        cut = self.studio.clicked(self.studio.cut(image), points_from(points))
        if cut.current is None or cut.trouble:
            raise RequestError(cut.trouble)
        return cut.current

    def run(self, files: Sequence[str], nouns: str, per_subject: str = "", places: str = "", **settings: Any) -> Shown:
        """Generate from picture files and the subjects' words, separated by commas. Raises RequestError.

        per_subject: how many of the files belong to each subject, such as "2, 1"; "" = one each.
        places: where each subject stands, separated by semicolons, such as "left; 50, 20, 90, 100"; "" = automatic.
        """
        words = [word.strip() for word in (nouns or "").split(",") if word.strip()]
        counts, where = _counts(per_subject, len(words)), _places(places, len(words))
        if sum(counts) != len(files):
            told = (
                "send one word for each" if not (per_subject or "").strip() else f"per_subject asks for {sum(counts)}"
            )
            raise RequestError(f"nouns: {len(words)} words for {len(files)} pictures; {told}.")
        rest = iter(files)
        subjects = tuple(
            Picked(tuple(self.found(next(rest)) for _ in range(count)), word, place=place)
            for word, count, place in zip(words, counts, where, strict=True)
        )
        request = check(Request(subjects=subjects, **settings))
        *_, result = self.stream(request, 0)
        return Shown(request, result)


def _counts(text: str, subjects: int) -> list[int]:
    """“2, 1” → [2, 1], one number from 1 to MAX_REFERENCES for each subject."""
    if not str(text or "").strip():
        return [1] * subjects
    parts = [part.strip() for part in str(text).split(",")]
    if len(parts) != subjects or not all(part.isdecimal() and 1 <= int(part) <= MAX_REFERENCES for part in parts):
        raise RequestError(
            f"per_subject: send a number from 1 to {MAX_REFERENCES} for each of the {subjects} subjects."
        )
    return [int(part) for part in parts]


def _places(text: str, subjects: int) -> list[str]:
    """“left; 50, 20, 90, 100” → a place for each subject. Raises RequestError."""
    if not str(text or "").strip():
        return [""] * subjects
    parts = str(text).split(";")
    if len(parts) != subjects:
        raise RequestError(
            f"places: send one for each of the {subjects} subjects with semicolons between them, such as “left; right”."
        )
    return [read_place(part) for part in parts]


def _readable(place: str | None) -> str:
    """A place as it can be shown: what a visitor typed wrongly is left out."""
    try:
        return read_place(place)
    except RequestError:
        return ""
