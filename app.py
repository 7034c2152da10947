"""CustomContrast's page and its API: layout and wiring. `python app.py` starts it, `--help` names every option."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
spaces = importlib.import_module("spaces") if importlib.util.find_spec("spaces") else None  # before torch

import gradio as gr  # noqa: E402

from customcontrast import views  # noqa: E402
from customcontrast.desk import CONTROLS, SLOTS, Desk, Set, note, notice, said  # noqa: E402
from customcontrast.request import ADD, BOX, MAX_NOUN, MAX_PICTURES, MAX_STEPS, REMOVE  # noqa: E402
from customcontrast.studio import CHOICES, Studio, StudioConfig  # noqa: E402

EXAMPLES = Path(__file__).parent / "examples"
EDITS = {"scene": "Scene", "style": "Style", "shape": "Shape", "accessorisation": "Accessories"}
MODES = [("Add", ADD), ("Remove", REMOVE), ("Box", BOX)]
QUIET = {"api_visibility": "private", "show_progress": "hidden"}
VIEWERS = "viewers no_place strip step overlay branch word who map_step layers map recipe"
MORE = "grid plot film"
Handler = Callable[..., Any]
LIVELY = {"trigger_mode": "always_last", **QUIET}

CSS = """
.gradio-container {max-width: 1240px !important; width: 100% !important; margin: 0 auto !important}
.cc-line {align-items: center} .cc-line button {max-height: 2.4rem}
.cc-title h1 {font-size: 1.7rem; margin: .2rem 0 0; font-weight: 650; letter-spacing: -.01em}
.cc-title p {margin: .15rem 0 0; color: var(--body-text-color-subdued)}
.cc-step h2 {font-size: 1.05rem; margin: .3rem 0 0; font-weight: 650}
.cc-step b {display: inline-grid; place-items: center; width: 1.6em; height: 1.6em; margin-right: .5em;
  border-radius: 50%; background: var(--primary-700); color: white; font-size: .85em}
.cc-slot {border: 1px solid var(--border-color-primary); border-left: 3px solid var(--primary-600);
  border-radius: var(--radius-lg); padding: .6rem; gap: .6rem !important; background: var(--block-background-fill)}
.cc-mode .wrap {gap: .3rem !important; flex-wrap: nowrap} .cc-mode label {padding: .25rem .5rem !important}
.cc-note {padding: .5rem .75rem; border-radius: var(--radius-md); border-left: 3px solid var(--primary-600);
  background: var(--background-fill-secondary); line-height: 1.45; font-size: .92rem; overflow-wrap: anywhere}
.cc-note + .cc-note {margin-top: .35rem}
.cc-error {border-left-color: #dc2626} .cc-warn {border-left-color: #d97706} .cc-good {border-left-color: #16a34a}
.cc-progress {font-size: .92rem} .cc-progress progress {appearance: none; width: 100%; height: .5rem; border: 0;
  border-radius: 1rem; overflow: hidden; background: var(--border-color-primary)}
.cc-progress progress::-webkit-progress-bar {background: var(--border-color-primary)}
.cc-progress progress::-webkit-progress-value {background: var(--primary-600); transition: width .2s}
.cc-progress progress::-moz-progress-bar {background: var(--primary-600)}
.cc-info summary {cursor: pointer; display: inline-block; font-weight: 600; font-size: .92rem; padding: .3rem 0;
  list-style: none}
.cc-info summary::after {content: "i"; display: inline-grid; place-items: center; width: 1.35em; height: 1.35em;
  margin-left: .5em; border: 1px solid currentColor; border-radius: 50%; font: italic 600 .85em Georgia, serif}
.cc-info p {margin: 0 0 .4rem; font-size: .92rem; line-height: 1.5; max-width: 65ch;
  color: var(--body-text-color-subdued)}
.cc-picture img {object-fit: contain !important; width: 100% !important; height: 100% !important}
.cc-view img {object-fit: contain !important; width: 100%} .cc-cut img {cursor: crosshair}
#examples .grid-wrap {height: auto !important; max-height: none !important; min-height: 0 !important; padding: 0}
#examples .grid-container {grid-template-columns: repeat(auto-fill, minmax(64px, 1fr)) !important; padding: 2px;
  grid-auto-rows: auto !important}
