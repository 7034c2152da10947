"""Attention maps of words and of the subjects' pictures."""

from __future__ import annotations

import gradio as gr

from customcontrast.ui.components import info, view
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.sections.controls import Sections, WordsTab
from customcontrast.ui.wiring import LIVELY, Wire

ATTENTION = (
    "Bright places listened to the chosen word, or took details from the subject's picture. "
    "It is the attention that really drew the picture, averaged over layers and heads."
)


LOOKED = (
    "Click a place of the map above to see which parts of your picture it looked at while it was drawn. "
    "Before a click it is the mean over all places; bright parts were looked at most."
)


WORDS = "The same map for every word of the prompt; S* stands for your subject's own tokens."


# fmt: off
def build() -> WordsTab:
    """Lay the tab out."""
    info("Attention over the picture", ATTENTION)
    branch = gr.Radio([("Words", "text"), ("Subject's picture", "visual")], value="text",
                      label="Show the map of", elem_id="branch")
    word = gr.Radio([], label="Word", elem_id="word")
    who = gr.Radio([], label="Subject", visible=False, elem_id="who")
    with gr.Row():
        map_step = gr.Slider(0, 20, 0, step=1, label="Step", info="0 = all steps together")
        layers = gr.Dropdown([("all", "")], value="", label="Layers", info="by size")
    overlay = view("Attention over the picture", "map")
    looked_note = info("What it looked at in your picture", LOOKED, visible=False)
    looked = view("The parts of the subject's pictures that were looked at", "looked", figure=True, visible=False)
    info("All words at once", WORDS)
    grid = view("The maps of all words", "grid", figure=True)
    return WordsTab(branch, word, who, map_step, layers, overlay, looked_note, looked, grid)


def wire(wire: Wire, handlers: Handlers, sections: Sections) -> None:
    """Another map, and a click on it."""
    tab, run = sections.results.words, sections.results.run
    read = {"branch": tab.branch, "word": tab.word, "who": tab.who, "step": tab.map_step, "layers": tab.layers}
    outputs = {name: getattr(tab, name) for name in ("word", "who", "map", "looked", "looked_note")}
    wire.on([part.input for part in read.values()], handlers.viewers.map, {"run": run, **read}, outputs, **LIVELY)
    looked = {"looked": tab.looked, "looked_note": tab.looked_note}
    inputs = {"run": run, "branch": tab.branch, "who": tab.who}
    wire.on(tab.map.select, handlers.viewers.look, inputs, looked, chosen=True, **LIVELY)
