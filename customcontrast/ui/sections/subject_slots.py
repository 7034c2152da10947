"""Layout of the left side: the subjects with their pictures, the seed and all settings."""

from __future__ import annotations

from typing import Any

import gradio as gr

from customcontrast.ui.handlers.generation import SLOTS, Desk, note
from customcontrast.ui.handlers.subject_panel import PLACE_TITLES, place_title
from customcontrast.ui.sections import pads
from customcontrast.ui.service import figures
from customcontrast.ui.service.request import ADD, BOX, MAX_NOUN, MAX_PICTURES, MAX_STEPS, REMOVE, SCHEDULER_TITLES
from customcontrast.ui.service.service import CHOICES
from customcontrast.ui.theme import Picture, heading

PAINT = (
    "Paint over what belongs to your subject; with “Remove” chosen above, over what does not. Undo takes a stroke back."
)
PLACE = (
    "Automatic: the model finds the place while it draws. A place that you give is kept from the first step on. "
    "Anywhere: nothing keeps the subject to a place."
)
MODES = [("Add", ADD), ("Remove", REMOVE), ("Box", BOX)]


def subjects(c: dict[str, Any], desk: Desk) -> None:
    """Slots, the button for one more, and the examples, into `c`."""
    heading(1, "Your subject")
    c["count"] = gr.State(1)
    for k in SLOTS:
        slot(c, k)
    c["add"] = gr.Button("+ Another subject", size="sm", elem_id="add")
    present = bool(desk.examples)
    with gr.Accordion("Or take an example", open=present, visible=present):
        c["examples"] = gr.Gallery(
            [(str(path), f"Example: {path.stem}") for path in desk.examples],
            label="Examples", show_label=False, columns=7, allow_preview=False, interactive=False, buttons=[],
            elem_id="examples")  # fmt: skip


# fmt: off
def slot(c: dict[str, Any], k: int) -> None:
    """One subject: its pictures, its cut-out, its word and its strength."""
    with gr.Column(visible=k == 1, elem_classes="cc-slot", elem_id=f"slot-{k}") as c[f"slot{k}"]:
        c[f"cut{k}"] = gr.State(None, time_to_live=3600)
        c[f"rest{k}"] = gr.State((), time_to_live=3600)
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
            c[f"mode{k}"] = gr.Radio(MODES, value=ADD, label="A click or stroke means", scale=3, min_width=290,
                                     elem_id=f"mode-{k}", elem_classes="cc-mode")
            c[f"undo{k}"] = gr.Button("Undo", size="sm", scale=1, min_width=60)
            c[f"reset{k}"] = gr.Button("Reset", size="sm", scale=1, min_width=60)
        with gr.Accordion("Brush", open=False, elem_id=f"brushing-{k}", elem_classes="cc-fold"):
            gr.HTML(f'<p class="cc-hint">{PAINT}</p>')
            c[f"brush{k}"] = pads.brush(k)
        with gr.Row():
            c[f"noun{k}"] = gr.Textbox(label="What is it?", value="", placeholder="one word, e.g. dog",
                                       min_width=120, max_length=MAX_NOUN, elem_id=f"noun-{k}")
            c[f"strength{k}"] = gr.Slider(0, 2, 1, step=0.05, label="Strength", min_width=140)
        with gr.Accordion(place_title(""), open=False, elem_id=f"placing-{k}", elem_classes="cc-fold") as folded:
            c[f"placing{k}"] = folded
            gr.HTML(f'<p class="cc-hint">{PLACE}</p>')
            c[f"place{k}"] = gr.Radio([(title, key) for key, title in PLACE_TITLES.items()], value="",
                                      label=f"Place of subject {k}", elem_id=f"place-{k}", elem_classes="cc-places")
            with gr.Row(elem_classes="cc-line"):
                c[f"frame{k}"] = pads.frame(k, figures.place_frame(""))
                c[f"area{k}"] = gr.Textbox("", label="Its box: left, top, right, bottom in %", visible=False,
                                           info="Or draw it into the frame.", elem_id=f"area-{k}", min_width=120)
        c[f"others{k}"] = gr.Gallery(
            label="Its other pictures (click one to see or change it)", columns=4, allow_preview=False,
            interactive=False, buttons=[], visible=False, format="png", elem_id=f"others-{k}", elem_classes="cc-others")
        with gr.Row():
            c[f"another{k}"] = gr.Button("+ Another picture of it", size="sm", elem_id=f"another-{k}")
            c[f"remove{k}"] = gr.Button("Remove this subject", size="sm", visible=k > 1)


def settings(c: dict[str, Any], desk: Desk) -> None:
    """Seed, and the closed panel of everything else, into `c`."""
    config = desk.studio.config
    choice = CHOICES[config.base]
    with gr.Row(elem_classes="cc-line"):
        c["seed"] = gr.Number(label="Seed", value=0, precision=0, min_width=110, scale=2,
                              elem_id="seed", info="The same seed gives the same picture.")
        c["dice"] = gr.Button("New seed", size="sm", min_width=90, elem_id="dice")
        c["reuse"] = gr.Button("Reuse seed", size="sm", min_width=90, elem_id="reuse")
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
        c["size"] = gr.Dropdown(desk.sizes(config.base), value="", label="Size", allow_custom_value=True,
                                info="Width × height in pixels; others may be typed.", elem_id="size")
        schedulers = [("the model's own", ""), *((title, key) for key, title in SCHEDULER_TITLES.items())]
        c["scheduler"] = gr.Dropdown(schedulers, value="", label="Scheduler", elem_id="scheduler",
                                     info="The rule that turns noise into a picture.")
        c["location_masks"] = gr.Checkbox(True, label="Location masks",
                                          info="Keep each subject to the place found for it, step by step.")
        c["text_tokens"] = gr.Checkbox(True, label="Subject in the text",
                                       info="Off: the subject's picture alone speaks, as with IP-Adapter.")
        c["apart"] = gr.Checkbox(True, label="Several subjects: draw each by itself", elem_id="apart",
                                 info="So that they do not mix. Takes the time of one picture for each.")
        titles = [(choice.title if desk.studio.offers(name) else f"{choice.title}: not here yet", name)
                  for name, choice in CHOICES.items()]
        c["base"] = gr.Dropdown(titles, value=config.base, label="Model", elem_id="base",
                                info="Those of this machine can be used; the others say how to get them.")
        c["base_note"] = gr.HTML(note(""), visible=False, elem_id="base-note")
