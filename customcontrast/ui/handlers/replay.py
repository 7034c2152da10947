"""Recipes: a PNG that carries one goes back into every control, and is shown where it is a finished picture of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from customcontrast.errors import RecipeError
from customcontrast.specs import BASES
from customcontrast.ui.handlers.forms import SETTINGS, SubjectForm
from customcontrast.ui.handlers.messages import Changes, Set, note
from customcontrast.ui.handlers.prompt_panel import PromptPanel
from customcontrast.ui.handlers.style_panel import LEFT_OUT, StylePanel
from customcontrast.ui.handlers.subject_panel import SubjectPanel
from customcontrast.ui.handlers.viewers import RunView
from customcontrast.ui.service import figures
from customcontrast.ui.service.recipe import read_png
from customcontrast.ui.service.request import request_from
from customcontrast.ui.service.service import Service

LOADED = "The recipe is loaded: press Generate to make the same picture again."
SHOWN = "This is a finished picture, with all its settings. Press Generate to make it again and to see its maps."
MAX_PAST = 12  # pictures that the history of a session keeps
CARD = 112  # px, side of a picture on an example's card
THUMB = 96  # px, side of a picture of the history


@dataclass(frozen=True)
class Past:
    """One run of this session, as the history keeps it."""

    path: str  # PNG with its recipe
    thumb: Image.Image
    caption: str


class Replay:
    """Handlers of recipes, finished examples and the session's history. gallery: a folder of PNGs with recipes."""

    def __init__(
        self, service: Service, subjects: SubjectPanel, style: StylePanel, prompt: PromptPanel, gallery: Path
    ) -> None:
        self.service, self.subjects, self.style, self.prompt = service, subjects, style, prompt
        self.finished = tuple(path for path in sorted(gallery.glob("*.png")) if self._usable(path))

    def _usable(self, path: Path) -> bool:
        """Whether an example can be made again on this server."""
        try:
            base = read_png(path)[0].get("base")
        except RecipeError:
            return False
        return isinstance(base, str | None) and (base is None or self.service.models.offers(base))

    def cards(self) -> list[dict[str, str]]:
        """What the page shows of each finished example: its prompt, and pictures of subject and result."""
        cards = []
        for path in self.finished:
            settings, references = read_png(path)
            given = [figures.data_url(subject[0].on_plain(size=CARD)) for subject in references]
            with Image.open(path) as picture:
                made = picture.convert("RGB")
            made.thumbnail((2 * CARD, 2 * CARD))
            cards.append({"prompt": settings["prompt"], "given": given, "made": figures.data_url(made)})
        return cards

    def load(self, path: str | Path) -> Changes:
        """Put the recipe of a PNG into every control. Raises RecipeError, RequestError."""
        settings, references = read_png(path)
        request = request_from(settings, references)
        values = {name: getattr(request, name) for name in SETTINGS if getattr(request, name) is not None}
        values["camera"] = "" if request.elevation is None else f"{request.elevation:g}"
        side = request.reference_resolution
        values["resolution"] = "" if side is None else str(side)
        status = note(LOADED, "good")
        if request.base is not None and not self.service.models.offers(request.base):
            del values["base"]
            status = note(f"The model of this recipe, “{request.base}”, is not on this machine.", "error")
        elif request.base is not None:
            self.service.models.start(request.base)
            values["size"] = Set(choices=self.prompt.sizes(request.base), value=request.size)
            values["resolution"] = Set(choices=self.prompt.resolutions(request.base), value=values["resolution"])
            values |= self.prompt.base_changes(request.base)
        base = values.get("base")  # None: the one on the page, which is the server's in a recipe without a base
        values.setdefault("subject_scale", self.service.models.default_scale(base))
        values.setdefault("subject_guidance_end", BASES[base or self.service.config.base].subject_guidance_end)
        filled = self.subjects.filled([SubjectForm.of(subject) for subject in request.subjects])
        if request.style is not None and not self.service.models.has_ip_adapter(base):
            status += note(LEFT_OUT, "warn")
        return {**values, **filled, "style": self.style.filled(request.style, base), "status": status}

    def show(self, path: str | Path) -> Changes:
        """`load`, with the picture itself on view; its maps come with the next run."""
        changes = self.load(path)
        changes["status"] = changes["status"].replace(note(LOADED, "good"), note(SHOWN, "good"))
        gallery = Set(value=[str(path)], selected_index=0)
        return {**changes, "gallery": gallery, "run": None, "viewers": Set(visible=False)}

    def example(self, index: int) -> Changes:
        """One of the finished examples."""
        return self.show(self.finished[index]) if index in range(len(self.finished)) else {}

    def remember(self, run: RunView | None, past: Sequence[Past] | None) -> Changes:
        """A run has ended: its first picture that was not withheld goes into the history of this session, once."""
        shown = [i for i in range(len(run.files)) if not any(run.result.flagged[i : i + 1])] if run is not None else []
        if run is None or not shown or (past and past[0].path == run.files[shown[0]]):
            return {}
        thumb = run.result.images[shown[0]].copy()
        thumb.thumbnail((THUMB, THUMB))
        caption = f"{run.request.prompt} (seed {run.request.seed})"
        kept = (Past(run.files[shown[0]], thumb, caption), *(past or ()))[:MAX_PAST]
        pictures = [(one.thumb, one.caption) for one in kept]
        return {"past": kept, "history": Set(value=pictures, selected_index=None), "history_box": Set(visible=True)}

    def back(self, index: int, past: Sequence[Past]) -> Changes:
        """A run of the history, with its picture and every setting."""
        if index not in range(len(past or ())):
            return {}
        path = Path(past[index].path)
        if not path.is_file():
            raise RecipeError("This picture was deleted from the server after an hour; generate it again.")
        return self.show(path)
