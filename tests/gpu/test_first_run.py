"""The prepared run for the day with a GPU, in full, with tiny classes on a CPU."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.gpu import first_run
from tests.support import processes


def test_every_part_runs_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(first_run.MORE, "comparison", lambda machine: {"difference": 0.5})
    report = first_run.run(tmp_path, "cpu", tiny=True, parts=("pictures", "training", "comparison"))
    assert not any("error" in part for part in report.parts.values()), report.parts
    written = json.loads((tmp_path / "first-run.json").read_text())
    for name in ("sd15", "sdxl"):
        picture, steps = written["pictures"][name], written["training"][name]
        assert picture["seconds"] > 0 and picture["estimated_gb"] > 0
        assert steps["finite"] and steps["steps"] == 4 and steps["tflop"] > 0
    text = (tmp_path / "first-run.md").read_text()
    assert "| training: sdxl |" in text and 'comparison: {"difference": 0.5}' in text


def test_a_part_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(machine: first_run.Machine) -> dict:
        raise ValueError("no such kernel")

    monkeypatch.setattr(first_run, "PARTS", {"tests": broken})
    monkeypatch.setitem(first_run.MORE, "comparison", lambda machine: {"difference": 0.5})
    report = first_run.run(tmp_path, "cpu", tiny=True)
    assert report.parts == {"tests": {"error": "ValueError: no such kernel"}, "comparison": {"difference": 0.5}}
    assert "tests failed: ValueError: no such kernel" in (tmp_path / "first-run.md").read_text()


def _pytest(words: list[str], said: Path) -> None:
    sys.modules.pop("tests.gpu.test_gpu", None)  # it reads its device where it is imported
    with said.open("w") as file, contextlib.redirect_stdout(file):
        code = pytest.main(words)
    sys.exit(int(code))


@pytest.mark.slow
def test_the_tests_for_a_gpu_pass_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's own words, in a fork of this process, which has everything imported."""

    def forked(command: list[str], cwd: Path, env: dict[str, str], timeout: float, **_: object) -> object:
        python, *words = command
        assert (python, *words[:2]) == (sys.executable, "-m", "pytest") and cwd == first_run.ROOT
        said, failed, own = tmp_path / "said.txt", tmp_path / "failed.txt", env.items() - os.environ.items()
        process = processes.start(_pytest, words[2:], said, failed=failed, **dict(own))
        process.join(timeout)
        return subprocess.CompletedProcess(command, process.exitcode, said.read_text())

    monkeypatch.setattr(first_run, "subprocess", SimpleNamespace(run=forked))
    report = first_run.run(tmp_path, "cpu", tiny=True, parts=("tests",))
    found = report.parts["tests"]
    assert found["ok"] and found["counts"]["passed"] == 5, found
