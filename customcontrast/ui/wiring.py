"""Events and handlers, by name: components go in as a structure, values come out in the same structure.

A structure is a component, a `Form` (a dataclass of values to be made), a dataclass of components, a mapping or a
sequence of structures. Gradio is given sets of components and hands over {component: value}; no position counts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from customcontrast.ui.handlers.generation_run import STOPPING, ended
from customcontrast.ui.handlers.messages import Changes, Set, error_text, note, notice

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
LIVELY: dict[str, Any] = {"trigger_mode": "always_last", **QUIET}
Structure = Any  # gr.Component | Form | a dataclass, mapping or sequence of structures
Handler = Callable[..., Any]


@dataclass(frozen=True)
class Form:
    """Components whose values become the fields of `kind`."""

    kind: type
    parts: Mapping[str, Structure] = field(default_factory=dict)


def named(structure: Structure) -> dict[Any, Structure]:
    """The direct parts of a structure by name; {} for a component."""
    if isinstance(structure, gr.blocks.Block):
        return {}
    if isinstance(structure, Form):
        return dict(structure.parts)
    if dataclasses.is_dataclass(structure):
        return {f.name: getattr(structure, f.name) for f in dataclasses.fields(structure)}
    if isinstance(structure, Mapping):
        return dict(structure)
    return dict(enumerate(structure))


def components(structure: Structure) -> list[gr.blocks.Block]:
    """Every component of a structure, once."""
    if isinstance(structure, gr.blocks.Block):
        return [structure]
    found = [part for each in named(structure).values() for part in components(each)]
    return list({id(part): part for part in found}.values())


def read(structure: Structure, values: Mapping[Any, Any]) -> Any:
    """The values of a structure's components, in its shape."""
    if isinstance(structure, gr.blocks.Block):
        return values[structure]
    parts = {name: read(part, values) for name, part in named(structure).items()}
    if isinstance(structure, Form):
        return structure.kind(**parts)
    return list(parts.values()) if isinstance(structure, Sequence) else parts


def updates(structure: Structure, changes: Changes) -> dict[Any, Any]:
    """A handler's changes as gradio takes them. Raises KeyError for a name that the structure does not have."""
    parts, found = named(structure), {}
    for name, value in changes.items():
        part = parts[name]
        if isinstance(part, gr.blocks.Block):
            found[part] = gr.update(**value) if isinstance(value, Set) else value
        else:
            found |= updates(part, value)
    return found


class Wire:
    """Wires events to handlers. status: where errors are shown that no event shows elsewhere."""

    def __init__(self, status: gr.HTML) -> None:
        self.status = status

    def on(
        self,
        event: Callable[..., Any] | Sequence[Callable[..., Any]],
        handler: Handler,
        inputs: Mapping[str, Structure] | None = None,
        outputs: Mapping[str, Structure] | None = None,
        errors_to: str = "",
        chosen: bool = False,
        drawn: bool = False,
        **options: Any,
    ) -> Any:
        """Wire an event, or one of several, to a handler.

        inputs: name of the handler's argument → a structure. outputs: name in its changes → a structure. errors_to: the
        output where its errors are shown; "" = the page's status. chosen: the index of what was selected comes first.
        drawn: the event's own data come first.
        """
        inputs, outputs = dict(inputs or {}), dict(outputs or {})
        errors_to = errors_to or "status"
        outputs.setdefault(errors_to, self.status)

        def answer(values: Mapping[Any, Any], *first: Any) -> dict[Any, Any]:
            try:
                found = updates(outputs, handler(*first, **read(inputs, values)))
            except Exception as error:  # the last line before the visitor
                found = updates(outputs, {errors_to: notice(error_text(error), "error")})
            return found or {components(outputs[errors_to])[0]: gr.skip()}

        def answer_choice(values: Any, event: gr.SelectData) -> dict[Any, Any]:
            return answer(values, event.index)

        def answer_event(values: Any, event: gr.EventData) -> dict[Any, Any]:
            return answer(values, event._data)

        def answer_values(values: Any) -> dict[Any, Any]:
            return answer(values)

        fn = answer_choice if chosen else answer_event if drawn else answer_values
        listen = functools.partial(gr.on, list(event)) if isinstance(event, Sequence) else event
        return listen(fn, set(components(inputs)), components(outputs), **{"api_visibility": "private", **options})

    def run_button(
        self,
        button: gr.Button,
        stop: gr.Button,
        status: gr.HTML,
        handler: Handler,
        inputs: Mapping[str, Structure],
        outputs: Mapping[str, Structure],
        over: gr.blocks.Block,
    ) -> Any:
        """Wire a button to a run of the model, whose handler yields changes, and the button that stops it.

        over: what the browser covers with the place in the queue. A run ends in its own time, after a step; until then
        the browser drops another press of `button`, so that is off for as long. A run that was stopped counts as
        failed, as does one that never reached its handler.
        """
        outputs = {**outputs, "stop": stop, "status": status}

        def press(values: Any) -> Iterator[dict[Any, Any]]:
            try:
                for changes in handler(**read(inputs, values)):
                    yield updates(outputs, changes)
            except Exception as error:
                yield updates(outputs, {"status": note(error_text(error), "error"), "stop": Set(interactive=False)})

        run = button.click(
            press, set(components(inputs)), components(outputs), concurrency_limit=1, concurrency_id="model",
            show_progress_on=over, api_visibility="private",
        )  # fmt: skip
        off, flag = gr.update(interactive=False), f"(window.ccStopped ??= {{}})[{json.dumps(button.elem_id)}]"
        at_once = f"() => {{ {flag} = true; return {json.dumps([note(STOPPING), off, off])}; }}"
        stop.click(None, None, [status, stop, button], js=at_once, cancels=[run], **QUIET)
        # Progress that is on its way may still write over “Stopping …”, hence the browser's own flag.
        stopped = f"() => {{ const was = {flag}; {flag} = false; return [was ? {json.dumps(STOPPING)} : '']; }}"
        run.success(None, None, None, js=f"() => {{ {flag} = false; }}", **QUIET)
        after = {"status": status, "stop": stop, "button": button}
        self.on(run.failure, ended, {"status": status}, after, queue=False, js=stopped, **QUIET)
        return run
