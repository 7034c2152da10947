"""The real page in this process, with a tiny model, and a way into the model behind it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradio_client import Client

from customcontrast.pipeline import CustomContrast  # noqa: E402
from customcontrast.ui import server as app
from customcontrast.ui.service.service import Service  # noqa: E402
from tests.robustness.visitors import generate
from tests.support.serving import EXAMPLES, ROOT, free_port, tiny_model, wait_for  # noqa: E402

__all__ = ["BEAR", "EXAMPLES", "ROOT", "Served", "free_port", "generate", "served", "wait_for"]
BEAR = str(EXAMPLES / "bear.png")


@dataclass
class Served:
    """A running page."""

    demo: Any  # gr.Blocks
    url: str
    service: Service
    folder: Path  # gradio's cache is under it
    clients: int = field(default=0)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def model(self) -> CustomContrast:
        return self.service.models.model()

    def visitor(self) -> Client:
        """A new client, with a session and a download folder of its own."""
        self.clients += 1
        return Client(self.url, verbose=False, download_files=str(self.folder / f"visitor{self.clients}"))


@contextlib.contextmanager
def served(folder: Path, **options: object) -> Iterator[Served]:
    """Start the page as `python app.py` does; options: its command line, such as queue_size=5."""
    kept, own = {}, {"GRADIO_TEMP_DIR": str(folder / "cache"), "GRADIO_ANALYTICS_ENABLED": "False"}
    services: list[Service] = []
    original = app.Service

    def remember(config: object) -> Service:
        services.append(original(config))
        return services[-1]

    for name, value in own.items():
        kept[name], os.environ[name] = os.environ.get(name), value
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    weights = tiny_model(folder / "tiny")
    app.Service = remember
    try:
        given = ["--base", "toyland", "--weights", str(weights), "--port", str(free_port()), "--device", "cpu", *words]
        demo, url = app.launch(app.options(given), block=False)
    finally:
        app.Service = original
    try:
        services[0].models.model()
        yield Served(demo, url, services[0], folder)
    finally:
        demo.close()
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
