"""The run's subjects among known ones, by their features."""

from __future__ import annotations

import gradio as gr

from customcontrast.ui.components import info, view
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.sections.controls import FeaturesTab, Sections
from customcontrast.ui.wiring import Wire

AROUND = (
    "What the encoder makes of your subject, among known ones. Their places come from t-SNE; yours is the "
    "mean of its nearest neighbours' places, since t-SNE cannot place a new point."
)


ALIKE = (
    "Subjects that the model was trained with, nearest first; the number is the cosine of their features, at most 1."
)


def build() -> FeaturesTab:
    """Lay the tab out."""
    with gr.Tab("Features") as tab:
        info("Your subject among others", AROUND)
        around_note = gr.HTML(visible=False, elem_id="around-note")
        around = view("Your subject among known ones", "around", figure=True, visible=False)
        alike_note = info("The known subjects it is most like", ALIKE, visible=False)
        alike = view("The known subjects it is most like", "alike", figure=True, visible=False)
    return FeaturesTab(tab, around_note, around, alike_note, alike)


def wire(wire: Wire, handlers: Handlers, sections: Sections) -> None:
    """Computed when the tab is opened."""
    tab, run = sections.results.features, sections.results.run
    outputs = {name: getattr(tab, name) for name in ("around", "alike", "around_note", "alike_note")}
    wire.on(tab.tab.select, handlers.viewers.features, {"run": run}, outputs, errors_to="around_note")
