"""The models of a page: why one cannot be loaded, how it is kept in memory, and what its safety checker withholds."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import count as counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from customcontrast.adapter_files import save_adapter
from customcontrast.base_model import BaseModel
from customcontrast.errors import RequestError
from customcontrast.pipeline import CustomContrast
from customcontrast.safety import placeholder
from customcontrast.specs import BASES
from customcontrast.ui import server as app
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.handlers.forms import GenerationForm
from customcontrast.ui.handlers.messages import error_text
from customcontrast.ui.service.models import ServiceConfig
from customcontrast.ui.service.recipe import read_png
from customcontrast.ui.service.request import Request
from customcontrast.ui.service.service import Service
from tests.support.safety_files import save_published, tiny_checker
from tests.support.serving import EXAMPLES
from tests.support.tiny_models import random_adapter, save_tiny_sd15

FORM = GenerationForm(prompt="a bear on the beach", steps=2, guidance=4.0, seed=5, base="sd15", pictures=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sd15"
    save_tiny_sd15(folder)
    return folder


def handlers(folder: Path, files: Path, **config: object) -> Handlers:
    numbers = counter()

    def answer() -> Path:
        place = files / f"answer{next(numbers)}"
        place.mkdir(parents=True)
        return place

    service = Service(ServiceConfig("sd15", weights=str(folder), device="cpu", **config))
    return Handlers(service, EXAMPLES, answer)


# ---- why a model cannot be loaded


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("no UNet", "has no folder 'unet', which base 'sd15' needs"),
        ("damaged weights", "Cannot read 'vae'"),
        ("no adapter file", "There is no file 'nowhere.safetensors'"),
        ("an adapter for another base", "was trained for base 'toyland', not 'sd15'"),
        ("an adapter for another size", "needs a base with"),
        ("no memory", "does not fit into the memory of cpu (CUDA out of memory"),
        ("no memory, elsewhere", "there is not enough memory for it on the server"),
        ("a fault of ours", "the server's log says why"),
    ],
)
def test_visitors_and_the_log_are_told_why_a_model_cannot_be_loaded(
    broken: str,
    told: str,
    folder: Path,
    tiny_base: BaseModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    adapter, weights = None, folder

    def failing(error: Exception):
        def fail(*_: object, **__: object) -> None:
            raise error

        return fail

    if broken in ("no UNet", "damaged weights"):
        weights = tmp_path / "sd15"
        save_tiny_sd15(weights)
        file = weights / "vae" / "diffusion_pytorch_model.safetensors"
        (weights / "unet").rename(weights / "hidden") if broken == "no UNet" else file.write_bytes(b"damaged")
    elif broken == "no adapter file":
        adapter = "nowhere.safetensors"
    elif broken.startswith("an adapter"):
        made = random_adapter(tiny_base)
        made.base_name = "toyland" if "base" in broken else "sd15"
        adapter = str(save_adapter(made, tmp_path / "adapter.safetensors"))
    elif broken == "no memory":
        full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        monkeypatch.setattr("customcontrast.pipeline.place", failing(full))
    else:
        error = MemoryError() if "memory" in broken else RuntimeError("an assertion deep inside")
        monkeypatch.setattr(CustomContrast, "load", failing(error))
    page = handlers(weights, tmp_path, adapter=adapter)
    with caplog.at_level(logging.ERROR):
        answer = list(page.generation.generate(FORM))[-1]
    text = answer["status"].replace("&#x27;", "'")
    assert "The model “sd15” could not be loaded" in text and told in text and "cc-error" in text
    assert "Traceback" not in text and answer["stop"]["interactive"] is False
    lines = [record for record in caplog.records if record.getMessage().startswith("model sd15 could not be loaded")]
    traced = broken in ("no memory, elsewhere", "a fault of ours")
    assert len(lines) == 1 and (lines[0].exc_info is not None) == traced
    note = page.prompt.memory("sd15")["memory"]
    assert note["visible"] and told in note["value"].replace("&#x27;", "'"), "on the settings too, for who comes later"


def test_memory_that_gives_out_in_a_run_leaves_the_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = handlers(folder, tmp_path)
    model = page.service.models.model()

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = model.base.unet.mid_block.register_forward_hook(full)
    answer = list(page.generation.generate(FORM))[-1]
    assert "not enough memory" in answer["status"] and "fewer or smaller" in answer["status"]
    hook.remove()
    assert page.service.models.model() is model
    assert "Done in" in list(page.generation.generate(FORM))[-1]["status"]


def test_how_a_model_is_kept_is_said_on_the_status_line_and_in_the_settings(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page = handlers(folder, tmp_path)
    assert page.prompt.memory("sd15")["memory"]["visible"] is False, "not loaded yet"
    with caplog.at_level(logging.INFO):
        statuses = [changes.get("status", "") for changes in page.generation.generate(FORM)]
    sentence = page.service.models.model().memory.sentence
    assert sum(f"Getting ready … {sentence}" in status for status in statuses) == 1
    assert sentence in page.prompt.memory("sd15")["memory"]["value"]
    assert [r.getMessage() for r in caplog.records].count(f"model sd15: {sentence}") == 1
    assert page.prompt.base_changes("toyland")["memory"]["visible"] is False


# ---- the safety checker


def test_a_withheld_picture_is_nowhere(folder: Path, tmp_path: Path) -> None:
    """One of two is flagged: a plain picture and a sentence in its place; history and recipes hold the other alone."""
    plain = handlers(folder, tmp_path / "plain")
    pictures = list(plain.generation.generate(FORM))[-1]["run"].result.images
    checker = tiny_checker(pictures[0], pictures[1:])
    save_published(checker, tmp_path / "checker")
    page = handlers(folder, tmp_path / "checked", safety_checker=str(tmp_path / "checker"))
    *steps, last = page.generation.generate(FORM)
    assert not any("gallery" in changes for changes in steps), "no preview shows it on the way"
    first, second = last["gallery"]["value"]
    assert "withheld picture 1" in last["status"] and last["run"].previews == ()
    assert np.array_equal(np.asarray(Image.open(first)), np.asarray(placeholder(pictures[0].size)))
    assert Image.open(first).info == {} and read_png(second)[0]["picture"] == 2
    assert np.array_equal(np.asarray(Image.open(second)), np.asarray(pictures[1]))
    hidden = pictures[0].tobytes()
    assert all(Image.open(file).tobytes() != hidden for file in (tmp_path / "checked").rglob("*.png"))
    kept = page.replay.remember(last["run"], ())["past"]
    assert [past.path for past in kept] == [second]
    assert page.replay.remember(last["run"], kept) == {}, "once"
    alone = list(page.generation.generate(replace(FORM, pictures=1)))[-1]["run"]
    assert alone.result.flagged == [True] and page.replay.remember(alone, kept) == {}
    assert page.viewers.show(alone)["viewers"]["visible"]


def test_every_model_of_a_server_is_checked_but_the_embedded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, tuple[object, object]] = {}

    def load(base: str, safety_checker: object, memory: object, **_: object) -> SimpleNamespace:
        asked[base] = (safety_checker, memory)
        return SimpleNamespace(memory=None)

    monkeypatch.setattr(CustomContrast, "load", load)
    models = handlers(folder, tmp_path, safety_checker="on").service.models
    monkeypatch.setattr(models, "present", lambda base: True)
    for base in BASES:
        models.model(base)
    embedded, checked = (None, None), ("on", "auto")
    assert asked == {"toyland": embedded, "toyland2": embedded, "sd15": checked, "sdxl": checked}


def test_a_public_page_is_one_that_others_can_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    local, public = ("127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.2"), ("0.0.0.0", "192.168.1.7", "::", "box.lan")
    assert not any(map(app.is_public, local)) and all(map(app.is_public, public)) and app.is_public("::1", share=True)

    def chosen(*words: str) -> str | None:
        return app.checker(app.options(list(words)))

    assert chosen() is None and chosen("--safety-checker", "on") == "on" == chosen("--host", "0.0.0.0")
    assert chosen("--share") == "on" and chosen("--safety-checker", "folder") == "folder"
    assert chosen("--share", "--safety-checker", "off") is None
    monkeypatch.setenv("SPACE_ID", "owner/name")
    assert app.is_public("127.0.0.1") and chosen() == "on"


def test_a_public_page_that_cannot_have_its_checker_does_not_start(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    started: list[object] = []
    monkeypatch.setattr(app, "Page", lambda service: started.append(service))
    words = ["--base", "sd15", "--weights", str(folder), "--device", "cpu"]
    assert app.main([*words, "--host", "0.0.0.0"]) == 2 and not started
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "safety_checker/model.fp16.safetensors" in told and "or off to go without" in told
    page = handlers(folder, tmp_path, safety_checker="on")  # a base that is chosen later, on a page that started
    with pytest.raises(RequestError, match="could not be loaded: 'stable-diffusion-v1-5"):
        page.service.run(Request("a bear"))
    assert "could not be loaded" in error_text(RequestError(page.service.models.failure()))
