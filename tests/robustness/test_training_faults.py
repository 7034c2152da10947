"""Training that is killed, whose disk is full or read-only, or whose loader dies: a sentence, and nothing is lost."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

import customcontrast.tensor_files as files
import train.adapter.train as loop
from customcontrast.adapter_files import load_adapter
from customcontrast.base_model import BaseModel
from customcontrast.errors import ConfigError
from tests.robustness.kills import Forked, compare, unreadable
from tests.robustness.runs import mixed_run, small_run
from train.adapter import training_state
from train.adapter.adapter_config import AdapterTrainConfig
from train.adapter.train import main, train
from train.data.sources import make_source


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def settings(tiny_folder: Path, tiny_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> AdapterTrainConfig:
    config = small_run(tiny_folder, tmp_path_factory.mktemp("pool"), save_every=2)
    make_source(config.data, tiny_base, progress=False)
    return config


@pytest.fixture(scope="module")
def whole(settings: AdapterTrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `settings` that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "whole"
    AcceleratorState._reset_state(reset_partial_state=True)
    train(settings, folder, cpu=True)
    return folder


def written(config: AdapterTrainConfig, folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    return path


def killed_in_step(number: int) -> Callable[[], None]:
    """SIGKILL in this step of the session, between the gradients and the weights."""

    def prepare() -> None:
        original, calls = loop.set_learning_rate, []

        def dying(*arguments: object) -> float:
            calls.append(1)
            if len(calls) == number:
                _die()
            return original(*arguments)

        loop.set_learning_rate = dying

    return prepare


def killed_while_writing(number: int) -> Callable[[], None]:
    """SIGKILL when half of this file of the session is written: a checkpoint, the adapter, a checkpoint, …"""

    def prepare() -> None:
        original, calls = files.save_tensors, []

        def dying(tensors: dict, path: str, **options: object) -> None:
            original(tensors, path, **options)
            calls.append(1)
            if len(calls) == number:
                os.truncate(path, Path(path).stat().st_size // 2)
                _die()

        files.save_tensors = dying

    return prepare


@pytest.mark.slow
def test_kills_and_the_losses_of_the_unbroken_run(tiny_folder: Path, tmp_path: Path) -> None:
    """In a step, in the middle of a checkpoint, in the middle of the adapter; `python -m tests.robustness.kills` adds
    the moments of chance, and processes that are started as a user starts them."""
    config = mixed_run(tiny_folder, tmp_path / "data", save_every=1)  # weighted sets, a mapped index, contrastive batch
    train(config, tmp_path / "whole", cpu=True)
    run, log, path = tmp_path / "run", tmp_path / "log.txt", written(config, tmp_path)
    done = []
    for prepare in (killed_in_step(3), killed_while_writing(3), killed_while_writing(2)):
        assert Forked(path, run, log, prepare=prepare).end() == -signal.SIGKILL, log.read_text()[-2000:]
        assert unreadable(run) == []
        done.append(int(training_state.find(run / "checkpoints", "latest").stem.removeprefix("step-")))
    assert done == [2, 3, 4]  # the last whole checkpoint each time
    assert Forked(path, run, log).end() == 0, log.read_text()[-2000:]
    assert compare(tmp_path / "whole", run) == []


def test_a_comparison_can_fail(settings: AdapterTrainConfig, whole: Path, tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    train(replace(settings, seed=1), tmp_path / "b", cpu=True)
    assert len(compare(whole, tmp_path / "b")) > 10


# ---- writing


def last_good(output: Path, base: BaseModel, step: int) -> None:
    """Checkpoint `step` is the newest, whole, and the exported adapter can be read; nothing else lies about."""
    latest = training_state.find(output / "checkpoints", "latest")
    assert latest.name == f"step-{step:07d}.safetensors"
    assert load_adapter(output / "adapter.safetensors", base).metadata["step"] == step
    assert not list(output.rglob("*.part*"))


@pytest.mark.parametrize("what", ["checkpoint", "adapter"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_gives_out(
    settings: AdapterTrainConfig, whole: Path, tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys, what: str, number: int,
) -> None:  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)
    original, calls = files.save_tensors, []

    def failing(tensors: dict, path: str, **options: object) -> None:
        mine = (Path(path).parent.name == "checkpoints") == (what == "checkpoint")
        calls.extend([path] if mine else [])
        if mine and len(calls) > 1:
            Path(path).write_bytes(b"half a fi")
            raise OSError(number, os.strerror(number), str(path))
        original(tensors, path, **options)

    monkeypatch.setattr(files, "save_tensors", failing)
    config = written(settings, tmp_path)
    assert main(["--config", str(config), "--output", str(tmp_path / "run"), "--cpu"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("train: ") and "could not be written" in said and os.strerror(number) in said
    monkeypatch.undo()
    if what == "checkpoint":
        last_good(tmp_path / "run", tiny_base, 2)
    else:  # the checkpoint of the step itself is there; the adapter is the last whole one
        assert load_adapter(tmp_path / "run" / "adapter.safetensors", tiny_base).metadata["step"] == 2
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(["--config", str(config), "--output", str(tmp_path / "run"), "--cpu"]) == 0
    assert compare(whole, tmp_path / "run") == []


def test_a_file_size_limit_of_the_system(settings: AdapterTrainConfig, tiny_base: BaseModel, tmp_path: Path) -> None:
    """The real thing: the kernel refuses to write more; the run before it survives."""
    half = replace(settings, optim=replace(settings.optim, steps=2))
    train(half, tmp_path / "run", cpu=True)
    size = (tmp_path / "run" / "checkpoints" / "step-0000002.safetensors").stat().st_size

    log = tmp_path / "log.txt"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))  # noqa: E731
    status = Forked(written(settings, tmp_path), tmp_path / "run", log, prepare=limit).end()
    said = log.read_text()
    assert status == 2 and "Traceback" not in said, said[-2000:]
    assert "could not be written" in said.strip().splitlines()[-1]
    last_good(tmp_path / "run", tiny_base, 2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(settings: AdapterTrainConfig, tmp_path: Path, capsys) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    assert main(["--config", str(written(settings, tmp_path)), "--output", str(tmp_path / "run"), "--cpu"]) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_an_output_that_is_a_file(settings: AdapterTrainConfig, tmp_path: Path, capsys) -> None:
    (tmp_path / "run").touch()
    assert main(["--config", str(written(settings, tmp_path)), "--output", str(tmp_path / "run"), "--cpu"]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("train: ")


# ---- loading


class Dying:
    """A source whose third sample kills the process that draws it, or fails there."""

    def __init__(self, source: object, act: Callable[[], object]) -> None:
        self.source, self.act, self.home = source, act, os.getpid()

    def __len__(self) -> int:
        return len(self.source)

    def draw(self, index: int, rng: object) -> object:
        if index == 2 and os.getpid() != self.home:
            self.act()
        return self.source.draw(index, rng)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse() -> None:
    raise ConfigError("data.path: a subject in shard-3.tar is damaged; delete this shard.")


@pytest.mark.parametrize(("act", "says"), [(_die, "a loader process died"), (_refuse, "shard-3.tar is damaged")])
def test_a_loader_process_that_dies(
    settings: AdapterTrainConfig, tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys,
    act: Callable, says: str,
) -> None:  # fmt: skip
    original = loop.make_source
    monkeypatch.setattr(loop, "make_source", lambda *a, **k: Dying(original(*a, **k), act))
    config = written(replace(settings, data=replace(settings.data, workers=1)), tmp_path)
    assert main(["--config", str(config), "--output", str(tmp_path / "run"), "--cpu"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("train: data.") and says in said and "Traceback" not in said
    if (tmp_path / "run" / "checkpoints").exists():
        assert all(path.suffix == ".safetensors" for path in (tmp_path / "run" / "checkpoints").iterdir())


def test_memory_that_gives_out_in_a_step_names_the_remedy(
    settings: AdapterTrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(loop, "with_features", full)
    assert main(["--config", str(written(settings, tmp_path)), "--output", str(tmp_path / "run"), "--cpu"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "memory" in said and "optim.batch" in said
    assert sys.exc_info() == (None, None, None)
