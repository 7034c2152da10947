"""The pictures, the history of the session, and everything to see about a picture."""

from __future__ import annotations

import gradio as gr

from customcontrast.ui.components import UploadButton, heading, info
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.sections import compare_tab, features_tab, where_tab, words_tab
from customcontrast.ui.sections.controls import ResultsSection, Sections
from customcontrast.ui.theme import static
from customcontrast.ui.wiring import QUIET, Wire

RECIPE = (
    "Every setting of this run. The downloaded PNG carries it together with your cut-out, so that whoever has the "
    "file can load it here and make the same picture again."
)


PAST = "Click a picture to have it back with all its settings."


HOVER = "Point at a word, or tap it, to see where in the picture it acted."


EXPLAINED = "What the maps say about this very picture, with its own numbers."


HOVER_SCRIPT = static("hover.js")


def build() -> ResultsSection:
    """Lay the section out."""
    heading(3, "Your picture")
    run = gr.State(None, time_to_live=3600)
    gallery = gr.Gallery(
        label="Pictures", columns=2, preview=True, height=430, object_fit="contain", interactive=False,
        format="png", buttons=["download", "fullscreen"], elem_id="pictures-out", elem_classes="cc-picture",
    )  # fmt: skip
    with gr.Column(visible=False, elem_id="history-box") as history_box:
        past = gr.State((), time_to_live=3600)
        info("This session", PAST)
        history = gr.Gallery(
            label="Pictures of this session", show_label=False, columns=6, allow_preview=False, interactive=False,
            buttons=[], format="png", elem_id="history", elem_classes="cc-past")  # fmt: skip
    recipe_file = UploadButton("Load the recipe of a downloaded picture", file_types=[".png"], size="sm",
                               elem_id="load-recipe")  # fmt: skip
    with gr.Column(visible=False, elem_id="viewers") as viewers:
        info("Where each word acted", HOVER)
        hover = gr.HTML("", js_on_load=HOVER_SCRIPT, elem_id="hover", label="Where each word acted")
        with gr.Accordion("What am I looking at?", open=False, elem_id="explaining"):
            info("The maps of your picture", EXPLAINED)
            explained = gr.HTML("", elem_id="explained")
        with gr.Tabs():
            with gr.Tab("Where"):
                where = where_tab.build()
            with gr.Tab("Words"):
                words = words_tab.build()
            with gr.Tab("Compare"):
                compare = compare_tab.build()
            features = features_tab.build()
            with gr.Tab("Recipe"):
                info("The recipe of this picture", RECIPE)
                recipe = gr.JSON(show_label=False, label="Recipe", elem_id="recipe")
    return ResultsSection(run, gallery, recipe_file, history_box, history, past, viewers, hover, explained, where,
                          words, compare, features, recipe)  # fmt: skip


def wire(wire: Wire, handlers: Handlers, sections: Sections) -> None:
    """Another picture of a run, a recipe, a step back in the session, and every tab."""
    section, everything = sections.results, sections.everything
    wire.on(section.gallery.select, handlers.viewers.pick, {"run": section.run}, section.shown, chosen=True, **QUIET)
    wire.on(section.recipe_file.upload, handlers.replay.load, {"path": section.recipe_file}, everything, **QUIET)
    wire.on(section.history.select, handlers.replay.back, {"past": section.past}, everything, chosen=True, **QUIET)
    for tab in (where_tab, words_tab, compare_tab, features_tab):
        tab.wire(wire, handlers, sections)
