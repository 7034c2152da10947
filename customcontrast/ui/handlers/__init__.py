"""What happens on the page: each visitor's action → what changes. No user interface library here.

A handler takes typed forms and values and returns `Changes`: names of controls, as the sections' dataclasses name them,
with their new values; `Set` stands for other properties too (visible, choices, maximum). The sections wire their events
to handlers, nothing else, so everything a visitor can do is tested without a browser.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from customcontrast.ui.handlers.comparison import Comparison
from customcontrast.ui.handlers.generation_run import Generation, Stream
from customcontrast.ui.handlers.messages import Changes
from customcontrast.ui.handlers.prompt_panel import PromptPanel
from customcontrast.ui.handlers.replay import Past, Replay
from customcontrast.ui.handlers.style_panel import StylePanel
from customcontrast.ui.handlers.subject_panel import SubjectPanel
from customcontrast.ui.handlers.turntable import Turntable
from customcontrast.ui.handlers.viewers import RunView, Viewers
from customcontrast.ui.service.service import Service


class Handlers:
    """All handlers of one server; a visitor's own things come in and go out as values.

    examples: folder of pictures of subjects, prompts.json, and gallery/ with finished pictures. folder: makes a new
    folder for the files of one answer. stream: see `Generation`.
    """

    def __init__(
        self, service: Service, examples: Path, folder: Callable[[], Path], stream: Stream | None = None
    ) -> None:
        self.service = service
        self.subjects = SubjectPanel(service, sorted(examples.glob("*.png")), folder)
        self.style = StylePanel(service.models)
        self.prompt = PromptPanel(service, self.subjects, self.style, examples)
        self.generation = Generation(service, folder, stream)
        self.viewers = Viewers(service, folder)
        self.comparison = Comparison(service, self.generation)
        self.turntable = Turntable(service, self.generation)
        self.replay = Replay(service, self.subjects, self.style, self.prompt, examples / "gallery")

    def after_run(self, run: RunView | None, past: Sequence[Past] | None) -> Changes:
        """What a finished run leaves on the page beside its pictures: viewers and history."""
        return {**self.viewers.show(run), **self.replay.remember(run, past)}
