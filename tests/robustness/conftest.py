"""`judge(entry)` for the tests of bad input, and their count at the end: `python -m pytest tests/robustness`."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.robustness.judge import Judge
from tests.support.serving import EXAMPLES, tiny_model

SHOWN = 6  # failed cases of a test that are listed
COUNTS: dict[str, Counter[str]] = {}
REASONS: Counter[str] = Counter()  # why cases may end either way


@pytest.fixture
def judge(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """judge("entry") -> Judge, with an empty temporary folder of the test's own that refused cases must leave empty."""
    own = tmp_path / "temporary"
    own.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    made: list[Judge] = []

    def make(entry: str, *files: Path) -> Judge:
        made.append(Judge(entry, list(files)))
        return made[-1]

    yield make
    for one in made:
        counts = {"results": one.results, "sentences": one.sentences, "either": one.open.total()}
        request.node.user_properties.append(("bad input", (one.entry, counts, dict(one.open))))
    failures = [failure for one in made for failure in one.failures]
    if failures:
        pytest.fail(f"{len(failures)} cases:\n" + "\n".join(failures[:SHOWN]), pytrace=False)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with an adapter, as `--weights` wants it."""
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's bear, small: cut-outs, recipes and features of it cost little."""
    path = tmp_path_factory.mktemp("reference") / "bear.png"
    with Image.open(EXAMPLES / "bear.png") as whole:
        whole.convert("RGB").resize((96, 96)).save(path)
    return path


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        for name, value in report.user_properties:
            if name == "bad input":
                entry, counts, reasons = value
                COUNTS.setdefault(entry, Counter()).update(counts)
                REASONS.update(reasons)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not COUNTS:
        return
    terminalreporter.write_sep("=", "bad input, as told")
    total = sum(COUNTS.values(), Counter())
    for entry, counter in [*sorted(COUNTS.items()), ("all", total)]:
        kinds = ", ".join(f"{counter[kind]:5} {kind}" for kind in ("results", "sentences", "either"))
        terminalreporter.write_line(f"{entry:34} {counter.total():5} cases: {kinds}")
    for why, count in sorted(REASONS.items()):
        terminalreporter.write_line(f"either, {count:4} cases: {why}")
