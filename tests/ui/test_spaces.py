"""A Space: the folder that is pushed, that it starts on its own, and how long it asks for a lent GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from customcontrast.ui import page as page_module
from customcontrast.ui.service.gpu_time import LEAST, MOST, gpu_seconds
from customcontrast.ui.service.models import ServiceConfig
from customcontrast.ui.service.request import Request, SubjectRequest
from customcontrast.ui.service.service import Service
from tests.robustness.page import free_port

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import make_space  # noqa: E402


def test_time_grows_with_the_work() -> None:
    one = Request("a bear", base="sdxl", steps=30)
    base = gpu_seconds(one)
    assert LEAST <= base <= MOST
    assert gpu_seconds(replace(one, steps=60)) > base and gpu_seconds(replace(one, pictures=2)) > base
    assert gpu_seconds(replace(one, size="512x512")) < base
    pair = replace(one, subjects=(SubjectRequest((), "bear"), SubjectRequest((), "cat")))
    assert gpu_seconds(replace(pair, apart=True)) > gpu_seconds(pair) == base
    assert gpu_seconds(replace(pair, apart=True, steps=100, pictures=4), preview_every=2) == MOST
    assert gpu_seconds(Request("a bear", base="toyland")) == LEAST


def test_a_request_that_names_no_model_is_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a server of SDXL it takes SDXL's time, not that of the page's default."""
    lent: list[Callable[..., int]] = []

    class Lender:
        @staticmethod
        def GPU(duration: Callable[..., int]) -> Callable[[Callable], Callable]:
            lent.append(duration)
            return lambda run: run

    monkeypatch.setattr(page_module, "spaces", Lender)
    page_module.Page(Service(ServiceConfig("sdxl")))
    open_, named = Request("a bear", steps=60), Request("a bear", steps=60, base="sdxl")
    assert lent[0](open_, 2) == gpu_seconds(named) > gpu_seconds(open_)
    assert lent[0](replace(open_, base="toyland"), 2) == gpu_seconds(open_) == LEAST


@pytest.mark.parametrize("kind", ["cpu", "zerogpu"])
def test_the_folder_is_whole_and_small(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_space.main(["--kind", kind, "--out", str(tmp_path / "space")]) == 0
    files = [file for file in (tmp_path / "space").rglob("*") if file.is_file()]
    assert max(file.stat().st_size for file in files) <= make_space.MAX_BYTES
    assert (tmp_path / "space" / "README.md").read_text().startswith("---\ntitle: CustomContrast\nsdk: gradio\n")
    wants = (tmp_path / "space" / "requirements.txt").read_text().splitlines()
    assert ("spaces" in wants) == (kind == "zerogpu") and "gradio>=6.0,<7" in wants
    assert make_space.main(["--kind", kind, "--out", str(tmp_path / "space")]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_the_folder_starts_outside_the_checkout(tmp_path: Path) -> None:
    make_space.write("cpu", tmp_path / "space")
    port = free_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith("CUSTOMCONTRAST_")} | {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "PYTHONPATH": "",
    }
    command = [sys.executable, "app.py"]
    with subprocess.Popen(command, cwd=tmp_path / "space", env=env, stdout=subprocess.DEVNULL) as server:
        try:
            until = time.monotonic() + 120
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                        assert answer.status == 200 and b"CustomContrast" in answer.read()
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() < until
                    time.sleep(0.5)
        finally:
            server.terminate()


@pytest.mark.skipif(importlib.util.find_spec("spaces") is None, reason="needs spaces: requirements-dev.txt has it")
def test_the_run_of_a_request_is_what_holds_the_gpu() -> None:
    """With the real package, as on ZeroGPU: the run is wrapped, its time is asked by the request, no CUDA at import."""
    code = (
        "import inspect, torch\n"
        "from customcontrast.ui.page import Page, spaces\n"
        "from customcontrast.ui.service.service import Service\n"
        "page = Page(Service())\n"
        "assert spaces is not None and hasattr(page.handlers.generation.stream, 'zerogpu')\n"
        "assert inspect.isgeneratorfunction(Service.stream) and not torch.cuda.is_initialized()\n"
    )
    env = os.environ | {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": "http://127.0.0.1:9"}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
