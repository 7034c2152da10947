"""“Style or layout”: a whole picture beside the subjects, with its role and its own strength."""

from __future__ import annotations

import gradio as gr

from customcontrast.config import LIMITS
from customcontrast.ui.components import Picture, hint
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.sections.controls import Sections, StyleSlot
from customcontrast.ui.service.request import LAYOUT, STYLE
from customcontrast.ui.wiring import Wire

ABOUT = "A picture whose colours and manner the new one takes on, or else its composition; what it shows is left out."
ROLES = [("Style", STYLE), ("Layout", LAYOUT)]


# fmt: off
def build(handlers: Handlers) -> StyleSlot:
    """Lay the slot out; it is there where the model comes with a published IP-Adapter."""
    visible = handlers.service.models.has_ip_adapter()
    with gr.Column(visible=visible, elem_classes="cc-slot", elem_id="style-slot") as box:
        picture = gr.State(None, time_to_live=3600)
        hint(ABOUT)
        with gr.Row():
            upload = Picture(
                label="Style or layout", sources=["upload", "clipboard"], height=180, format="png",
                buttons=[], min_width=140, elem_id="style-upload",
                placeholder="Drop a picture here\nor click to choose one")
            with gr.Column(min_width=140):
                role = gr.Radio(ROLES, value=STYLE, label="What is taken from it", elem_id="style-role")
                strength = gr.Slider(0, LIMITS["strength"].public_high, 1, step=0.05, label="Strength",
                                     elem_id="style-strength")
        note = gr.HTML(visible=False, elem_id="style-note")
    return StyleSlot(box, picture, upload, role, strength, note)


def wire(wire: Wire, handlers: Handlers, sections: Sections) -> None:
    """Another picture, or none."""
    slot = sections.style
    outputs = {"picture": slot.picture, "upload": slot.upload, "note": slot.note}
    wire.on(slot.upload.input, handlers.style.upload, {"path": slot.upload}, outputs, errors_to="note")
