"""“Turn it around”: one subject from eight sides."""

from __future__ import annotations

import gradio as gr

from customcontrast.ui.components import hint, view
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.sections.controls import Sections, TurntableSection
from customcontrast.ui.wiring import Wire

TURN = "Your first subject with the same prompt and seed, drawn eight times: an eighth of a turn further each time."


def build(handlers: Handlers) -> TurntableSection:
    """Lay the section out."""
    visible = handlers.service.models.takes_layout()
    with gr.Accordion("Turn it around", open=False, visible=visible, elem_id="turntable") as box:
        hint(TURN)
        with gr.Row():
            turn = gr.Button("Turn it around", scale=3, elem_id="turn")
            stop = gr.Button("Stop", scale=1, interactive=False, elem_id="turn-stop")
        status = gr.HTML(elem_id="turn-status", padding=False)
        sheet = view("Eight views of the subject", "turn-sheet", figure=True, visible=False)
        film = view("The subject, turning", "turn-film", visible=False, format="gif", buttons=[])
        gif = gr.DownloadButton("Download the turn (GIF)", size="sm", visible=False, elem_id="turn-gif")
    return TurntableSection(box, turn, stop, status, sheet, film, gif)


def wire(wire: Wire, handlers: Handlers, sections: Sections) -> None:
    """The run of eight pictures."""
    section = sections.turntable
    outputs = {name: getattr(section, name) for name in ("turn_sheet", "turn_film", "turn_gif")}
    wire.run_button(
        section.turn, section.stop, section.status, handlers.turntable.turn, {"form": sections.form}, outputs,
        over=section.status,
    )  # fmt: skip