#examples button.thumbnail-item {aspect-ratio: 1 / 1 !important; height: auto !important}
:focus-visible {outline: 2px solid var(--primary-600) !important; outline-offset: 2px}
@media (max-width: 640px) {.gradio-container {padding: .5rem !important}}
"""
TOGGLE = "() => { document.body.classList.toggle('dark'); }"
THEME = {
    "block_title_background_fill": "none", "block_title_padding": "0", "block_title_text_weight": "600",
    "block_title_text_color": "*body_text_color", "block_title_text_size": "*text_sm",
    "block_label_background_fill": "*background_fill_primary", "block_label_text_weight": "500",
    "block_label_text_color": "*body_text_color", "block_label_text_size": "*text_sm",
    "block_border_width": "1px", "block_border_width_dark": "1px", "block_shadow": "none",
    "button_secondary_border_color": "*neutral_300", "button_secondary_border_color_dark": "*neutral_600",
    "body_text_color_subdued": "*neutral_600", "body_text_color_subdued_dark": "*neutral_300",
    "block_info_text_color": "*neutral_600", "block_info_text_color_dark": "*neutral_300",
    "input_border_width": "1px", "input_shadow": "none", "input_border_color": "*neutral_300",
    "input_border_color_dark": "*neutral_600", "slider_color": "*primary_600",
    "button_primary_background_fill": "*primary_700", "button_primary_background_fill_hover": "*primary_800",
    "checkbox_label_background_fill_selected": "*primary_700", "checkbox_background_color_selected": "*primary_700",
}  # fmt: skip

STRIP = (
    "From left to right: your subject, where the model placed it at some of the steps, and the picture. "
    "White means that the subject is here; each mask steers the next step."
)
ATTENTION = (
    "Bright places listened to the chosen word, or took details from the subject's picture. "
    "It is the attention that really drew the picture, averaged over layers and heads."
)
RECIPE = (
    "Every setting of this run. The downloaded PNG carries it together with your cut-out, so that whoever has the "
    "file can load it here and make the same picture again."
)


class Picture(gr.Image):
    """gr.Image that hands over the visitor's file unread, so that every bad file is answered by our sentence."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        return payload.path if payload else None


