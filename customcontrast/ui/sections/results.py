"""Layout of the right side: the prompt, the pictures, and everything to see about them."""

from __future__ import annotations

from typing import Any

import gradio as gr

from customcontrast.ui.handlers.comparison import AXES, WAYS, axis_hint
from customcontrast.ui.handlers.generation import SLOTS, Desk, note
from customcontrast.ui.theme import UploadButton, heading, info, view

EDITS = {"scene": "Scene", "style": "Style", "shape": "Shape", "accessorisation": "Accessories"}
STRIP = (
    "From left to right: your subject, where the model placed it at some of the steps, and the picture. "
    "White means that the subject is here; each mask steers the next step."
)
FORMING = (
    "The picture as the model foresaw it at this step, with the place of each subject in a colour of its own. "
    "Move the slider, or play all steps."
)
SIZES = (
    "Left: which part of the picture each mask fills, step by step. Right: where its centre goes, from the hollow dot "
    "of the first step to the full dot of the last. What comes to rest has found its place."
)
WORDS = "The same map for every word of the prompt; S* stands for your subject's own tokens."
ALIKE = (
    "Subjects that the model was trained with, nearest first; the number is the cosine of their features, at most 1."
)
ATTENTION = (
    "Bright places listened to the chosen word, or took details from the subject's picture. "
    "It is the attention that really drew the picture, averaged over layers and heads."
)
LOOKED = (
    "Click a place of the map above to see which parts of your picture it looked at while it was drawn. "
    "Before a click it is the mean over all places; bright parts were looked at most."
)
RECIPE = (
    "Every setting of this run. The downloaded PNG carries it together with your cut-out, so that whoever has the "
    "file can load it here and make the same picture again."
)


COMPARE = (
    "The same prompt and seed in several ways: the text alone; your picture brought in the way IP-Adapter does it (the "
    "visual branch only, with this model's weights); everything, but trained without the paper's contrastive losses; "
    "both branches without location masks; and everything together."
)
GRID = (
    "One picture for each pair of values, all with the settings of the left side. "
    "The result is one labelled picture to download."
)
AROUND = (
    "What the encoder makes of your subject, among known ones. Their places come from t-SNE; yours is the "
    "mean of its nearest neighbours' places, since t-SNE cannot place a new point."
)


# fmt: off
def prompt(c: dict[str, Any], desk: Desk) -> None:
    """The prompt, its helpers and the two buttons, into `c`."""
    heading(2, "What to draw")
    c["prompt"] = gr.Textbox(
        label="Prompt", value="", placeholder="a dog on the beach", lines=2, max_lines=6, elem_id="prompt",
        info="Name your subject with its word; everything else is up to you.")
    with gr.Row(visible=False, elem_classes="cc-chips", elem_id="chips") as c["chips"]:
        for k in SLOTS:
            c[f"chip{k}"] = gr.Button("", size="sm", visible=False, elem_id=f"chip-{k}")
    c["notes"] = gr.HTML(visible=False, elem_id="prompt-notes")
    with gr.Tabs():
        for kind, title in EDITS.items():
            presets = desk.presets[kind]
            with gr.Tab(title):
                c[f"preset-{kind}"] = gr.Dataset(
                    components=[gr.Textbox(visible=False)], samples=[[p["prompt"]] for p in presets], type="index",
                    sample_labels=[p["label"] for p in presets], layout="gallery", samples_per_page=20,
                    label=f"Preset edits: {title}", show_label=False)
    with gr.Row():
        c["go"] = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
        c["stop"] = gr.Button("Stop", elem_id="stop", scale=1, interactive=False)
    c["status"] = gr.HTML(elem_id="status", padding=False)


def results(c: dict[str, Any]) -> None:
    """The pictures and the tabs about them, into `c`."""
    heading(3, "Your picture")
    c["shown"] = gr.State(None, time_to_live=3600)
    c["gallery"] = gr.Gallery(
        label="Pictures", columns=2, preview=True, height=430, object_fit="contain", interactive=False,
        format="png", buttons=["download", "fullscreen"], elem_id="pictures-out", elem_classes="cc-picture")
    c["recipe-file"] = UploadButton("Load the recipe of a downloaded picture", file_types=[".png"], size="sm",
                                    elem_id="load-recipe")
    with gr.Column(visible=False, elem_id="viewers") as c["viewers"], gr.Tabs():
        with gr.Tab("Where"):
            where(c)
        with gr.Tab("Words"):
            words(c)
        with gr.Tab("Compare"):
            compare(c)
        with gr.Tab("Features") as c["features-tab"]:
            info("Your subject among others", AROUND)
            c["around_note"] = gr.HTML(visible=False, elem_id="around-note")
            c["around"] = view("Your subject among known ones", "around", figure=True, visible=False)
            c["alike_note"] = info("The known subjects it is most like", ALIKE, visible=False)
            c["alike"] = view("The known subjects it is most like", "alike", figure=True, visible=False)
        with gr.Tab("Recipe"):
            info("The recipe of this picture", RECIPE)
            c["recipe"] = gr.JSON(show_label=False, label="Recipe", elem_id="recipe")


