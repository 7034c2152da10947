"""The subjects with their pictures, their cut-outs, their words, places and views; the style picture beside them."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from customcontrast.config import LIMITS
from customcontrast.layout import POSES
from customcontrast.ui.components import Picture, heading, hint
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.handlers.subject_panel import PLACE_TITLES, SLOTS, place_title
from customcontrast.ui.sections import pads, style_slot
from customcontrast.ui.sections.controls import Sections, SubjectSlot, SubjectsSection
from customcontrast.ui.service import figures
from customcontrast.ui.service.cutouts import ADD, BOX, REMOVE
from customcontrast.ui.service.request import MAX_NOUN
from customcontrast.ui.service.view_layout import DIRECTIONS
from customcontrast.ui.wiring import QUIET, Wire

PAINT = (
    "Paint over what belongs to your subject; with “Remove” chosen above, over what does not. Undo takes a stroke back."
)


PLACE = (
    "Automatic: the model finds the place while it draws. A place that you give is kept from the first step on. "
    "Anywhere: nothing keeps the subject to a place."
)


MODES = [("Add", ADD), ("Remove", REMOVE), ("Box", BOX)]


KEEP = "(written, guessed) => [written && written.trim() ? written : guessed]"


TURN = "Which side it shows; degrees from -180 to 180 may be typed."


def build(handlers: Handlers) -> SubjectsSection:
    """Lay the section out."""
    heading(1, "Your subject")
    count = gr.State(1)
    takes_layout = handlers.service.models.takes_layout()
    slots = {k: _slot(k, takes_layout) for k in SLOTS}
    add = gr.Button("+ Another subject", size="sm", elem_id="add")
    style = style_slot.build(handlers)
    examples = handlers.subjects.examples
    with gr.Accordion("Or take an example", open=bool(examples), visible=bool(examples)):
        gallery = gr.Gallery(
            [(str(path), f"Example: {path.stem}") for path in examples],
            label="Examples", show_label=False, columns=7, allow_preview=False, interactive=False, buttons=[],
            elem_id="examples")  # fmt: skip
    return SubjectsSection(count, slots, add, style, gallery)


# fmt: off
def _slot(k: int, takes_layout: bool) -> SubjectSlot:
    with gr.Column(visible=k == 1, elem_classes="cc-slot", elem_id=f"slot-{k}") as box:
        cut, others = gr.State(None, time_to_live=3600), gr.State((), time_to_live=3600)
        with gr.Row():
            upload = Picture(
                label=f"Subject {k}", sources=["upload", "clipboard", "webcam"], height=240, format="png",
                buttons=[], min_width=140, elem_id=f"upload-{k}",
                placeholder="Drop a picture here\nor click to choose one")
            cutout = gr.Image(
                label="Cut-out (click to fix)", interactive=False, height=240, format="png", min_width=140,
                buttons=[], elem_id=f"cutout-{k}", elem_classes="cc-cut", alt_text="The subject, cut out")
        note = gr.HTML(visible=False, elem_id=f"note-{k}")
        with gr.Row(elem_classes="cc-line"):
            mode = gr.Radio(MODES, value=ADD, label="A click or stroke means", scale=3, min_width=290,
                            elem_id=f"mode-{k}", elem_classes="cc-mode")
        with gr.Row(elem_classes="cc-line"):
            undo = gr.Button("Undo", size="sm", min_width=60)
            reset = gr.Button("Reset", size="sm", min_width=60)
            crop = gr.Button("Crop", size="sm", min_width=60, elem_id=f"crop-{k}")
            face = gr.Button("Crop face", size="sm", min_width=60, elem_id=f"face-{k}")
        with gr.Accordion("Brush", open=False, elem_id=f"brushing-{k}", elem_classes="cc-fold") as brushing:
            hint(PAINT)
            brush = pads.brush(k)
        with gr.Row():
            noun = gr.Textbox(label="What is it?", value="", placeholder="e.g. dog",
                              min_width=120, max_length=MAX_NOUN, elem_id=f"noun-{k}")
            guessed = gr.Textbox(visible=False)
            strength = gr.Slider(0, LIMITS["strength"].public_high, 1, step=0.05, label="Strength", min_width=140,
                                 elem_id=f"strength-{k}")
        with gr.Row(visible=takes_layout, elem_id=f"view-{k}") as view:
            turn = gr.Dropdown([("any", ""), *((name, name) for name in DIRECTIONS)], value="", label="Turned",
                               info=TURN, allow_custom_value=True, elem_id=f"turn-{k}", min_width=140)
            pose = gr.Dropdown([("any", ""), *((name, name) for name in POSES)], value="", label="Pose",
                               info="Things without legs just stand.", elem_id=f"pose-{k}", min_width=140)
        with gr.Accordion(place_title(""), open=False, elem_id=f"placing-{k}", elem_classes="cc-fold") as placing:
            hint(PLACE)
            place = gr.Radio([(title, key) for key, title in PLACE_TITLES.items()], value="",
                             label=f"Place of subject {k}", elem_id=f"place-{k}", elem_classes="cc-places")
            with gr.Row(elem_classes="cc-line"):
                frame = pads.frame(k, figures.place_frame(""))
                area = gr.Textbox("", label="Its box: left, top, right, bottom in %", visible=False,
                                  info="Or draw it into the frame.", elem_id=f"area-{k}", min_width=120)
        album = gr.Gallery(
            label="Its other pictures (click to change)", columns=4, allow_preview=False,
            interactive=False, buttons=[], visible=False, format="png", elem_id=f"others-{k}", elem_classes="cc-others")
        with gr.Row():
            another = gr.Button("+ Another picture of it", size="sm", elem_id=f"another-{k}")
            remove = gr.Button("Remove this subject", size="sm", visible=k > 1)
    return SubjectSlot(
        box=box, cut=cut, others=others, upload=upload, cutout=cutout, note=note, mode=mode, undo=undo, reset=reset,
        crop=crop, face=face,
        brushing=brushing, brush=brush, noun=noun, guessed=guessed, strength=strength, placing=placing, place=place,
        frame=frame, area=area, view=view, turn=turn, pose=pose, album=album, another=another, remove=remove,
    )


def wire(wire: Wire, handlers: Handlers, sections: Sections) -> None:
    """Wire every slot, the button for one more, the style picture, and the examples."""
    style_slot.wire(wire, handlers, sections)
    section, panel = sections.subjects, handlers.subjects
    whole = {"slots": section.slots, "count": section.count, "add": section.add}
    for k, slot in section.slots.items():
        _wire_pictures(wire, handlers, sections, slot)
        _wire_place(wire, handlers, slot)
        inputs = {"count": section.count, "subjects": section.forms}
        wire.on(slot.remove.click, partial(panel.remove, k), inputs, whole, **QUIET)
    wire.on(section.add.click, panel.add, {"count": section.count}, whole, **QUIET)
    inputs = {"count": section.count, "subjects": section.forms}
    wire.on(section.examples.select, panel.example, inputs, whole, chosen=True, **QUIET)


def _wire_pictures(wire: Wire, handlers: Handlers, sections: Sections, slot: SubjectSlot) -> None:
    """The pictures of one subject, and the corrections of their cut-outs."""
    panel = handlers.subjects
    cut, held = {"cut": slot.cut}, {"cut": slot.cut, "others": slot.others}
    here = {name: getattr(slot, name) for name in ("cut", "cutout", "brush", "note", "upload")}
    album = {**here, "others": slot.others, "album": slot.album}
    heavy = {"errors_to": "note", "concurrency_id": "segment", "concurrency_limit": 2, "show_progress_on": slot.cutout}
    quiet = {"errors_to": "note", **QUIET}
    uploaded = wire.on(slot.upload.input, panel.upload, {"path": slot.upload}, here, **heavy)
    asked = {"path": slot.upload, **cut, "noun": slot.noun, "base": sections.settings.base}
    guess = wire.on(uploaded.success, panel.guess, asked, {"guessed": slot.guessed, "note": slot.note}, **quiet)
    # What was written while the server thought is the browser's to know.
    guess.success(None, [slot.noun, slot.guessed], [slot.noun], js=KEEP, **QUIET)
    clicked = {**cut, "label": slot.mode}
    wire.on(slot.cutout.select, panel.click, clicked, here, chosen=True, **heavy)
    wire.on(slot.undo.click, panel.undo, cut, here, **heavy)
    wire.on(slot.reset.click, panel.reset, cut, here, **heavy)
    wire.on(slot.crop.click, panel.crop, cut, here, **heavy)
    wire.on(slot.face.click, panel.crop_face, cut, here, **heavy)
    in_turn: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_id": "brush", "concurrency_limit": 1}
    wire.on(slot.brush.stroke, panel.stroke, clicked, here, drawn=True, **in_turn, **quiet)
    wire.on(slot.another.click, panel.another, held, album, **quiet)
    wire.on(slot.album.select, panel.swap, held, album, chosen=True, **quiet)


def _wire_place(wire: Wire, handlers: Handlers, slot: SubjectSlot) -> None:
    """Where one subject stands."""
    panel, inputs = handlers.subjects, {"place": slot.place, "area": slot.area}
    outputs = {name: getattr(slot, name) for name in ("place", "area", "frame", "placing", "note")}
    for event in (slot.place.input, slot.area.submit, slot.area.blur):
        wire.on(event, panel.choose_place, inputs, outputs, errors_to="note", **QUIET)
    wire.on(slot.frame.place, panel.draw_place, {}, outputs, errors_to="note", drawn=True, **QUIET)