class Page:
    """Components by name, and their events. What happens on an event is the desk's affair."""

    def __init__(self, shared: Studio) -> None:
        stream = spaces.GPU(duration=120)(shared.stream) if spaces else shared.stream
        self.desk = Desk(shared, EXAMPLES, self._folder, stream)
        self.c: dict[str, Any] = {}  # every component that takes part in an event

    def _folder(self) -> Path:
        """A new folder inside the page's cache, under a name that cannot be guessed."""
        folder = Path(self.c["gallery"].GRADIO_CACHE) / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder

    def build(self) -> gr.Blocks:
        with gr.Blocks(title="CustomContrast", delete_cache=(600, 3600), analytics_enabled=False) as demo:
            with gr.Row(elem_classes="cc-line"):
                gr.HTML(
                    "<h1>CustomContrast</h1><p>Show a picture of your subject, say what should happen to it, "
                    "and get new pictures of it.</p>",
                    elem_classes="cc-title",
                )
                gr.Button("Light / dark", size="sm", scale=0, min_width=110).click(None, js=TOGGLE, **QUIET)
            with gr.Row():
                with gr.Column(scale=5, min_width=320):
                    self._subjects()
                    self._settings()
                with gr.Column(scale=7, min_width=320):
                    self._prompt()
                    self._results()
            self._wire_subjects()
            self._wire_run()
            self._wire_viewers()
            self._api()
        return demo

    # ---- layout -------------------------------------------------------------------------------
    # fmt: off

    def _subjects(self) -> None:
        heading(1, "Your subject")
        self.c["count"] = gr.State(1)
        for k in SLOTS:
            self._slot(k)
        self.c["add"] = gr.Button("+ Another subject", size="sm", elem_id="add")
        present = bool(self.desk.examples)
        with gr.Accordion("Or take an example", open=present, visible=present):
            self.c["examples"] = gr.Gallery(
                [str(path) for path in self.desk.examples], label="Examples", show_label=False, columns=7,
                allow_preview=False, interactive=False, buttons=[], elem_id="examples")

    def _slot(self, k: int) -> None:
        c = self.c
        with gr.Column(visible=k == 1, elem_classes="cc-slot", elem_id=f"slot-{k}") as c[f"slot{k}"]:
            c[f"cut{k}"] = gr.State(None, time_to_live=3600)
            with gr.Row():
                c[f"upload{k}"] = Picture(
                    label=f"Subject {k}", sources=["upload", "clipboard", "webcam"], height=240, format="png",
                    buttons=[], min_width=140, elem_id=f"upload-{k}",
                    placeholder="Drop a picture here\nor click to choose one")
                c[f"cutout{k}"] = gr.Image(
                    label="Cut-out (click to fix)", interactive=False, height=240, format="png", min_width=140,
                    buttons=[], elem_id=f"cutout-{k}", elem_classes="cc-cut", alt_text="The subject, cut out")
            c[f"note{k}"] = gr.HTML(visible=False, elem_id=f"note-{k}")
            with gr.Row(elem_classes="cc-line"):
                c[f"mode{k}"] = gr.Radio(MODES, value=ADD, label="A click means", scale=3, min_width=290,
                                         elem_id=f"mode-{k}", elem_classes="cc-mode")
                c[f"undo{k}"] = gr.Button("Undo", size="sm", scale=1, min_width=60)
                c[f"reset{k}"] = gr.Button("Reset", size="sm", scale=1, min_width=60)
            with gr.Row():
                c[f"noun{k}"] = gr.Textbox(label="What is it?", value="", placeholder="one word, e.g. dog",
                                           min_width=120, max_length=MAX_NOUN, elem_id=f"noun-{k}")
                c[f"strength{k}"] = gr.Slider(0, 2, 1, step=0.05, label="Strength", min_width=140)
            c[f"remove{k}"] = gr.Button("Remove this subject", size="sm", visible=k > 1)

    def _settings(self) -> None:
        c, config = self.c, self.desk.studio.config
        choice = CHOICES[config.base]
        with gr.Row(elem_classes="cc-line"):
            c["seed"] = gr.Number(label="Seed", value=0, precision=0, min_width=110,
                                  elem_id="seed", info="The same seed gives the same picture.")
            c["dice"] = gr.Button("New seed", size="sm", min_width=110)
        with gr.Accordion("More settings", open=False):
            c["negative_prompt"] = gr.Textbox(label="Not in the picture", value="", placeholder="what to avoid")
            c["steps"] = gr.Slider(1, MAX_STEPS, choice.steps, step=1, label="Steps", elem_id="steps",
                                   info="More take longer and are finer.")
            c["guidance"] = gr.Slider(0, 20, choice.guidance, step=0.1, label="Guidance",
                                      info="How strictly the text is followed.")
            c["subject_scale"] = gr.Slider(0, 2, 1, step=0.05, label="Subject scale λ",
                                           info="How much of the subject's picture flows in.")
            c["pictures"] = gr.Slider(1, MAX_PICTURES, 1, step=1, label="Number of pictures",
                                      info="Each with a seed of its own.", elem_id="pictures")
            c["location_masks"] = gr.Checkbox(True, label="Location masks",
                                              info="Keep each subject to the place found for it, step by step.")
            present = [name for name in CHOICES if self.desk.studio.offers(name)]
            titles = [(CHOICES[name].title, name) for name in present]
            c["base"] = gr.Dropdown(titles, value=config.base, label="Model")
            gr.HTML("".join(note(
                f"{CHOICES[name].title} is not on this machine. Get it from the model hub as {CHOICES[name].hub}, then "
                f"start with --base {name} --weights FOLDER --adapter FILE.")
                for name in CHOICES if name not in present and CHOICES[name].hub))

    def _prompt(self) -> None:
        c = self.c
        heading(2, "What to draw")
        c["prompt"] = gr.Textbox(
            label="Prompt", value="", placeholder="a dog on the beach", lines=2, max_lines=6, elem_id="prompt",
            info="Name your subject with its word; everything else is up to you.")
        c["notes"] = gr.HTML(visible=False, elem_id="prompt-notes")
        with gr.Tabs():
            for kind, title in EDITS.items():
                presets = self.desk.presets[kind]
                with gr.Tab(title):
                    c[f"preset-{kind}"] = gr.Dataset(
                        components=[gr.Textbox(visible=False)], samples=[[p["prompt"]] for p in presets], type="index",
                        sample_labels=[p["label"] for p in presets], layout="gallery", samples_per_page=20,
                        label=f"Preset edits: {title}", show_label=False)
        with gr.Row():
            c["go"] = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
            c["stop"] = gr.Button("Stop", elem_id="stop", scale=1, interactive=False)
        c["status"] = gr.HTML(elem_id="status")

    def _results(self) -> None:
        c = self.c
        heading(3, "Your picture")
        c["shown"] = gr.State(None, time_to_live=3600)
        c["gallery"] = gr.Gallery(
            label="Pictures", columns=2, preview=True, height=430, object_fit="contain", interactive=False,
            format="png", buttons=["download", "fullscreen"], elem_id="pictures-out", elem_classes="cc-picture")
        c["recipe-file"] = gr.UploadButton("Load the recipe of a downloaded picture", file_types=[".png"], size="sm",
                                           elem_id="load-recipe")
        with gr.Column(visible=False, elem_id="viewers") as c["viewers"], gr.Tabs():
            with gr.Tab("Where"):
                info("Location masks over time", STRIP)
                c["no_place"] = gr.HTML(note("This picture has no subject, so none was placed."), visible=False)
                c["strip"] = view("Location masks over time", "strip")
                c["step"] = gr.Slider(1, 20, 20, step=1, label="Step", elem_id="step")
                c["overlay"] = view("The location mask of this step over the picture", "overlay")
                c["plot"] = view("Size and centre of each mask, step by step", "plot")
                c["film"] = gr.DownloadButton("Download all steps (GIF)", size="sm", elem_id="film")
            with gr.Tab("Words"):
                info("Attention over the picture", ATTENTION)
                c["branch"] = gr.Radio([("Words", "text"), ("Subject's picture", "visual")], value="text",
                                       label="Show the map of", elem_id="branch")
                c["word"] = gr.Radio([], label="Word", elem_id="word")
                c["who"] = gr.Radio([], label="Subject", visible=False, elem_id="who")
                with gr.Row():
                    c["map_step"] = gr.Slider(0, 20, 0, step=1, label="Step", info="0 = all steps together")
                    c["layers"] = gr.Dropdown([("all", "")], value="", label="Layers", info="by size")
                c["map"] = view("Attention over the picture", "map")
                c["grid"] = view("The maps of all words", "grid")
            with gr.Tab("Recipe"):
                info("The recipe of this picture", RECIPE)
                c["recipe"] = gr.JSON(show_label=False, label="Recipe", elem_id="recipe")

    # fmt: on
    # ---- events -------------------------------------------------------------------------------

    def _on(self, event: Handler, fn: Handler, inputs: str, outputs: str, place: str = "status", **kw: Any) -> Any:
        """Wire an event: the desk's `fn`, the names of its inputs and outputs, and where its errors are told."""
        names = dict.fromkeys([*outputs.split(), place])
        handler = self._handler(fn, place, chosen=kw.pop("chosen", False))
        options = {"api_visibility": "private", **kw}
        return event(handler, [self.c[n] for n in inputs.split()], [self.c[n] for n in names], **options)

    def _handler(self, fn: Callable[..., Any], place: str, chosen: bool) -> Callable[..., Any]:
        def answer(*args: Any) -> dict[Any, Any]:
            try:
                changes = fn(*args)
            except Exception as error:  # the last line before the visitor
                changes = {place: notice(said(error), "error")}
            return self._updates(changes) or {self.c[place]: gr.skip()}

        def answer_choice(event: gr.SelectData, *args: Any) -> dict[Any, Any]:
            return answer(event.index, *args)

        return answer_choice if chosen else answer

    def _updates(self, changes: dict[str, Any]) -> dict[Any, Any]:
        return {self.c[n]: gr.update(**value) if isinstance(value, Set) else value for n, value in changes.items()}

    def _wire_subjects(self) -> None:
        c, desk = self.c, self.desk
        rows = " ".join(f"upload{k} cut{k} noun{k} strength{k}" for k in SLOTS)
        everything = f"{rows} {each('cutout note slot')} count add"
        for k in SLOTS:
            here = f"cut{k} cutout{k} note{k} upload{k}"
            heavy = {"place": f"note{k}", "concurrency_id": "segment", "concurrency_limit": 2}
            heavy["show_progress_on"] = c[f"cutout{k}"]
            on = functools.partial(self._on, outputs=here, **heavy)
            on(c[f"upload{k}"].input, functools.partial(desk.upload, k), f"upload{k}")
            on(c[f"cutout{k}"].select, functools.partial(desk.click, k), f"cut{k} mode{k}", chosen=True)
            on(c[f"undo{k}"].click, functools.partial(desk.undo, k), f"cut{k}")
            on(c[f"reset{k}"].click, functools.partial(desk.reset, k), f"cut{k}")
            self._on(c[f"remove{k}"].click, functools.partial(desk.remove, k), f"count {rows}", everything, **QUIET)
        self._on(c["add"].click, desk.add, "count", f"count add {each('slot')}", **QUIET)
        self._on(c["examples"].select, desk.example, f"count {each('cut')}", everything, chosen=True, **QUIET)
        self._on(c["recipe-file"].upload, desk.load, "recipe-file", f"{everything} {' '.join(CONTROLS)}", **QUIET)

    def _wire_run(self) -> None:
        c, desk = self.c, self.desk
        for kind in EDITS:
            preset = functools.partial(desk.preset, kind)
            self._on(c[f"preset-{kind}"].click, preset, f"preset-{kind} {each('noun')}", "prompt", **QUIET)
        said_of = f"prompt base {each('noun')}"
        for name in said_of.split():
            self._on(c[name].change, desk.prompt_notes, said_of, "notes", "notes", queue=False, **LIVELY)
        self._on(c["dice"].click, desk.new_seed, "", "seed", queue=False, **QUIET)
        self._on(c["base"].input, desk.choose_base, "base", "steps guidance", **QUIET)

        def press(*values: Any) -> Iterator[dict[Any, Any]]:
            yield from map(self._updates, desk.generate(*values))

        inputs = f"{' '.join(CONTROLS)} {each('cut')} {each('noun')} {each('strength')}"
        run = c["go"].click(
            press, [c[n] for n in inputs.split()], [c[n] for n in ("status", "gallery", "shown", "stop")],
            concurrency_id="model", concurrency_limit=1, show_progress_on=c["gallery"], api_visibility="private",
        )  # fmt: skip
        shown = self._on(run.success, desk.show, "shown", VIEWERS, **QUIET)
        self._on(shown.success, desk.show_more, "shown", MORE, **QUIET)
        c["stop"].click(None, cancels=[run], **QUIET)
        self._on(c["stop"].click, desk.stop, "", "stop", queue=False, **QUIET)

    def _wire_viewers(self) -> None:
        c, desk = self.c, self.desk
        self._on(c["gallery"].select, desk.pick, "shown", f"shown {VIEWERS} {MORE}", chosen=True, **QUIET)
        self._on(c["step"].input, desk.step, "shown step", "overlay", **LIVELY)
        for name in ("branch", "word", "who", "map_step", "layers"):
            self._on(c[name].input, desk.map, "shown branch word who map_step layers", "word who map", **LIVELY)

    # ---- API ----------------------------------------------------------------------------------

    def _api(self) -> None:
        """Named endpoints. A client keeps its session, so /maps speaks of that client's last /generate."""
        c = self.c
        with gr.Column(visible=False):
            call = gr.Button().click
            image, points, facts = Picture(label="image"), gr.JSON(label="points"), gr.JSON(label="facts")
            cutout = gr.Image(label="cutout", format="png", image_mode="RGBA")
            mask = gr.Image(label="mask", format="png")
            one = {"concurrency_limit": 1, "concurrency_id": "model"}
            call(self.segment, [image, points], [cutout, mask, facts], api_name="segment", concurrency_id="segment")
            references = gr.File(label="references", file_count="multiple", type="filepath")
            nouns, word = gr.Textbox("", label="nouns"), gr.Textbox(label="word")
            files, strip = gr.File(label="pictures", file_count="multiple"), gr.Image(label="strip", format="png")
            outputs = [files, strip, c["recipe"], c["shown"]]
            defaults = (20, 4.0, 1.0, 0, 1)  # limits are the studio's affair, so that its sentences are heard
            texts = [gr.Textbox(""), gr.Textbox("")]
            numbers = [gr.Number(v, precision=0 if isinstance(v, int) else None) for v in defaults]
            controls = [*texts, *numbers, gr.Checkbox(True), gr.Textbox(self.desk.studio.config.base)]
            call(self.generate, [references, nouns, *controls], outputs, api_name="generate", **one)
            index, map_ = gr.Number(0, label="picture", precision=0), gr.Image(label="map", format="png")
            step = gr.Number(0, label="step", precision=0)
            call(self.maps, [c["shown"], word, step, index], [map_, facts], api_name="maps")

    def segment(self, image: str | None, points: list[list[int]] | None = None) -> tuple[Any, Any, dict[str, Any]]:
        """Cut the subject out of a picture.

        Args:
            image: the picture file.
            points: optional corrections [[x, y, label], …] in pixels of the returned mask; label 1 adds, 0 removes.

        Returns:
            The subject with a transparent ground, its mask in black and white, and {box, score, method}.
        """
        with api_errors():
            found = self.desk.found(image, points)
            facts = {"box": found.box, "score": found.score, "method": found.method}
            return found.cutout, views.mask_image(found), facts

    def generate(
        self,
        references: list[str] | None = None,
        nouns: str = "",
        prompt: str = "",
        negative_prompt: str = "",
        steps: int = 20,
        guidance: float = 4.0,
        subject_scale: float = 1.0,
        seed: int = 0,
        pictures: int = 1,
        location_masks: bool = True,
        base: str = "toyland",
    ) -> tuple[Any, ...]:
        """Make new pictures of the subjects.

        Args:
            references: one picture file for each subject, at most four; none for text alone.
            nouns: the subjects' words, separated by commas, in the same order.
            prompt: what to draw; it names each subject with its word.
            negative_prompt: what to avoid.
            steps: denoising steps, 1 to 100.
            guidance: how strictly the text is followed, 0 to 30.
            subject_scale: how much of the subject's picture flows in (λ), 0 to 5.
            seed: the same seed gives the same picture.
            pictures: how many, 1 to 4.
            location_masks: keep each subject to the place found for it, step by step.
            base: the model.

        Returns:
            PNG files that carry their recipe, the strip of location masks, and the recipe.
        """
        with api_errors():
            values = (prompt, negative_prompt, steps, guidance, subject_scale, seed, pictures, location_masks, base)
            shown = self.desk.run(references or [], nouns, **dict(zip(CONTROLS, values, strict=True)))
            files = self.desk.save(shown.request, shown.result)
            return files, views.strip(shown.result, 0, shown.references), shown.settings, shown

    def maps(self, shown: Any, word: str, step: int = 0, picture: int = 0) -> tuple[Any, dict[str, Any]]:
        """Where a word, or a subject's picture, acted in the last picture of this session.

        Args:
            word: a word of the prompt; S*, S1*, … for a subject's own tokens; visual:1, visual:2, … for its picture.
            step: a denoising step from 1, or 0 for the mean over all of them.
            picture: which picture of the last request, from 0.

        Returns:
            The map in colour over the picture, and {map: rows of values, words: all words there are}.
        """
        with api_errors():
            return self.desk.named_map(shown, word, int(step), int(picture))


