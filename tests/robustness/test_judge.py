"""The judge of the fault tests fails where it should: no case without a told outcome, none that ends otherwise."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from customcontrast.errors import ConfigError
from tests.robustness.judge import Judge, command


def taken(*_: object) -> str:
    return "taken"


def refuse(said: str) -> None:
    raise ConfigError(said)


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


STEPS = "generate: steps=-1 must be a whole number from 1 to 100."


def test_as_told(judge: Callable) -> None:
    case = judge("judge")
    assert case.works(taken, 3) == "taken" == case.told(None, taken, 3)
    assert case.refused("steps", refuse, STEPS) == STEPS == case.told("Steps", refuse, STEPS)
    assert case.either("the value is drawn by chance", taken) == "taken"
    case.either("the value is drawn by chance", refuse, STEPS)
    assert (case.results, case.sentences, case.open.total(), case.count) == (2, 2, 2, 6)


@pytest.mark.parametrize(
    ("names", "said", "why"),
    [
        (None, STEPS, "refused, though it is right"),
        ("steps", "", "taken, though it should be refused"),
        ("guidance", STEPS, "does not name 'guidance'"),
        ("steps", "generate: prompt='steps' must be shorter than this.", "does not name 'steps'"),
        ("steps", "generate: “steps” (steps) is no such prompt here.", "does not name 'steps'"),
        ("steps", "steps: bad.", "characters"),
        ("steps", "generate: steps is wrong\nin two lines.", "not one line"),
        ("steps", "generate: steps raised a ValueError of Python.", "raw"),
        ("steps", f"generate: steps {'must be less ' * 40}", "characters"),
    ],
)  # fmt: skip
def test_another_end_than_told_fails(names: str | None, said: str, why: str) -> None:
    case = Judge("judge")
    case.told(names, refuse, said) if said else case.told(names, taken)
    assert len(case.failures) == 1 and why in case.failures[0]


@pytest.mark.parametrize("how", ["works", "refused", "either"])
def test_neither_result_nor_sentence_always_fails(how: str) -> None:
    for call in (lambda: [][1], lambda: {}["x"], lambda: sys.exit(1), lambda: float("x" * 3) + None, lambda: 1 / 0):
        case = Judge("judge")
        first = {"works": (), "refused": ("steps",), "either": ("nobody can tell this",)}[how]
        getattr(case, how)(*first, call)
        assert len(case.failures) == 1 and case.results == case.sentences == 0, case.failures


def test_an_untold_case_cannot_be_written() -> None:
    case = Judge("judge")
    with pytest.raises(TypeError):
        case(taken, 3)
    for names in ("", ".", ".*", "(", "x?", "cannot|steps", "used"):
        with pytest.raises(Exception, match=r"names no argument|missing|unterminated"):
            case.refused(names, refuse, STEPS)
    for why in ("", "hard to tell"):
        with pytest.raises(ValueError, match="is no reason"):
            case.either(why, taken)
    assert case.count == 0 and not case.failures


def test_what_a_refused_case_leaves_behind_fails(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for folder in ("temporary", "out"):

        def leave(path: Path = tmp_path / folder / "left") -> None:
            path.touch()
            refuse(STEPS)

        case = Judge("judge", [tmp_path / "out"])
        case.refused("steps", leave)
        assert len(case.failures) == 1 and "left behind" in case.failures[0]


def test_commands(judge: Callable) -> None:
    def main(words: list[str]) -> int:
        print(f"some.command: error: --steps: {words[1]} is no number; give one.", file=sys.stderr)
        return int(words[0])

    case = judge("judge")
    case.works(command(main), ["0", "3"])
    for status in "12":
        assert case.refused("--steps", command(main), [status, "x"]) == "--steps: x is no number; give one."
    strict = Judge("judge")
    strict.refused("--steps", command(main), ["3", "x"])
    strict.refused("--steps", command(main), ["1", "Traceback"])
    assert len(strict.failures) == 2 and "exit status 3" in strict.failures[0] and "Traceback" in strict.failures[1]
