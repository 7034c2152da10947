"""Location masks over time, and the picture as it forms."""

from __future__ import annotations

import gradio as gr

from customcontrast.ui.components import info, view
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.handlers.messages import note
from customcontrast.ui.sections.controls import Sections, WhereTab
from customcontrast.ui.wiring import LIVELY, QUIET, Wire

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


def build() -> WhereTab:
    """Lay the tab out."""
    info("Location masks over time", STRIP)
    no_place = gr.HTML(note("This picture has no subject, so none was placed."), visible=False)
    strip = view("Location masks over time", "strip", figure=True)
    running, clock = gr.State(False), gr.Timer(0.5, active=False)
    with gr.Row(elem_classes="cc-line"):
        play = gr.Button("▶ Play", size="sm", scale=0, min_width=90, elem_id="play")
        step = gr.Slider(1, 20, 20, step=1, label="Step", elem_id="step", scale=1)
    overlay_note = info("The picture as it forms", FORMING)
    overlay = view("The picture as it forms, with the location mask of this step over it", "overlay")
    plot_note = info("Size and centre of each mask", SIZES)
    plot = view("Size and centre of each mask, step by step", "plot", figure=True)
    with gr.Row():
        make_film = gr.Button("Make a film of all steps", size="sm", elem_id="make-film")
        film = gr.DownloadButton("Download all steps (GIF)", size="sm", visible=False, elem_id="film")
        video = gr.DownloadButton("Download all steps (MP4)", size="sm", visible=False, elem_id="video")
    return WhereTab(no_place, strip, running, clock, play, step, overlay_note, overlay, plot_note, plot, make_film,
                    film, video)  # fmt: skip


def wire(wire: Wire, handlers: Handlers, sections: Sections) -> None:
    """Another step, and the film of the steps."""
    tab, viewers, run = sections.results.where, handlers.viewers, sections.results.run
    wire.on(tab.step.input, viewers.step, {"run": run, "step": tab.step}, {"overlay": tab.overlay}, **LIVELY)
    inputs = {"run": run, "step": tab.step, "running": tab.running}
    outputs = {name: getattr(tab, name) for name in ("clock", "running", "play", "step", "overlay")}
    wire.on(tab.play.click, viewers.play, inputs, outputs, **QUIET)
    wire.on(tab.clock.tick, viewers.tick, inputs, outputs, trigger_mode="once", queue=False, **QUIET)
    files = {name: getattr(tab, name) for name in ("make_film", "film", "video")}
    wire.on(tab.make_film.click, viewers.film, {"run": run}, files, show_progress="minimal")
