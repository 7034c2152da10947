"""What happens on the page: each visitor's action → what changes. No user interface library here.

A method of `Desk` takes the values of some controls and returns {name of a control: its new value}; `Set`
stands for other properties too (visible, choices, maximum). The page gives the names to its components and
wires its events, nothing else, so everything a visitor can do is tested here without a browser.
"""

from __future__ import annotations

import contextlib
import html
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from customcontrast import recipe, views
from customcontrast.recipe import MAX_SUBJECTS
from customcontrast.request import MAX_SEED, Cut, Picked, Request, StudioError, check, points_from, request_from
from customcontrast.segmentation import Segmentation
from customcontrast.studio import CHOICES, Studio
from customcontrast.wording import fill, noun_from_name, sentence

log = logging.getLogger(__name__)

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
)
KNOWN_ERRORS = ("PictureError", "SegmentationError", "RecipeError", "StudioError", "ViewError")
OUR_FAULT = "Something went wrong on the server and was written to its log. Try again, or change the picture."
PREVIEW_EVERY = 3  # denoising steps between two live previews
TELL_EVERY = 0.2  # seconds between two messages of a run, at least; it can be stopped at each
PATIENCE = 30.0  # seconds that notes about a prompt wait for the model
EMPTY_ROW = (None, None, "", 1.0)  # upload, cut, noun, strength of a slot without a subject

Changes = dict[str, Any]


class Set(dict[str, Any]):
    """New properties of a control, such as Set(value=…, visible=True)."""


