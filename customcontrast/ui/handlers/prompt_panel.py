"""What a visitor does with the prompt and the settings: presets, words of subjects, notes, model, seed, surprise."""

from __future__ import annotations

import contextlib
import json
import random
import secrets
from collections.abc import Sequence
from pathlib import Path

from customcontrast.config import LIMITS
from customcontrast.errors import RequestError
from customcontrast.specs import BASES
from customcontrast.ui.handlers.forms import AS_INPUT, SubjectForm
from customcontrast.ui.handlers.messages import Changes, Set, note, notice
from customcontrast.ui.handlers.style_panel import StylePanel
from customcontrast.ui.handlers.subject_panel import SLOTS, SubjectPanel
from customcontrast.ui.handlers.viewers import RunView
from customcontrast.ui.service.phrases import fill, noun_from_name, with_article
from customcontrast.ui.service.prompt_hints import prompt_hints
from customcontrast.ui.service.service import Service

PATIENCE = 30.0  # seconds that notes about a prompt wait for the model
SHARES = (0.25, 0.5, 1.5, 2)  # of the image encoder's own side: reference resolutions that are offered
MAX_SEED = int(LIMITS["seed"].public_high)


class PromptPanel:
    """Handlers of the prompt and the settings. examples: a folder with prompts.json, the preset edits."""

    def __init__(self, service: Service, subjects: SubjectPanel, style: StylePanel, examples: Path) -> None:
        self.service = service
        self.subjects = subjects
        self.style = style
        self.presets: dict[str, list[dict[str, str]]] = json.loads((examples / "prompts.json").read_text("utf-8"))

    def preset(self, kind: str, index: int, nouns: Sequence[str | None]) -> Changes:
        """One of the preset edits, with the visitor's subjects in it."""
        return {"prompt": fill(self.presets[kind][index]["prompt"], _words(nouns))}

    def notes(self, prompt: str, base: str, nouns: Sequence[str | None]) -> Changes:
        """What is worth saying about the prompt before it is used; just after the start, once the model is there."""
        models = self.service.models
        if not models.ready(base):
            with contextlib.suppress(TimeoutError, RequestError):
                models.model(base, timeout=PATIENCE)
        return {"notes": notice(prompt_hints(models, prompt, _words(nouns), base) if prompt.strip() else [])}

    def chip(self, k: int, prompt: str, noun: str) -> Changes:
        """Put the word of subject k at the end of the prompt, marked as a subject."""
        if not (noun or "").strip():
            return {"notes": notice(f"Say what subject {k} is first.")}
        prompt = (prompt or "").rstrip()
        return {"prompt": f"{prompt} {'and ' if prompt else ''}{with_article(noun.strip())}".strip()}

    def chips(self, nouns: Sequence[str | None]) -> Changes:
        """A button for each subject that has a word."""
        words = [(noun or "").strip() for noun in nouns]
        shown = {k: Set(value=f"+ {word}", visible=bool(word)) for k, word in zip(SLOTS, words, strict=True)}
        return {"chip_row": Set(visible=any(words)), "chips": shown}

    def choose_base(self, base: str) -> Changes:
        """Another base model: it begins to load, and its defaults apply."""
        if base not in BASES or not self.service.models.offers(base):
            return {"base": self.service.config.base, "base_note": notice(self.service.models.missing(base))}
        self.service.models.start(base)
        spec = BASES[base]
        return {
            "steps": spec.steps,
            "guidance": spec.guidance,
            "subject_guidance_end": spec.subject_guidance_end,
            "scheduler": "",
            "subject_scale": self.service.models.default_scale(base),
            "size": Set(choices=self.sizes(base), value=""),
            "resolution": Set(choices=self.resolutions(base), value=""),
            "base_note": notice(""),
            **self.base_changes(base),
        }

    def base_changes(self, base: str) -> Changes:
        """What the page shows for this base alone: controls of the view, style picture, and what it can draw."""
        shown = Set(visible=self.service.models.takes_layout(base))
        return {
            "view": shown,
            "views": dict.fromkeys(SLOTS, shown),
            "turntable": shown,
            "about": self.about(base),
            "style": self.style.shown(base),
            **self.memory(base),
        }

    def memory(self, base: str) -> Changes:
        """How the model is kept in memory, once it is loaded; why it could not be, where it failed."""
        models = self.service.models
        failed = models.failure(base)
        return {"memory": notice(failed, "error") if failed else notice(models.about_memory(base), "")}

    def sizes(self, base: str) -> list[tuple[str, str]]:
        """Sizes that suit a base: what is shown → value."""
        own = [("as the model was trained", "")]
        like = ("the shape of my picture", AS_INPUT)
        return [*own, like, *((size.replace("x", " × "), size) for size in BASES[base].sizes)]

    def resolutions(self, base: str) -> list[tuple[str, str]]:
        """Reference resolutions that suit a base: what is shown → value."""
        own = self.service.models.image_side(base)
        bounds = LIMITS["reference_resolution"]
        sides = [side for s in SHARES if bounds.public_low <= (side := round(own * s)) <= bounds.public_high]
        return [(f"the image encoder's own: {own} px", ""), *((f"{side} px", str(side)) for side in sides)]

    def about(self, base: str) -> str:
        """One honest sentence on what a base can draw, as HTML."""
        spec = BASES[base]
        if not spec.kinds:
            return note(f"{spec.title} draws what its training pictures showed: nearly anything a word names.", "plain")
        kinds = _listed([f"{kind}s" for kind in spec.kinds])
        places = _listed([preset["label"].lower() for preset in self.presets["scene"]])
        styles = _listed(["photo", *(preset["label"].lower() for preset in self.presets["style"])])
        larger = " or ".join(other.title for other in BASES.values() if not other.kinds)
        return note(
            f"The small model on this page draws {kinds}; places: {places}; styles: {styles}. "
            f"For anything else, choose {larger} as the model in the settings, which say how to get it.",
            "plain",
        )

    def new_seed(self) -> Changes:
        """Another seed."""
        return {"seed": secrets.randbelow(MAX_SEED)}

    def reuse_seed(self, run: RunView | None) -> Changes:
        """The seed of the picture on view."""
        if run is None:
            return {"status": note("Generate a picture first; then its seed can be used again.")}
        return {"seed": min(run.request.seed + run.index, MAX_SEED)}

    def surprise(self) -> Changes:
        """A subject of ours, a preset edit and a seed, by chance."""
        path = random.choice(self.subjects.examples)
        preset = random.choice(random.choice(list(self.presets.values())))
        changes = self.subjects.filled([SubjectForm()], 1)
        changes["slots"][1] |= self.subjects.slot_of_file(path)
        changes["style"] = {"picture": None, "upload": None}
        return {**changes, "prompt": fill(preset["prompt"], [noun_from_name(path)]), **self.new_seed()}


def _words(nouns: Sequence[str | None]) -> list[str]:
    return [noun.strip() for noun in nouns if noun and noun.strip()]


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + f" and {words[-1]}"