def each(names: str) -> str:
    """Names of a slot's components → those of all slots."""
    return " ".join(f"{name}{k}" for k in SLOTS for name in names.split())


def heading(number: int, text: str) -> gr.HTML:
    return gr.HTML(f"<h2><b>{number}</b>{text}</h2>", elem_classes="cc-step")


def info(title: str, text: str) -> gr.HTML:
    """A title with an (i) that opens an explanation."""
    return gr.HTML(f'<details class="cc-info"><summary>{title}</summary><p>{text}</p></details>')


def view(label: str, name: str) -> gr.Image:
    """A picture to look at and to download."""
    options = {"interactive": False, "format": "png", "buttons": ["download", "fullscreen"], "elem_classes": "cc-view"}
    return gr.Image(label=label, show_label=False, elem_id=name, alt_text=label, **options)


@contextlib.contextmanager
def api_errors() -> Iterator[None]:
    """Errors of an endpoint as one sentence for the client."""
    try:
        yield
    except Exception as error:
        raise gr.Error(said(error), print_exception=False) from None


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; every option may also be given in the environment, as CUSTOMCONTRAST_NAME."""

    def env(name: str, default: str | None = None) -> str | None:
        return os.environ.get(f"CUSTOMCONTRAST_{name.upper()}") or default

    parser = argparse.ArgumentParser(prog="app.py", description="CustomContrast's page and its API.")
    parser.add_argument("--base", choices=list(CHOICES), default=env("base", "toyland"), help="base model")
    parser.add_argument("--weights", default=env("weights"), help="folder of the base model's weights")
    parser.add_argument("--adapter", default=env("adapter"), help="adapter.safetensors to use with it")
    parser.add_argument("--sam-checkpoint", default=env("sam_checkpoint"), help="segment-anything weights for clicks")
    parser.add_argument("--device", default=env("device"), help="cpu or cuda (the best one present)")
    parser.add_argument("--host", default=env("host", "127.0.0.1"), help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=env("port", "7860"), help="port (%(default)s)")
    parser.add_argument("--queue-size", type=int, default=env("queue_size", "32"), help="how many may wait")
    share = (env("share") or "").lower() in ("1", "true", "yes")
    parser.add_argument("--share", action="store_true", default=share, help="also open a public link")
    chosen = parser.parse_args(arguments)
    for name in ("weights", "adapter", "sam_checkpoint"):
        path = getattr(chosen, name)
        if path and not Path(path).exists() and (name != "weights" or path.startswith((".", "/"))):
            parser.error(f"--{name.replace('_', '-')}: there is nothing at {path!r}; check the path.")
    return chosen


def launch(chosen: argparse.Namespace, block: bool = True) -> tuple[gr.Blocks, str]:
    """Start the server; the model is loaded while the page already answers. Returns the app and its address."""
    config = StudioConfig(chosen.base, chosen.weights, chosen.adapter, chosen.sam_checkpoint, chosen.device)
    shared = Studio(config)
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    hues = {"primary_hue": "teal", "secondary_hue": "teal", "neutral_hue": "slate"}
    theme = gr.themes.Soft(**hues, font=fonts, font_mono=["ui-monospace", "Consolas", "monospace"]).set(**THEME)
    demo = Page(shared).build()
    demo.queue(max_size=chosen.queue_size, default_concurrency_limit=4)
    _, url, _ = demo.launch(
        server_name=chosen.host, server_port=chosen.port, share=chosen.share, prevent_thread_lock=True, quiet=not block,
        theme=theme, css=CSS, max_file_size="32mb", show_error=False, footer_links=["api"], run_history=False,
        allowed_paths=[str(EXAMPLES)], state_session_capacity=256, ssr_mode=False,
    )  # fmt: skip
    shared.start()
    if block:
        demo.block_thread()
    return demo, url


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    launch(options())