def where(c: dict[str, Any]) -> None:
    """Location masks over time."""
    info("Location masks over time", STRIP)
    c["no_place"] = gr.HTML(note("This picture has no subject, so none was placed."), visible=False)
    c["strip"] = view("Location masks over time", "strip", figure=True)
    c["running"], c["clock"] = gr.State(False), gr.Timer(0.5, active=False)
    with gr.Row(elem_classes="cc-line"):
        c["play"] = gr.Button("▶ Play", size="sm", scale=0, min_width=90, elem_id="play")
        c["step"] = gr.Slider(1, 20, 20, step=1, label="Step", elem_id="step", scale=1)
    c["overlay_note"] = info("The picture as it forms", FORMING)
    c["overlay"] = view("The picture as it forms, with the location mask of this step over it", "overlay")
    c["plot_note"] = info("Size and centre of each mask", SIZES)
    c["plot"] = view("Size and centre of each mask, step by step", "plot", figure=True)
    with gr.Row():
        c["film"] = gr.DownloadButton("Download all steps (GIF)", size="sm", visible=False, elem_id="film")
        c["video"] = gr.DownloadButton("Download all steps (MP4)", size="sm", visible=False, elem_id="video")


def words(c: dict[str, Any]) -> None:
    """Attention maps of words and of the subjects' pictures."""
    info("Attention over the picture", ATTENTION)
    c["branch"] = gr.Radio([("Words", "text"), ("Subject's picture", "visual")], value="text",
                           label="Show the map of", elem_id="branch")
    c["word"] = gr.Radio([], label="Word", elem_id="word")
    c["who"] = gr.Radio([], label="Subject", visible=False, elem_id="who")
    with gr.Row():
        c["map_step"] = gr.Slider(0, 20, 0, step=1, label="Step", info="0 = all steps together")
        c["layers"] = gr.Dropdown([("all", "")], value="", label="Layers", info="by size")
    c["map"] = view("Attention over the picture", "map")
    c["looked_note"] = info("What it looked at in your picture", LOOKED, visible=False)
    c["looked"] = view("The parts of the subject's pictures that were looked at", "looked", figure=True, visible=False)
    info("All words at once", WORDS)
    c["grid"] = view("The maps of all words", "grid", figure=True)


def compare(c: dict[str, Any]) -> None:
    """Several ways with the same seed, and a grid over two parameters."""
    info("The same seed, side by side", COMPARE)
    c["compared"] = gr.State(None, time_to_live=3600)
    with gr.Row():
        c["compare"] = gr.Button("Compare", variant="primary", scale=3, elem_id="compare")
        c["compare_stop"] = gr.Button("Stop", scale=1, interactive=False, elem_id="compare-stop")
    c["compare_status"] = gr.HTML(elem_id="compare-status", padding=False)
    choices = [(label, key) for key, label in WAYS.items()]
    with gr.Row(visible=False) as c["sides"]:
        c["left"] = gr.Dropdown(choices, value="visual", label="Left", elem_id="left")
        c["right"] = gr.Dropdown(choices, value="full", label="Right", elem_id="right")
    c["slider"] = gr.ImageSlider(label="Left and right", show_label=False, interactive=False, visible=False,
                                 format="png", buttons=["download", "fullscreen"], elem_id="slider")
    c["sheet"] = view("The reference and every way", "sheet", figure=True, visible=False)
    info("A grid over two parameters", GRID)
    axes = [(label, key) for key, label in AXES.items()]
    for name, title, axis in (("x", "Columns", "subject_scale"), ("y", "Rows", "guidance")):
        with gr.Row():
            c[name] = gr.Dropdown(axes, value=axis, label=title, elem_id=f"grid-{name}", scale=1)
            hint = axis_hint(axis)
            c[f"{name}_values"] = gr.Textbox(hint["value"], label=f"Values of the {title.lower()}", info=hint["info"],
                                             lines=1, max_lines=8, elem_id=f"grid-{name}-values", scale=2)
    with gr.Row():
        c["make_grid"] = gr.Button("Make the grid", scale=3, elem_id="make-grid")
        c["grid_stop"] = gr.Button("Stop", scale=1, interactive=False, elem_id="grid-stop")
    c["grid_status"] = gr.HTML(elem_id="grid-status", padding=False)
    c["made_grid"] = view("The grid", "made-grid", figure=True, visible=False)
