"""`judge(entry)` for the tests of bad input, and their count at the end: `python -m pytest tests/robustness`."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.robustness.judge import Judge

SHOWN = 6  # failed cases of a test that are listed
COUNTS: dict[str, Counter] = {}


@pytest.fixture
def judge(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """judge("entry") -> Judge, with an empty temporary folder of the test's own that refused cases must leave empty."""
    own = tmp_path / "temporary"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    made: list[Judge] = []

    def make(entry: str, *files: Path) -> Judge:
        made.append(Judge(entry, list(files)))
        return made[-1]

    yield make
    for one in made:
        request.node.user_properties.append(("bad input", (one.entry, one.results, one.sentences)))
    failures = [failure for one in made for failure in one.failures]
    if failures:
        pytest.fail(f"{len(failures)} cases:\n" + "\n".join(failures[:SHOWN]), pytrace=False)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        for name, value in report.user_properties:
            if name == "bad input":
                entry, results, sentences = value
                COUNTS.setdefault(entry, Counter()).update(results=results, sentences=sentences)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not COUNTS:
        return
    terminalreporter.write_sep("=", "bad input")
    for entry, counter in sorted(COUNTS.items()):
        cases = sum(counter.values())
        terminalreporter.write_line(
            f"{entry:34} {cases:5} cases: {counter['results']:5} results, {counter['sentences']:5} sentences"
        )
    total = sum((counter for counter in COUNTS.values()), Counter())
    terminalreporter.write_line(
        f"{'all':34} {sum(total.values()):5} cases: {total['results']:5} results, {total['sentences']:5} sentences"
    )
