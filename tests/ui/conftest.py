"""One server with a tiny model and one Chromium for all browser tests of a process: starting them takes longest.

And a first subject for tests of handlers, each module's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from customcontrast.ui.handlers import Handlers
from customcontrast.ui.service.cutouts import CutOut
from tests.support.serving import EXAMPLES, server, tiny_layout_model

REFUSED = "is greater than maximum value"  # gradio's own, where a test sends what no control can send


def tracebacks(log: Path) -> list[str]:
    """Those of the server's log that nobody provoked."""
    parts = re.split(r"^Traceback", log.read_text(), flags=re.MULTILINE)[1:]
    return [part for part in parts if REFUSED not in part]


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of `python app.py` with a tiny base that is told views."""
    folder = tmp_path_factory.mktemp("page")
    with server(tiny_layout_model(folder / "tiny"), folder / "server.log") as address:
        yield address
    assert not tracebacks(folder / "server.log")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    from tests.support.browsing import CHROMIUM, FLAGS, sync_api  # skips where playwright is not installed

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def bear(handlers: Handlers) -> CutOut:
    """The example bear, uploaded and cut out by the module's own `handlers`."""
    return handlers.subjects.upload(str(EXAMPLES / "bear.png"))["cut"]
