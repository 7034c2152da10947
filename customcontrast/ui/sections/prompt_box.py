"""The prompt, its helpers, and the buttons that generate and stop."""

from __future__ import annotations

from functools import partial

import gradio as gr

from customcontrast.ui.components import heading
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.handlers.subject_panel import SLOTS
from customcontrast.ui.sections.controls import PromptSection, Sections
from customcontrast.ui.wiring import LIVELY, QUIET, Wire

EDITS = {"scene": "Scene", "style": "Style", "shape": "Shape", "accessorisation": "Accessories"}


# fmt: off
def build(handlers: Handlers) -> PromptSection:
    """Lay the section out."""
    heading(2, "What to draw")
    prompt = gr.Textbox(
        label="Prompt", value="", placeholder="a dog on the beach", lines=2, max_lines=6, elem_id="prompt",
        info="Name your subject with its word; everything else is up to you. Ctrl + Enter generates.")
    with gr.Row(visible=False, elem_classes="cc-chips", elem_id="chips") as chip_row:
        chips = {k: gr.Button("", size="sm", visible=False, elem_id=f"chip-{k}") for k in SLOTS}
    notes = gr.HTML(visible=False, elem_id="prompt-notes")
    presets = {}
    with gr.Tabs():
        for kind, title in EDITS.items():
            edits = handlers.prompt.presets[kind]
            with gr.Tab(title):
                presets[kind] = gr.Dataset(
                    components=[gr.Textbox(visible=False)], samples=[[edit["prompt"]] for edit in edits], type="index",
                    sample_labels=[edit["label"] for edit in edits], layout="gallery", samples_per_page=20,
                    label=f"Preset edits: {title}", show_label=False)
    with gr.Row():
        generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=3, min_width=180)
        stop = gr.Button("Stop", elem_id="stop", scale=1, interactive=False, min_width=90)
    status = gr.HTML(elem_id="status", padding=False)
    return PromptSection(prompt, chip_row, chips, notes, presets, generate, stop, status)


def wire(wire: Wire, handlers: Handlers, sections: Sections) -> None:
    """Presets, chips, notes, and the run."""
    section, panel, nouns = sections.prompt, handlers.prompt, sections.subjects.nouns
    for kind, dataset in section.presets.items():
        inputs = {"index": dataset, "nouns": nouns}
        wire.on(dataset.click, partial(panel.preset, kind), inputs, {"prompt": section.prompt}, **QUIET)
    base = sections.settings.base
    changed = [one.change for one in (section.prompt, base, *nouns)]
    inputs = {"prompt": section.prompt, "base": base, "nouns": nouns}
    wire.on(changed, panel.notes, inputs, {"notes": section.notes}, errors_to="notes", queue=False, **LIVELY)
    outputs = {"chip_row": section.chip_row, "chips": section.chips}
    wire.on([noun.change for noun in nouns], panel.chips, {"nouns": nouns}, outputs, queue=False, **LIVELY)
    for k, chip in section.chips.items():
        inputs = {"prompt": section.prompt, "noun": nouns[k - 1]}
        outputs = {"prompt": section.prompt, "notes": section.notes}
        wire.on(chip.click, partial(panel.chip, k), inputs, outputs, errors_to="notes", **QUIET)
    _wire_run(wire, handlers, sections)


def _wire_run(wire: Wire, handlers: Handlers, sections: Sections) -> None:
    """Generate and Stop; after a run, in one more request, its viewers and its place in the history."""
    section, results = sections.prompt, sections.results
    run = wire.run_button(
        section.generate, section.stop, section.status, handlers.generation.generate, {"form": sections.form},
        {"gallery": results.gallery, "run": results.run}, over=results.gallery,
    )  # fmt: skip
    past = {"past": results.past, "history": results.history, "history_box": results.history_box}
    inputs = {"run": results.run, "past": results.past}
    wire.on(run.success, handlers.after_run, inputs, {**results.shown, **past}, **QUIET)
