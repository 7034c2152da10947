"""The sections of the page: layout and wiring of each side by side in its file; here what holds them together."""

from __future__ import annotations

from dataclasses import dataclass

from customcontrast.ui.handlers.forms import SETTINGS, GenerationForm
from customcontrast.ui.sections.picture_results import ResultsSection
from customcontrast.ui.sections.prompt_box import PromptSection
from customcontrast.ui.sections.settings_panel import SettingsSection
from customcontrast.ui.sections.showcase import ShowcaseSection
from customcontrast.ui.sections.subject_slots import SubjectsSection
from customcontrast.ui.sections.turntable_panel import TurntableSection
from customcontrast.ui.wiring import Form, Structure


@dataclass(frozen=True)
class Sections:
    """Every section of the page."""

    showcase: ShowcaseSection
    subjects: SubjectsSection
    settings: SettingsSection
    prompt: PromptSection
    results: ResultsSection
    turntable: TurntableSection

    @property
    def controls(self) -> dict[str, Structure]:
        """The controls of a run beside the subjects' slots, by the names of `GenerationForm`."""
        settings = {name: getattr(self.settings, name) for name in (*SETTINGS, "camera") if name != "prompt"}
        return {"prompt": self.prompt.prompt, **settings}

    @property
    def form(self) -> Form:
        """All that a run needs."""
        return Form(GenerationForm, {**self.controls, "subjects": self.subjects.forms})

    @property
    def by_base(self) -> dict[str, Structure]:
        """What another base changes: see `PromptPanel.base_changes`."""
        return {
            "view": self.settings.view,
            "views": {k: slot.view for k, slot in self.subjects.slots.items()},
            "turntable": self.turntable.box,
            "about": self.showcase.about,
        }

    @property
    def everything(self) -> dict[str, Structure]:
        """What a recipe fills in: see `Replay`."""
        return {
            **self.controls,
            **self.by_base,
            "slots": self.subjects.slots,
            "count": self.subjects.count,
            "add": self.subjects.add,
            "gallery": self.results.gallery,
            "run": self.results.run,
            "viewers": self.results.viewers,
            "status": self.prompt.status,
        }
