"""The page: its sections side by side, wired to the handlers. What happens on an event is the handlers' affair."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import secrets
from pathlib import Path

spaces = importlib.import_module("spaces") if importlib.util.find_spec("spaces") else None  # before torch

import gradio as gr  # noqa: E402

from customcontrast.ui.api import Endpoints  # noqa: E402
from customcontrast.ui.handlers import Handlers  # noqa: E402
from customcontrast.ui.sections import (  # noqa: E402
    picture_results,
    prompt_box,
    settings_panel,
    showcase,
    subject_slots,
    turntable_panel,
)
from customcontrast.ui.sections.controls import Sections  # noqa: E402
from customcontrast.ui.service.gpu_time import gpu_seconds  # noqa: E402
from customcontrast.ui.service.service import Service  # noqa: E402
from customcontrast.ui.theme import TOGGLE  # noqa: E402
from customcontrast.ui.wiring import QUIET, Wire  # noqa: E402

_PACKAGED = Path(__file__).parent / "examples"  # in a wheel; in a checkout they lie at the top
EXAMPLES = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "examples"
TITLE = (
    "<h1>CustomContrast</h1><p>Show a picture of your subject, say what should happen to it, "
    "and get new pictures of it.</p>"
)


class Page:
    """One page over one service."""

    def __init__(self, service: Service) -> None:
        seconds = functools.partial(gpu_seconds, base=service.config.base)
        stream = spaces.GPU(duration=seconds)(service.stream) if spaces else service.stream
        self.handlers = Handlers(service, EXAMPLES, self._folder, stream)
        self.sections: Sections | None = None

    def _folder(self) -> Path:
        """A new folder inside the page's cache, under a name that cannot be guessed."""
        if self.sections is None:
            raise RuntimeError("Page: build() comes first; there is no cache before the page has components.")
        folder = Path(self.sections.results.gallery.GRADIO_CACHE) / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder

    def build(self) -> gr.Blocks:
        """Lay the page out and wire it."""
        handlers = self.handlers
        with gr.Blocks(title="CustomContrast", delete_cache=(600, 3600), analytics_enabled=False) as demo:
            with gr.Row(elem_classes="cc-line"):
                gr.HTML(TITLE, elem_classes="cc-title")
                gr.Button("Light / dark", size="sm", scale=0, min_width=110).click(None, js=TOGGLE, **QUIET)
            shown = showcase.build(handlers)
            with gr.Row(elem_classes="cc-halves"):
                with gr.Column(scale=5, min_width=320):
                    subjects = subject_slots.build(handlers)
                    with gr.Column(elem_id="settings"):  # on a phone below the picture, see page.css
                        settings = settings_panel.build(handlers)
                with gr.Column(scale=7, min_width=320):
                    prompt = prompt_box.build(handlers)
                    results = picture_results.build()
                    turntable = turntable_panel.build(handlers)
            self.sections = sections = Sections(shown, subjects, settings, prompt, results, turntable)
            wire = Wire(prompt.status)
            for section in (showcase, subject_slots, settings_panel, prompt_box, picture_results, turntable_panel):
                section.wire(wire, handlers, sections)
            Endpoints(handlers).wire(results)
            outputs = {"memory": settings.memory}
            wire.on(demo.load, handlers.prompt.memory, {"base": settings.base}, outputs, queue=False, **QUIET)
        return demo
