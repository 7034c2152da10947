"""What a visitor sees of a finished run: masks over time, attention maps, features, recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from customcontrast.errors import AtlasError, RequestError
from customcontrast.output import Result
from customcontrast.segmentation import Segmentation
from customcontrast.ui.handlers.messages import Changes, Set, in_this_run, notice, value_or_hidden
from customcontrast.ui.service import figures
from customcontrast.ui.service.phrases import sentence
from customcontrast.ui.service.request import Request
from customcontrast.ui.service.service import Service

NO_SUBJECT = "This picture has no subject, so there are no features to place."


@dataclass(frozen=True)
class RunView:
    """The run whose pictures are on the page."""

    request: Request
    result: Result
    index: int = 0  # which of its pictures
    previews: tuple[tuple[int, Image.Image], ...] = ()  # (step, the pictures as it foresaw them, side by side)
    files: tuple[str, ...] = ()  # PNG of each picture with its recipe

    @property
    def names(self) -> list[str]:
        """The subjects' nouns."""
        return [subject.noun for subject in self.request.subjects]

    @property
    def references(self) -> list[Segmentation]:
        """The first reference of each subject."""
        return [subject.segmentations[0] for subject in self.request.subjects]

    @property
    def words(self) -> list[str]:
        """The words of the prompt as the model read it."""
        return [text for text, _ in self.result.words]

    @property
    def labels(self) -> list[str]:
        """What people read for each word."""
        return [labelled(text, self.names) for text in figures.word_names(self.result)]

    @property
    def visual_map(self) -> bool:
        """Whether the visual branch leaves a map: a published IP-Adapter's is 1 everywhere, since it has no sink."""
        adapter = self.result.recipe.get("adapter") or {}
        return bool(self.names) and adapter.get("format") != "ip-adapter"

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe as people read it."""
        return {**self.request.settings(), "run": self.result.recipe}

    def forming(self, step: int) -> Image.Image:
        """The picture as it was at a step (from 1): the last preview until then, or the first there is."""
        final = self.result.images[self.index]
        before = [image for at, image in self.previews if at <= step] or [image for _, image in self.previews[:1]]
        if step >= len(self.result.timesteps) or not before:
            return final
        left = self.index * final.width
        return before[-1].crop((left, 0, left + final.width, final.height))


class Viewers:
    """Handlers of the viewers. folder: makes a new folder for the files of one answer."""

    def __init__(self, service: Service, folder: Callable[[], Path]) -> None:
        self.service = service
        self.folder = folder

    def pick(self, index: int, run: RunView | None) -> Changes:
        """Another picture of the same run, with its viewers."""
        if run is None or index == run.index or index not in range(len(run.result.images)):
            return {}
        other = replace(run, index=index)
        return {"run": other, **self.show(other)}

    def show(self, run: RunView | None) -> Changes:
        """The viewers of a finished run."""
        if run is None:
            return {"viewers": Set(visible=False)}
        result, i = run.result, run.index
        total = len(result.timesteps)
        words = [(label, w) for w, label in enumerate(run.labels)]
        first = first_word(run.words)
        people = [(name, k) for k, name in enumerate(run.names)]
        strip = figures.strip(result, i, run.references)
        plot = figures.area_plot(result, i, run.names)
        return {
            "viewers": Set(visible=True),
            "strip": value_or_hidden(strip),
            "step": Set(maximum=total, value=total, visible=strip is not None),
            "play": Set(visible=strip is not None, value="▶ Play"),
            "clock": Set(active=False),
            "overlay": value_or_hidden(self._overlay(run, total) if strip else None),
            "overlay_note": Set(visible=strip is not None),
            "no_place": Set(visible=strip is None),
            "branch": Set(value="text", visible=run.visual_map),
            "word": Set(choices=words, value=first, visible=True),
            "who": Set(choices=people, value=0 if people else None, visible=False),
            "map_step": Set(maximum=total, value=0),
            "layers": Set(choices=[("all", ""), *((size, size) for size in result.by_resolution)], value=""),
            "map": figures.map_overlay(result, i, figures.word_map(result, i, first)) if words else None,
            **self._looked(None, 0),
            "recipe": run.settings,
            "around": value_or_hidden(None),
            "alike": value_or_hidden(None),
            "alike_note": Set(visible=False),
            "around_note": notice(""),
            "make_film": Set(visible=strip is not None),
            "film": value_or_hidden(None),  # of the run before
            "video": value_or_hidden(None),
            "hover": figures.hover_words(result, i, run.labels),
            "grid": figures.grid(result, i),
            "explained": figures.explained(result, i, run.names, run.labels, first),
            "plot": value_or_hidden(plot),
            "plot_note": Set(visible=plot is not None),
        }

    def film(self, run: RunView | None) -> Changes:
        """The steps as a GIF and an MP4, made when they are wanted: they take longer than everything else here."""
        if run is None:
            return {}
        with in_this_run():
            wanted = [self.folder() / f"customcontrast-steps.{kind}" for kind in ("gif", "mp4")]
            made = figures.animations(run.result, run.index, run.names, wanted, run.forming)
        film, video = map(str, made) if made else (None, None)  # a picture without subjects has none
        return {"make_film": Set(visible=False), "film": value_or_hidden(film), "video": value_or_hidden(video)}

    # ---- location -----------------------------------------------------------------------------

    def _overlay(self, run: RunView, step: int) -> Image.Image:
        return figures.step_overlay(run.result, run.index, step, run.names, run.forming(step))

    def step(self, run: RunView | None, step: int) -> Changes:
        """Another step of the location masks, over the picture as it was then."""
        with in_this_run():
            return {"overlay": self._overlay(run, int(step))} if run else {}

    def play(self, run: RunView | None, step: int, running: bool) -> Changes:
        """Start the film of the steps (from the first one, if it stands at the end), or halt it."""
        if run is None:
            return {}
        if running:
            return {"clock": Set(active=False), "running": False, "play": Set(value="▶ Play")}
        at = 1 if step >= len(run.result.timesteps) else step
        moved = {"step": Set(value=at), **self.step(run, at)}
        return {"clock": Set(active=True), "running": True, "play": Set(value="❚❚ Pause"), **moved}

    def tick(self, run: RunView | None, step: int, running: bool) -> Changes:
        """The next step of the film; it halts at the last one."""
        if run is None or not running:
            return {}
        total = len(run.result.timesteps)
        after = min(int(step) + 1, total)
        changes = {"step": Set(value=after), **self.step(run, after)}
        if after >= total:
            changes |= {"clock": Set(active=False), "running": False, "play": Set(value="▶ Play")}
        return changes

    # ---- attention ----------------------------------------------------------------------------

    def map(self, run: RunView | None, branch: str, word: int, who: int, step: int, layers: str) -> Changes:
        """Another attention map. branch: "text" (of a word) or "visual" (of a subject's picture)."""
        visual = branch == "visual"
        changes: Changes = {"word": Set(visible=not visual), "who": Set(visible=visual)}
        if run is None:
            return changes
        if visual and not run.names:
            raise RequestError("This picture was made without a subject, so there is no map of its picture.")
        if visual and not run.visual_map:
            raise RequestError("This adapter's visual branch leaves no map: look at the map of the subject's word.")
        read, which = (figures.subject_map, who) if visual else (figures.word_map, word)
        with in_this_run():
            which = place_of(which)
            values = read(run.result, run.index, which, place_of(step), layers or "")
            looked = self._looked(run, which) if visual else self._looked(None, 0)
        return {**changes, "map": figures.map_overlay(run.result, run.index, values), **looked}

    def look(self, at: Sequence[int], run: RunView | None, branch: str, who: int) -> Changes:
        """A click at (x, y) px of the map of a subject's picture: which parts of that picture this place looked at."""
        if run is None or branch != "visual":
            return {}
        wide, high = figures.enlarged(run.result.images[run.index]).size
        with in_this_run():
            return self._looked(run, int(who or 0), (at[0] / wide, at[1] / high))

    def _looked(self, run: RunView | None, who: int, place: tuple[float, float] | None = None) -> Changes:
        """The reference pictures of a subject with what was looked at; hidden without a run."""
        if run is None or not run.names:
            return {"looked": value_or_hidden(None), "looked_note": Set(visible=False)}
        references = run.request.subjects[who].segmentations
        picture = figures.looked_at(run.result, run.index, who, references, place)
        return {"looked": value_or_hidden(picture), "looked_note": Set(visible=picture is not None)}

    def named_map(self, run: RunView | None, word: str, step: int, index: int) -> tuple[Image.Image, dict[str, Any]]:
        """A map by name, over the picture and as numbers. Raises RequestError, ViewError."""
        if run is None:
            raise RequestError("Generate a picture first, in the same session.")
        with in_this_run():
            which, at = whole(index), whole(step)
            values = figures.named_map(run.result, which, word, at)
        facts = {"map": values.round(5).tolist(), "words": figures.word_names(run.result)}
        return figures.map_overlay(run.result, which, values), facts

    # ---- features -----------------------------------------------------------------------------

    def features(self, run: RunView | None) -> Changes:
        """The run's subjects among those of the training run, and the ones they are most like."""
        hidden = {"around": value_or_hidden(None), "alike": value_or_hidden(None), "alike_note": Set(visible=False)}
        if run is None or not run.names:
            return {**hidden, "around_note": notice(NO_SUBJECT, "")}
        try:
            return self._located(run)
        except AtlasError as error:
            return {**hidden, "around_note": notice(sentence(error), "")}

    def _located(self, run: RunView) -> Changes:
        model = self.service.models.model(run.request.base)
        from customcontrast.adapter import Adapter  # torch
        from customcontrast.toyland.feature_atlas import encoder_features

        if not isinstance(model.adapter, Adapter):
            raise AtlasError("This model's adapter has no features of the kind that are compared here.")
        atlas, _ = self.service.models.atlas(run.request.base)
        new: list[tuple[str, np.ndarray]] = []
        rows = []
        for requested in run.request.subjects:
            subject = self.service.subject(model, requested, run.request.reference_resolution)
            place, near = atlas.locate(encoder_features(model.adapter, subject.features)[0].numpy())
            new.append((requested.noun, place))
            rows.append((requested.noun, requested.segmentations[0], near))
        return {
            "around": value_or_hidden(figures.atlas(atlas, new)),
            "alike": value_or_hidden(figures.alike(atlas, rows)),
            "alike_note": Set(visible=True),
            "around_note": notice(""),
        }


def whole(value: Any) -> int:
    """A whole number as a control or a program gives it; nothing is 0. Raises TypeError, ValueError."""
    number = int(value or 0)
    if isinstance(value, bool) or number != (value or 0):
        raise ValueError(f"{value!r} is no whole number")
    return number


def place_of(value: Any) -> int:
    """A place in a list, or a step: `whole`, and not below 0."""
    if whole(value) < 0:
        raise ValueError(f"{value!r} is no place")
    return whole(value)


def first_word(words: Sequence[str]) -> int:
    """Index of the word whose map is shown first: a subject's own, or else the first that is no article."""
    order = [w for w, word in enumerate(words) if "*" in word] + [w for w, word in enumerate(words) if len(word) > 2]
    return order[0] if order else 0


def labelled(word: str, names: Sequence[str]) -> str:
    """A word of the prompt as people read it: “S2*” → “S2* (robot)”."""
    match = re.fullmatch(r"S(\d*)\*", word)
    k = int(match[1] or 1) if match else 0
    return f"{word} ({names[k - 1]})" if 0 < k <= len(names) else word
