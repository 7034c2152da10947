"""Several ways with the same seed, and a grid over two parameters."""

from __future__ import annotations

import gradio as gr

from customcontrast.ui.components import info, view
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.handlers.comparison import AXES, WAYS, axis_hint
from customcontrast.ui.sections.controls import Axis, CompareTab, Sections
from customcontrast.ui.wiring import LIVELY, QUIET, Wire

COMPARE = (
    "The same prompt and seed in several ways: the text alone; your picture brought in the way IP-Adapter does it (the "
    "visual branch only, with this model's weights); everything, but trained without the paper's contrastive losses; "
    "both branches without location masks; and everything together."
)


GRID = (
    "One picture for each pair of values, all with the settings of the left side. "
    "The result is one labelled picture to download."
)


# fmt: off
def build() -> CompareTab:
    """Lay the tab out."""
    info("The same seed, side by side", COMPARE)
    compared = gr.State(None, time_to_live=3600)
    with gr.Row():
        compare = gr.Button("Compare", variant="primary", scale=3, elem_id="compare")
        stop = gr.Button("Stop", scale=1, interactive=False, elem_id="compare-stop")
    status = gr.HTML(elem_id="compare-status", padding=False)
    choices = [(label, key) for key, label in WAYS.items()]
    with gr.Row(visible=False) as sides:
        left = gr.Dropdown(choices, value="visual", label="Left", elem_id="left", min_width=200)
        right = gr.Dropdown(choices, value="full", label="Right", elem_id="right", min_width=200)
    slider = gr.ImageSlider(label="Left and right", show_label=False, interactive=False, visible=False,
                            format="png", buttons=["download", "fullscreen"], elem_id="slider")
    sheet = view("The reference and every way", "sheet", figure=True, visible=False)
    info("A grid over two parameters", GRID)
    columns, rows = _axis("x", "Columns", "subject_scale"), _axis("y", "Rows", "guidance")
    with gr.Row():
        make_grid = gr.Button("Make the grid", scale=3, elem_id="make-grid")
        grid_stop = gr.Button("Stop", scale=1, interactive=False, elem_id="grid-stop")
    grid_status = gr.HTML(elem_id="grid-status", padding=False)
    made_grid = view("The grid", "made-grid", figure=True, visible=False)
    return CompareTab(compared, compare, stop, status, sides, left, right, slider, sheet, columns, rows, make_grid,
                      grid_stop, grid_status, made_grid)


def _axis(name: str, title: str, parameter: str) -> Axis:
    axes = [(label, key) for key, label in AXES.items()]
    with gr.Row():
        chosen = gr.Dropdown(axes, value=parameter, label=title, elem_id=f"grid-{name}", scale=1)
        hint = axis_hint(parameter)
        values = gr.Textbox(hint["value"], label=f"Values of the {title.lower()}", info=hint["info"],
                            lines=1, max_lines=8, elem_id=f"grid-{name}-values", scale=2)
    return Axis(chosen, values)


def wire(wire: Wire, handlers: Handlers, sections: Sections) -> None:
    """The two runs, another pair under the slider, and hints for another parameter."""
    tab, panel, form = sections.results.compare, handlers.comparison, sections.form
    made = {name: getattr(tab, name) for name in ("compared", "sides", "left", "right", "slider", "sheet")}
    wire.run_button(tab.compare, tab.stop, tab.status, panel.compare, {"form": form}, made, over=tab.status)
    pair = {"left": tab.left, "right": tab.right}
    shown = {**pair, "slider": tab.slider, "status": tab.status}
    events = [tab.left.input, tab.right.input]
    wire.on(events, panel.side_by_side, {"compared": tab.compared, **pair}, shown, **LIVELY)
    for axis in (tab.columns, tab.rows):
        outputs = {"values": axis.values, "status": tab.grid_status}
        wire.on(axis.parameter.input, _hinted, {"axis": axis.parameter}, outputs, **QUIET)
    inputs = {
        "x": tab.columns.parameter, "x_values": tab.columns.values,
        "y": tab.rows.parameter, "y_values": tab.rows.values, "form": form,
    }  # fmt: skip
    wire.run_button(
        tab.make_grid, tab.grid_stop, tab.grid_status, panel.grid, inputs, {"made_grid": tab.made_grid},
        over=tab.grid_status,
    )  # fmt: skip


def _hinted(axis: str) -> dict:
    return {"values": axis_hint(axis)}
