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

from customcontrast import recipe, views
from customcontrast.compare import Comparing
from customcontrast.messages import NO_ROOM, OUR_FAULT, Changes, Set, note, notice, progress, said
from customcontrast.recipe import MAX_REFERENCES, MAX_SUBJECTS
from customcontrast.request import (
    ADD,
    BOX,
    MAX_SEED,
    REMOVE,
    Cut,
    Picked,
    Request,
    StudioError,
    check,
    points_from,
    request_from,
)
from customcontrast.seeing import Seeing, Shown
from customcontrast.segmentation import Segmentation
from customcontrast.studio import CHOICES, Studio
from customcontrast.wording import fill, noun_from_name, with_article

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
)
PREVIEW_EVERY = 2  # denoising steps between two live previews
TELL_EVERY = 0.2  # seconds between two messages of a run, at least; it can be stopped at each
PATIENCE = 30.0  # seconds that notes about a prompt wait for the model
EMPTY_ROW = (None, (), "", 1.0)  # cut, other cuts, noun, strength of a slot without a subject
THUMB = 160  # px, side of a small picture of a further reference

__all__ = [
    "CONTROLS", "NO_ROOM", "OUR_FAULT", "SLOTS", "Changes", "Desk", "Set", "Shown", "note", "notice", "progress", "said"
]  # fmt: skip


class Desk(Seeing, Comparing):
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

    def _rest(self, k: int, rest: Sequence[Cut]) -> Changes:
        """The further pictures of the subject in slot k."""
        rest = tuple(rest)
        thumbs = [views.thumbnail(cut, THUMB) for cut in rest]
        return {f"rest{k}": rest, f"others{k}": Set(value=thumbs, visible=bool(rest), selected_index=None)}

    def another(self, k: int, cut: Cut | None, rest: Sequence[Cut] | None) -> Changes:
        """Put the picture of slot k aside, so that another one of the same subject can be given."""
        rest = tuple(rest or ())
        if cut is None:
            return {f"note{k}": notice("Give a picture first; then you can add another one of the same subject.")}
        if cut.current is None:
            return {f"note{k}": notice("Click on the subject in this picture first.")}
        if len(rest) + 1 >= MAX_REFERENCES:
            return {f"note{k}": notice(f"A subject takes at most {MAX_REFERENCES} pictures.")}
        return {f"upload{k}": None, **self._cut(k, None), **self._rest(k, (*rest, cut))}

    def swap(self, k: int, index: int, cut: Cut | None, rest: Sequence[Cut] | None) -> Changes:
        """Take a picture that was put aside back in hand; the one in hand takes its place."""
        rest = list(rest or ())
        if index not in range(len(rest)):
            return {}
        chosen = rest.pop(index)
        if cut is not None:
            rest.insert(index, cut)
        return {f"upload{k}": chosen.picture, **self._cut(k, chosen), **self._rest(k, rest)}

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
        try:
            point = int(place[0]), int(place[1]), (REMOVE, ADD, BOX)[int(label)]
        except (TypeError, ValueError, IndexError, OverflowError):
            raise StudioError(
                "A click must be a place (x, y) in pixels of the cut-out: click on the picture."
            ) from None
        return self._cut(k, self.studio.clicked(cut, (*cut.points, point)))

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
        """Slot k goes, those after it move up. values: cut, other cuts, noun, strength of each slot."""
        rows = [values[i : i + 4] for i in range(0, len(values), 4)]
        return {**self._filled([*rows[: k - 1], *rows[k:], EMPTY_ROW]), **self._counted(max(1, count - 1))}

    def _filled(self, rows: Sequence[Sequence[Any]]) -> Changes:
        changes: Changes = {}
        for k, (cut, rest, noun, strength) in zip(SLOTS, rows, strict=True):
            changes |= {f"upload{k}": cut.picture if cut else None, f"noun{k}": noun, f"strength{k}": strength}
            changes |= {**self._cut(k, cut), **self._rest(k, rest or ())}
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
            with contextlib.suppress(TimeoutError, StudioError):
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
        return {} if shown is None else {"seed": min(shown.request.seed + shown.index, MAX_SEED)}

    # ---- generating ---------------------------------------------------------------------------

    def _request(self, values: Sequence[Any]) -> Request:
        n = len(CONTROLS)
        cuts, nouns, strengths, rests = (values[n + i * MAX_SUBJECTS : n + (i + 1) * MAX_SUBJECTS] for i in range(4))
        albums = [
            (*(() if cut is None else (cut,)), *(rest or ()))
            for cut, rest in zip(cuts, rests or [()] * MAX_SUBJECTS, strict=True)
        ]
        if any(cut.current is None for album in albums for cut in album):
            raise StudioError("One of your pictures has no subject yet: click on it in the cut-out.")
        subjects = tuple(
            Picked(tuple(cut.current for cut in album), noun, strength)
            for album, noun, strength in zip(albums, nouns, strengths, strict=True)
            if album
        )
        return check(Request(subjects=subjects, **dict(zip(CONTROLS, values, strict=False))))

    def generate(self, *values: Any) -> Iterator[Changes]:
        """The controls, then the cut, noun, strength and (optional) other cuts of every slot → progress, previews,
        pictures."""
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
                changes["gallery"] = Set(value=[views.enlarged(event.preview)], selected_index=0)
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

    def stop(self) -> Changes:
        return {"status": note("Stopped."), "stop": Set(interactive=False)}

    def load(self, path: str) -> Changes:
        """Put the recipe of a downloaded PNG into every control."""
        settings, references = recipe.read_png(path)
        request = request_from(settings, references)
        rows = []
        for picked in request.subjects:
            first, *others = (Cut(found.image, found, (), found) for found in picked.segmentations)
            rows.append((first, tuple(others), picked.noun, picked.strength))
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
        """The subject of a picture, with a client's corrections. Raises StudioError."""
        if not image:
            raise StudioError("There is no picture: send one.")
        cut = self.studio.clicked(self.studio.cut(image), points_from(points))
        if cut.current is None or cut.trouble:
            raise StudioError(cut.trouble)
        return cut.current

    def run(self, files: Sequence[str], nouns: str, per_subject: str = "", **settings: Any) -> Shown:
        """Generate from picture files and the subjects' words, separated by commas. Raises StudioError.

        per_subject: how many of the files belong to each subject, such as "2, 1"; "" = one each.
        """
        words = [word.strip() for word in (nouns or "").split(",") if word.strip()]
        counts = _counts(per_subject, len(words))
        if sum(counts) != len(files):
            told = (
                "send one word for each" if not (per_subject or "").strip() else f"per_subject asks for {sum(counts)}"
            )
            raise StudioError(f"nouns: {len(words)} words for {len(files)} pictures; {told}.")
        rest = iter(files)
        subjects = tuple(
            Picked(tuple(self.found(next(rest)) for _ in range(count)), word)
            for word, count in zip(words, counts, strict=True)
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
        raise StudioError(f"per_subject: send a number from 1 to {MAX_REFERENCES} for each of the {subjects} subjects.")
    return [int(part) for part in parts]
