"""The page: its components by name, and which of the desk's actions answers which event."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

spaces = importlib.import_module("spaces") if importlib.util.find_spec("spaces") else None  # before torch

import gradio as gr  # noqa: E402

from customcontrast.ui.api import Endpoints  # noqa: E402
from customcontrast.ui.handlers.comparison import axis_hint  # noqa: E402
from customcontrast.ui.handlers.generation import CONTROLS, ROW, SLOTS, Desk, Set, note, notice, said  # noqa: E402
from customcontrast.ui.sections import (
    results,
    subject_slots,  # noqa: E402
)
from customcontrast.ui.service.service import Studio  # noqa: E402
from customcontrast.ui.theme import TOGGLE  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples"
QUIET = {"api_visibility": "private", "show_progress": "hidden"}
LIVELY = {"trigger_mode": "always_last", **QUIET}
VIEWERS = (
    "viewers no_place strip step play clock overlay overlay_note branch word who map_step layers map looked "
    "looked_note recipe around alike around_note alike_note film video"
)
MORE = "grid plot plot_note film video"
Handler = Callable[..., Any]


class Page:
    """Components by name, and their events. What happens on an event is the desk's affair."""

    def __init__(self, shared: Studio) -> None:
        stream = spaces.GPU(duration=120)(shared.stream) if spaces else shared.stream
        self.desk = Desk(shared, EXAMPLES, self._folder, stream)
        self.c: dict[str, Any] = {}  # every component that takes part in an event

    def _folder(self) -> Path:
        """A new folder inside the page's cache, under a name that cannot be guessed."""
        folder = Path(self.c["gallery"].GRADIO_CACHE) / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder

    def build(self) -> gr.Blocks:
        with gr.Blocks(title="CustomContrast", delete_cache=(600, 3600), analytics_enabled=False) as demo:
            with gr.Row(elem_classes="cc-line"):
                gr.HTML(
                    "<h1>CustomContrast</h1><p>Show a picture of your subject, say what should happen to it, "
                    "and get new pictures of it.</p>",
                    elem_classes="cc-title",
                )
                gr.Button("Light / dark", size="sm", scale=0, min_width=110).click(None, js=TOGGLE, **QUIET)
            with gr.Row():
                with gr.Column(scale=5, min_width=320):
                    subject_slots.subjects(self.c, self.desk)
                    subject_slots.settings(self.c, self.desk)
                with gr.Column(scale=7, min_width=320):
                    results.prompt(self.c, self.desk)
                    results.results(self.c)
            self._wire_subjects()
            self._wire_prompt()
            self._wire_run()
            self._wire_viewers()
            self._wire_compare()
            Endpoints(self.desk).wire(self.c)
        return demo

    # ---- events -------------------------------------------------------------------------------

    def _on(self, event: Handler, fn: Handler, inputs: str, outputs: str, place: str = "status", **kw: Any) -> Any:
        """Wire an event: the desk's `fn`, the names of its inputs and outputs, and where its errors are told."""
        names = dict.fromkeys([*outputs.split(), place])
        handler = self._handler(fn, place, kw.pop("chosen", False), kw.pop("told", False))
        options = {"api_visibility": "private", **kw}
        return event(handler, [self.c[n] for n in inputs.split()], [self.c[n] for n in names], **options)

    def _any(self, names: str, event: str) -> Handler:
        """One event of many components, so that an answer that is late is never shown over a newer one."""
        return functools.partial(gr.on, [getattr(self.c[name], event) for name in names.split()])

    def _handler(self, fn: Handler, place: str, chosen: bool, told: bool) -> Handler:
        """chosen: what was selected comes first. told: what the event itself tells comes first."""

        def answer(*args: Any) -> dict[Any, Any]:
            try:
                changes = fn(*args)
            except Exception as error:  # the last line before the visitor
                changes = {place: notice(said(error), "error")}
            return self._updates(changes) or {self.c[place]: gr.skip()}

        def answer_choice(event: gr.SelectData, *args: Any) -> dict[Any, Any]:
            return answer(event.index, *args)

        def answer_event(event: gr.EventData, *args: Any) -> dict[Any, Any]:
            return answer(event._data, *args)

        return answer_choice if chosen else answer_event if told else answer

    def _updates(self, changes: dict[str, Any]) -> dict[Any, Any]:
        return {self.c[n]: gr.update(**value) if isinstance(value, Set) else value for n, value in changes.items()}

    def _wire_subjects(self) -> None:
        c, desk = self.c, self.desk
        rows = each(" ".join(ROW))
        everything = f"{rows} {each('upload cutout brush note slot others frame placing')} count add"
        for k in SLOTS:
            here = f"cut{k} cutout{k} brush{k} note{k} upload{k}"
            heavy = {"place": f"note{k}", "concurrency_id": "segment", "concurrency_limit": 2}
            heavy["show_progress_on"] = c[f"cutout{k}"]
            on = functools.partial(self._on, outputs=here, **heavy)
            on(c[f"upload{k}"].input, functools.partial(desk.upload, k), f"upload{k}")
            on(c[f"cutout{k}"].select, functools.partial(desk.click, k), f"cut{k} mode{k}", chosen=True)
            on(c[f"undo{k}"].click, functools.partial(desk.undo, k), f"cut{k}")
            on(c[f"reset{k}"].click, functools.partial(desk.reset, k), f"cut{k}")
            album = f"{here} rest{k} others{k}"
            held = f"cut{k} rest{k}"
            told = {**QUIET, "place": f"note{k}"}
            in_turn = {"trigger_mode": "multiple", "concurrency_id": "brush", "concurrency_limit": 1, **told}
            paint = functools.partial(desk.stroke, k)
            self._on(c[f"brush{k}"].stroke, paint, f"cut{k} mode{k}", here, told=True, **in_turn)
            self._on(c[f"another{k}"].click, functools.partial(desk.another, k), held, album, **told)
            self._on(c[f"others{k}"].select, functools.partial(desk.swap, k), held, album, chosen=True, **told)
            self._on(c[f"remove{k}"].click, functools.partial(desk.remove, k), f"count {rows}", everything, **QUIET)
            self._wire_place(k)
        self._on(c["add"].click, desk.add, "count", f"count add {each('slot')}", **QUIET)
        self._on(c["examples"].select, desk.example, f"count {each('cut')}", everything, chosen=True, **QUIET)
        self._on(c["recipe-file"].upload, desk.load, "recipe-file", f"{everything} {' '.join(CONTROLS)}", **QUIET)

    def _wire_place(self, k: int) -> None:
        c, desk = self.c, self.desk
        place, outputs = f"place{k} area{k}", f"place{k} area{k} frame{k} placing{k} note{k}"
        for event in (c[f"place{k}"].input, c[f"area{k}"].submit, c[f"area{k}"].blur):
            self._on(event, functools.partial(desk.choose_place, k), place, outputs, f"note{k}", **QUIET)
        self._on(
            c[f"frame{k}"].place, functools.partial(desk.draw_place, k), "", outputs, f"note{k}", told=True, **QUIET
        )

    def _wire_prompt(self) -> None:
        c, desk = self.c, self.desk
        for kind in results.EDITS:
            preset = functools.partial(desk.preset, kind)
            self._on(c[f"preset-{kind}"].click, preset, f"preset-{kind} {each('noun')}", "prompt", **QUIET)
        said_of = f"prompt base {each('noun')}"
        self._on(self._any(said_of, "change"), desk.prompt_notes, said_of, "notes", "notes", queue=False, **LIVELY)
        nouns, chips = each("noun"), f"chips {each('chip')}"
        self._on(self._any(nouns, "change"), desk.chips, nouns, chips, queue=False, **LIVELY)
        for k in SLOTS:
            self._on(
                c[f"chip{k}"].click, functools.partial(desk.chip, k), f"prompt noun{k}", "prompt", "notes", **QUIET
            )
        self._on(c["dice"].click, desk.new_seed, "", "seed", queue=False, **QUIET)
        self._on(c["reuse"].click, desk.reuse_seed, "shown", "seed", **QUIET)
        chosen = "base steps guidance scheduler size base_note"
        self._on(c["base"].input, desk.choose_base, "base", chosen, **QUIET)

    def _streamed(self, button: str, fn: Handler, before: str, outputs: str, stop: str, place: str, over: str) -> Any:
        """Wire a button to a run of the model, and the button that stops it.

        before: inputs ahead of those of `Desk.generate`; over: what the browser covers with the place in the queue.
        A run ends in its own time, after a step; until then the browser drops another press of `button`, so that is
        off for as long. A run that was stopped counts as failed.
        """
        c = self.c
        inputs = f"{before} {' '.join(CONTROLS)} {each(' '.join(ROW))}"

        def press(*values: Any) -> Iterator[dict[Any, Any]]:
            yield from map(self._updates, fn(*values))

        run = c[button].click(
            press, [c[n] for n in inputs.split()], [c[n] for n in f"{outputs} {stop} {place}".split()],
            concurrency_id="model", concurrency_limit=1, show_progress_on=c[over], api_visibility="private",
        )  # fmt: skip
        off, stopped = gr.update(interactive=False), functools.partial(self.desk.stop, button, stop, place)
        at_once = f"() => {json.dumps([note('Stopping …'), off, off])}"
        c[stop].click(None, None, [c[place], c[stop], c[button]], js=at_once, cancels=[run], **QUIET)
        self._on(run.failure, stopped, "", f"{stop} {button}", place, queue=False, **QUIET)
        return run

    def _wire_run(self) -> None:
        desk = self.desk
        run = self._streamed("go", desk.generate, "", "gallery shown", "stop", "status", "gallery")
        shown = self._on(run.success, desk.show, "shown", VIEWERS, **QUIET)
        self._on(shown.success, desk.show_more, "shown", MORE, **QUIET)

    def _wire_viewers(self) -> None:
        c, desk = self.c, self.desk
        self._on(c["gallery"].select, desk.pick, "shown", f"shown {VIEWERS} {MORE}", chosen=True, **QUIET)
        self._on(c["step"].input, desk.step, "shown step", "overlay", **LIVELY)
        read = "branch word who map_step layers"
        self._on(self._any(read, "input"), desk.map, f"shown {read}", "word who map looked looked_note", **LIVELY)
        seen = "looked looked_note"
        self._on(c["map"].select, desk.look, "shown branch who", seen, chosen=True, **LIVELY)
        film = {"trigger_mode": "once", "queue": False, **QUIET}
        self._on(c["play"].click, desk.play, "shown step running", "clock running play step overlay", **QUIET)
        self._on(c["clock"].tick, desk.tick, "shown step running", "clock running play step overlay", **film)
        self._on(c["features-tab"].select, desk.features, "shown", "around alike around_note alike_note", "around_note")

    def _wire_compare(self) -> None:
        c, desk = self.c, self.desk
        told, place = "compared sides left right slider sheet", "compare_status"
        self._streamed("compare", desk.compare, "", told, "compare_stop", place, place)
        sides = "left right"
        self._on(self._any(sides, "input"), desk.side_by_side, f"compared {sides}", f"slider {sides}", place, **LIVELY)
        for name in ("x", "y"):
            hint = functools.partial(self._hint, f"{name}_values")
            self._on(c[name].input, hint, name, f"{name}_values", "grid_status", **QUIET)
        asked, place = "x x_values y y_values", "grid_status"
        self._streamed("make_grid", desk.grid, asked, "made_grid", "grid_stop", place, place)

    def _hint(self, name: str, axis: str) -> dict[str, Any]:
        return {name: axis_hint(axis)}


def each(names: str) -> str:
    """Names of a slot's components → those of all slots."""
    return " ".join(f"{name}{k}" for k in SLOTS for name in names.split())