@dataclass(frozen=True)
class Shown:
    """The run whose pictures are on the page."""

    request: Request
    result: Any  # pipeline.Result
    index: int = 0  # which of its pictures

    @property
    def names(self) -> list[str]:
        return [picked.noun for picked in self.request.subjects]

    @property
    def references(self) -> list[Segmentation]:
        return [picked.segmentations[0] for picked in self.request.subjects]

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe as people read it."""
        return {**self.request.settings(), "run": self.result.recipe}


def note(text: str, kind: str = "") -> str:
    """A message as HTML; `text` is escaped. kind: "", "good", "warn" or "error"."""
    return f'<div class="cc-note cc-{kind}" role="status">{html.escape(text)}</div>' if text else ""


def notice(texts: str | Sequence[str], kind: str = "warn") -> Set:
    """A message area, which takes no room when there is nothing to say."""
    texts = [texts] if isinstance(texts, str) else texts
    value = "".join(note(text, kind) for text in texts)
    return Set(value=value, visible=bool(value))


def said(error: Exception) -> str:
    """What a visitor is told about an error; a traceback goes to the log alone."""
    if type(error).__name__ in KNOWN_ERRORS:
        return sentence(error)
    log.error("request failed", exc_info=error)
    return OUR_FAULT


def progress(index: int, total: int, seconds: float) -> str:
    """The progress bar of a run as HTML, with the time that is left."""
    left = seconds / max(index, 1) * (total - index)
    text = f"Step {index} of {total}" + (f", about {left:.0f} s left" if index > 1 and left >= 1 else "")
    bar = f'<progress max="{total}" value="{index}" aria-label="Progress"></progress>'
    return f'<div class="cc-progress">{bar}{text}</div>'


class Desk:
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

    def _cut(self, k: int, cut: Cut | None) -> Changes:
        picture = views.cutout(cut) if cut else None
        return {f"cut{k}": cut, f"cutout{k}": picture, f"note{k}": notice(cut.trouble if cut else "")}

    def upload(self, k: int, path: str | None) -> Changes:
        """A new picture for slot k, or none."""
        try:
            return self._cut(k, self.studio.cut(path) if path else None)
        except Exception as error:  # the broken picture goes, the sentence stays
            return {**self._cut(k, None), f"upload{k}": None, f"note{k}": notice(said(error), "error")}

    def click(self, k: int, place: Sequence[int], cut: Cut | None, label: int) -> Changes:
        """A click at (x, y) on the cut-out, in pixels of the picture."""
        if cut is None:
            return self._cut(k, None)
        return self._cut(k, self.studio.clicked(cut, (*cut.points, (int(place[0]), int(place[1]), int(label)))))

    def undo(self, k: int, cut: Cut | None) -> Changes:
        """Take back the last click."""
        return self._cut(k, self.studio.clicked(cut, cut.points[:-1]) if cut else None)

    def reset(self, k: int, cut: Cut | None) -> Changes:
        """Take back all clicks."""
        return self._cut(k, self.studio.clicked(cut, ()) if cut else None)

    def _counted(self, count: int) -> Changes:
        shown = {f"slot{k}": Set(visible=k <= count) for k in SLOTS}
        return {"count": count, "add": Set(visible=count < MAX_SUBJECTS), **shown}

    def add(self, count: int) -> Changes:
        """One more slot."""
        return self._counted(min(count + 1, MAX_SUBJECTS))

    def remove(self, k: int, count: int, *values: Any) -> Changes:
        """Slot k goes, those after it move up. values: upload, cut, noun, strength of each slot."""
        rows = [values[i : i + 4] for i in range(0, len(values), 4)]
        return {**self._filled([*rows[: k - 1], *rows[k:], EMPTY_ROW]), **self._counted(max(1, count - 1))}

    def _filled(self, rows: Sequence[Sequence[Any]]) -> Changes:
        changes: Changes = {}
        for k, (upload, cut, noun, strength) in zip(SLOTS, rows, strict=True):
            changes |= {f"upload{k}": upload, f"noun{k}": noun, f"strength{k}": strength, **self._cut(k, cut)}
        return changes

    def example(self, index: int, count: int, *cuts: Cut | None) -> Changes:
        """An example goes into the first empty slot, or else into the last."""
        k = next((k for k in SLOTS[:count] if cuts[k - 1] is None), count)
        path = self.examples[index]
        changes = {f"upload{k}": str(path), f"noun{k}": noun_from_name(path)}
        return {**changes, **self._cut(k, self.studio.cut(path))}

    # ---- prompt -------------------------------------------------------------------------------

    def preset(self, kind: str, index: int, *nouns: str) -> Changes:
        """One of the preset edits, with the visitor's subjects in it."""
        return {"prompt": fill(self.presets[kind][index]["prompt"], [noun.strip() for noun in nouns if noun])}

    def prompt_notes(self, prompt: str, base: str, *nouns: str) -> Changes:
        """What is worth saying about the prompt before it is used; just after the start, once the model is there."""
        if not self.studio.ready(base):
            with contextlib.suppress(TimeoutError, StudioError):
                self.studio.model(base, timeout=PATIENCE)
        words = [noun.strip() for noun in nouns if noun and noun.strip()]
        return {"notes": notice(self.studio.prompt_notes(prompt, words, base) if prompt.strip() else [])}

    def choose_base(self, base: str) -> Changes:
        """Another base model: it begins to load, and its defaults apply."""
        self.studio.start(base)
        return {"steps": CHOICES[base].steps, "guidance": CHOICES[base].guidance}

    def new_seed(self) -> Changes:
        return {"seed": secrets.randbelow(MAX_SEED)}

    # ---- generating ---------------------------------------------------------------------------

    def _request(self, values: Sequence[Any]) -> Request:
        n = len(CONTROLS)
        cuts, nouns, strengths = (values[n + i * MAX_SUBJECTS : n + (i + 1) * MAX_SUBJECTS] for i in range(3))
        if any(cut is not None and cut.current is None for cut in cuts):
            raise StudioError("One of your pictures has no subject yet: click on it in the cut-out.")
        subjects = tuple(
            Picked((cut.current,), noun, strength)
            for cut, noun, strength in zip(cuts, nouns, strengths, strict=True)
            if cut is not None
        )
        return check(Request(subjects=subjects, **dict(zip(CONTROLS, values, strict=False))))

    def generate(self, *values: Any) -> Iterator[Changes]:
        """The controls, then the cut, noun and strength of every slot → progress, previews, pictures."""
        try:
            request = self._request(values)
            yield {"status": note("Getting ready …"), "stop": Set(interactive=True)}
            yield from self._loading(request.base)
            yield from self._running(request)
        except Exception as error:
            yield {"status": note(said(error), "error"), "stop": Set(interactive=False)}

    def _loading(self, base: str | None) -> Iterator[Changes]:
        while True:
            try:
                self.studio.model(base, timeout=0.5)
                return
            except TimeoutError:
                yield {"status": note("The model is being loaded; this happens once …")}

    def _running(self, request: Request) -> Iterator[Changes]:
        began = told = time.monotonic()
        for event in self.stream(request, PREVIEW_EVERY):
            now = time.monotonic()
            seconds = now - began
            if hasattr(event, "images"):
                yield self._finished(request, event, seconds)
                return
            if event.preview is None and now - told < TELL_EVERY:
                continue
            told = now
            changes: Changes = {"status": progress(event.index, event.total, seconds)}
            if event.preview is not None:
                changes["gallery"] = Set(value=[views.enlarged(event.preview)], selected_index=0)
            yield changes

    def _finished(self, request: Request, result: Any, seconds: float) -> Changes:
        cut = [f"“{result.truncated}” did not fit into the prompt and was left out."] if result.truncated else []
        messages = note(f"Done in {seconds:.1f} s.", "good")
        messages += "".join(note(text, "warn") for text in [*cut, *result.notes])
        return {
            "gallery": Set(value=self.save(request, result), selected_index=0),
            "shown": Shown(request, result),
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

    def stop(self) -> Changes:
        return {"status": note("Stopped."), "stop": Set(interactive=False)}

    def load(self, path: str) -> Changes:
        """Put the recipe of a downloaded PNG into every control."""
        settings, references = recipe.read_png(path)
        request = request_from(settings, references)
        rows = [
            (found.image, Cut(found.image, found, (), found), picked.noun, picked.strength)
            for picked in request.subjects
            for found in picked.segmentations[:1]
        ]
        count = max(1, len(rows))
        values = {name: getattr(request, name) for name in CONTROLS if getattr(request, name) is not None}
        status = note("The recipe is loaded: press Generate to make the same picture again.", "good")
        if request.base is not None and not self.studio.offers(request.base):
            del values["base"]
            status = note(f"The model of this recipe, “{request.base}”, is not on this machine.", "error")
        filled = self._filled([*rows, *[EMPTY_ROW] * (MAX_SUBJECTS - len(rows))])
        return {**values, **filled, **self._counted(count), "status": status}

    # ---- seeing -------------------------------------------------------------------------------

    def pick(self, index: int, shown: Shown | None) -> Changes:
        """Another picture of the same run, with its viewers."""
        if shown is None or index == shown.index or not 0 <= index < len(shown.result.images):
            return {}
        other = Shown(shown.request, shown.result, index)
        return {"shown": other, **self.show(other), **self.show_more(other)}

    def show(self, shown: Shown | None) -> Changes:
        """The viewers of a finished run."""
        if shown is None:
            return {"viewers": Set(visible=False)}
        result, i = shown.result, shown.index
        total = len(result.timesteps)
        words = [(_labelled(text, shown.names), w) for w, (text, _) in enumerate(result.words)]
        first = _first_word([text for text, _ in result.words])
        people = [(name, k) for k, name in enumerate(shown.names)]
        strip = views.strip(result, i, shown.references)
        return {
            "viewers": Set(visible=True),
            "strip": _seen(strip),
            "step": Set(maximum=total, value=total, visible=strip is not None),
            "overlay": _seen(views.step_overlay(result, i, total, shown.names) if strip else None),
            "no_place": Set(visible=strip is None),
            "branch": "text",
            "word": Set(choices=words, value=first, visible=True),
            "who": Set(choices=people, value=0 if people else None, visible=False),
            "map_step": Set(maximum=total, value=0),
            "layers": Set(choices=[("all", ""), *((size, size) for size in result.by_resolution)], value=""),
            "map": views.map_overlay(result, i, views.word_map(result, i, first)) if words else None,
            "recipe": shown.settings,
        }

    def show_more(self, shown: Shown | None) -> Changes:
        """What takes a moment longer: all words at once, and the steps as a film."""
        if shown is None:
            return {}
        film = views.animation(shown.result, shown.index, shown.names, self.folder() / "customcontrast-steps.gif")
        return {
            "grid": views.grid(shown.result, shown.index),
            "plot": _seen(views.area_plot(shown.result, shown.index, shown.names)),
            "film": _seen(str(film) if film else None),
        }

    def step(self, shown: Shown | None, step: int) -> Changes:
        """Another step of the location masks."""
        return {"overlay": views.step_overlay(shown.result, shown.index, step, shown.names)} if shown else {}

    def map(self, shown: Shown | None, branch: str, word: int, who: int, step: int, layers: str) -> Changes:
        """Another attention map. branch: "text" (of a word) or "visual" (of a subject's picture)."""
        visual = branch == "visual"
        changes: Changes = {"word": Set(visible=not visual), "who": Set(visible=visual)}
        if shown is None:
            return changes
        if visual and not shown.names:
            raise StudioError("This picture was made without a subject, so there is no map of its picture.")
        read, which = (views.subject_map, who) if visual else (views.word_map, word)
        values = read(shown.result, shown.index, int(which or 0), int(step), layers or "")
        return {**changes, "map": views.map_overlay(shown.result, shown.index, values)}

    # ---- for programs -------------------------------------------------------------------------

    def found(self, image: str | None, points: Any = None) -> Segmentation:
        """The subject of a picture, with a client's corrections. Raises StudioError."""
        if not image:
            raise StudioError("Send a picture.")
        cut = self.studio.clicked(self.studio.cut(image), points_from(points))
        if cut.current is None or cut.trouble:
            raise StudioError(cut.trouble)
        return cut.current

    def run(self, files: Sequence[str], nouns: str, **settings: Any) -> Shown:
        """Generate from picture files and their words, separated by commas. Raises StudioError."""
        words = [word.strip() for word in (nouns or "").split(",") if word.strip()]
        if len(words) != len(files):
            raise StudioError(f"nouns: {len(words)} words for {len(files)} pictures; send one word for each.")
        subjects = tuple(Picked((self.found(file),), word) for file, word in zip(files, words, strict=True))
        request = check(Request(subjects=subjects, **settings))
        *_, result = self.stream(request, 0)
        return Shown(request, result)

    def named_map(self, shown: Shown | None, word: str, step: int, index: int) -> tuple[Image.Image, dict[str, Any]]:
        """A map by name, over the picture and as numbers. Raises StudioError, ViewError."""
        if shown is None:
            raise StudioError("Generate a picture first, in the same session.")
        values = views.named_map(shown.result, index, word, step)
        facts = {"map": values.round(5).tolist(), "words": [text for text, _ in shown.result.words]}
        return views.map_overlay(shown.result, index, values), facts


def _seen(value: Any) -> Set:
    """A picture or file, out of sight when there is none."""
    return Set(value=value, visible=value is not None)


def _first_word(words: Sequence[str]) -> int:
    """Index of the word whose map is shown first: a subject's own, or else the first that is no article."""
    order = [w for w, word in enumerate(words) if "*" in word] + [w for w, word in enumerate(words) if len(word) > 2]
    return order[0] if order else 0


def _labelled(word: str, names: Sequence[str]) -> str:
    """A word of the prompt as people read it: “S2*” → “S2* (robot)”."""
    match = re.fullmatch(r"S(\d*)\*", word)
    k = int(match[1] or 1) if match else 0
    return f"{word} ({names[k - 1]})" if 0 < k <= len(names) else word
