"""The components of every section, as dataclasses; how they are laid out and wired is in the section's own file.

A handler's changes are keyed by the names of these fields, and inputs are given as these structures (`wiring`).
"""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from customcontrast.ui.components import Picture, UploadButton
from customcontrast.ui.handlers.forms import SETTINGS, GenerationForm, StyleForm, SubjectForm
from customcontrast.ui.wiring import Form, Structure


@dataclass(frozen=True)
class WhereTab:
    """Components of the tab."""

    no_place: gr.HTML
    strip: gr.Image
    running: gr.State
    clock: gr.Timer
    play: gr.Button
    step: gr.Slider
    overlay_note: gr.HTML
    overlay: gr.Image
    plot_note: gr.HTML
    plot: gr.Image
    make_film: gr.Button
    film: gr.DownloadButton
    video: gr.DownloadButton


@dataclass(frozen=True)
class WordsTab:
    """Components of the tab."""

    branch: gr.Radio
    word: gr.Radio
    who: gr.Radio
    map_step: gr.Slider
    layers: gr.Dropdown
    map: gr.Image
    looked_note: gr.HTML
    looked: gr.Image
    grid: gr.Image


@dataclass(frozen=True)
class Axis:
    """One parameter of the grid, and its values."""

    parameter: gr.Dropdown
    values: gr.Textbox


@dataclass(frozen=True)
class CompareTab:
    """Components of the tab."""

    compared: gr.State
    compare: gr.Button
    stop: gr.Button
    status: gr.HTML
    sides: gr.Row
    left: gr.Dropdown
    right: gr.Dropdown
    slider: gr.ImageSlider
    sheet: gr.Image
    columns: Axis
    rows: Axis
    make_grid: gr.Button
    grid_stop: gr.Button
    grid_status: gr.HTML
    made_grid: gr.Image


@dataclass(frozen=True)
class FeaturesTab:
    """Components of the tab."""

    tab: gr.Tab
    around_note: gr.HTML
    around: gr.Image
    alike_note: gr.HTML
    alike: gr.Image


@dataclass(frozen=True)
class ResultsSection:
    """Components of the results."""

    run: gr.State  # RunView on view
    gallery: gr.Gallery
    recipe_file: UploadButton
    history_box: gr.Column
    history: gr.Gallery
    past: gr.State  # what the history shows
    viewers: gr.Column
    hover: gr.HTML
    explained: gr.HTML
    where: WhereTab
    words: WordsTab
    compare: CompareTab
    features: FeaturesTab
    recipe: gr.JSON

    @property
    def shown(self) -> dict[str, Structure]:
        """What a run fills in: see `Viewers.show`."""
        mine = {name: getattr(self, name) for name in ("run", "viewers", "hover", "explained", "recipe")}
        tabs = [vars(self.where), vars(self.words), {k: v for k, v in vars(self.features).items() if k != "tab"}]
        return mine | {name: part for tab in tabs for name, part in tab.items() if not isinstance(part, gr.State)}


@dataclass(frozen=True)
class PromptSection:
    """Components of the prompt."""

    prompt: gr.Textbox
    chip_row: gr.Row
    chips: dict[int, gr.Button]  # the words of the subjects
    notes: gr.HTML
    presets: dict[str, gr.Dataset]
    generate: gr.Button
    stop: gr.Button
    status: gr.HTML


@dataclass(frozen=True)
class SettingsSection:
    """Components of the settings; those with a name of `forms.SETTINGS` are read by a run."""

    seed: gr.Number
    dice: gr.Button
    reuse: gr.Button
    guidance: gr.Slider
    subject_scale: gr.Slider
    pictures: gr.Slider
    view: gr.Row
    camera: gr.Dropdown
    negative_prompt: gr.Textbox
    steps: gr.Slider
    subject_start: gr.Slider
    subject_end: gr.Slider
    subject_guidance_end: gr.Slider
    size: gr.Dropdown
    scheduler: gr.Dropdown
    resolution: gr.Dropdown
    location_masks: gr.Checkbox
    text_tokens: gr.Checkbox
    apart: gr.Checkbox
    base: gr.Dropdown
    base_note: gr.HTML
    memory: gr.HTML  # how the model is kept in memory, or why it could not be loaded


@dataclass(frozen=True)
class ShowcaseSection:
    """Components of the showcase."""

    about: gr.HTML  # what the base can draw
    cards: gr.HTML  # finished examples; its event `card` tells which was chosen
    surprise: gr.Button


@dataclass(frozen=True)
class SubjectSlot:
    """Components of one subject."""

    box: gr.Column
    cut: gr.State  # CutOut in hand
    others: gr.State  # further CutOuts
    upload: Picture
    cutout: gr.Image
    note: gr.HTML
    mode: gr.Radio
    undo: gr.Button
    reset: gr.Button
    crop: gr.Button
    face: gr.Button
    brushing: gr.Accordion
    brush: gr.HTML
    noun: gr.Textbox
    guessed: gr.Textbox
    strength: gr.Slider
    placing: gr.Accordion
    place: gr.Radio
    frame: gr.HTML
    area: gr.Textbox
    view: gr.Row
    turn: gr.Dropdown
    pose: gr.Dropdown
    album: gr.Gallery
    another: gr.Button
    remove: gr.Button

    @property
    def form(self) -> Form:
        """What a run reads."""
        fields = SubjectForm.__dataclass_fields__
        return Form(SubjectForm, {name: getattr(self, name) for name in fields})


@dataclass(frozen=True)
class StyleSlot:
    """Components of the style picture."""

    box: gr.Column
    picture: gr.State  # as it was loaded
    upload: Picture
    role: gr.Radio
    strength: gr.Slider
    note: gr.HTML

    @property
    def form(self) -> Form:
        """What a run reads."""
        return Form(StyleForm, {name: getattr(self, name) for name in ("picture", "strength", "role")})


@dataclass(frozen=True)
class SubjectsSection:
    """Components of all subjects, and of the style picture beside them."""

    count: gr.State
    slots: dict[int, SubjectSlot]
    add: gr.Button
    style: StyleSlot
    examples: gr.Gallery

    @property
    def forms(self) -> list[Form]:
        """What a run reads of each slot."""
        return [slot.form for slot in self.slots.values()]

    @property
    def nouns(self) -> list[gr.Textbox]:
        """The words of all slots."""
        return [slot.noun for slot in self.slots.values()]


@dataclass(frozen=True)
class TurntableSection:
    """Components of “Turn it around”."""

    box: gr.Accordion
    turn: gr.Button
    stop: gr.Button
    status: gr.HTML
    turn_sheet: gr.Image
    turn_film: gr.Image
    turn_gif: gr.DownloadButton


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
        settings = {
            name: getattr(self.settings, name) for name in (*SETTINGS, "camera", "resolution") if name != "prompt"
        }
        return {"prompt": self.prompt.prompt, **settings}

    @property
    def form(self) -> Form:
        """All that a run needs."""
        return Form(GenerationForm, {**self.controls, "subjects": self.subjects.forms, "style": self.style.form})

    @property
    def style(self) -> StyleSlot:
        """The slot of the style picture."""
        return self.subjects.style

    @property
    def by_base(self) -> dict[str, Structure]:
        """What another base changes: see `PromptPanel.base_changes`."""
        return {
            "view": self.settings.view,
            "views": {k: slot.view for k, slot in self.subjects.slots.items()},
            "turntable": self.turntable.box,
            "about": self.showcase.about,
            "style": self.style,
            "memory": self.settings.memory,
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
