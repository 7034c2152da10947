"""train.evaluation.two_subjects: two subjects of one picture, read half by half."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from customcontrast.pipeline import CustomContrast
from customcontrast.visualize.sheets import GAP
from tests.support.serving import tiny_model
from train.evaluation import evaluate, two_subjects
from train.evaluation.readers import load_readers
from train.evaluation.tasks import toy_distractors
from train.toyland import World


@pytest.fixture(scope="module")
def some() -> list[two_subjects.Pair]:
    return two_subjects.toyland_pairs(3, World.small(), 96)


def test_pairs_are_of_two_kinds_with_the_left_one_first(some: list[two_subjects.Pair]) -> None:
    for pair in some:
        assert pair.nouns[0] != pair.nouns[1] and pair.prompt.count("<") == 2
        assert pair.prompt.index(f"<{pair.nouns[0]}>") < pair.prompt.index(f"<{pair.nouns[1]}>")
        centres = [np.nonzero(mask)[1].mean() for mask in pair.masks]
        assert centres[0] < centres[1]
        assert not (pair.masks[0] & pair.masks[1]).any()
    again = two_subjects.toyland_pairs(3, World.small(), 96)
    assert [a.prompt for a in again] == [b.prompt for b in some]
    assert all(np.array_equal(np.asarray(a.picture), np.asarray(b.picture)) for a, b in zip(again, some, strict=True))


def test_halves_do_not_see_each_other(some: list[two_subjects.Pair]) -> None:
    readers = load_readers()
    left, right = two_subjects.halves(some[0].picture, readers)
    assert not left.mask[:, 48:].any() and not right.mask[:, :48].any() and left.mask.any() and right.mask.any()
    empty = two_subjects.halves(Image.new("RGB", (96, 96), "white"), readers)
    assert all(segmentation.mask.any() for segmentation in empty), "an empty half is read as it is"


def test_real_pairs_are_found_and_swapped_ones_are_not(some: list[two_subjects.Pair]) -> None:
    readers = load_readers()
    others = readers.identity(toy_distractors(World.small(), 0))
    two = [
        [two_subjects.Segmentation(image=p.picture, mask=mask, score=1.0, method="exact") for mask in p.masks]
        for p in some
    ]
    assert two_subjects.hits(some, two, readers, others).mean() >= 0.8
    assert not two_subjects.hits(some, [pair[::-1] for pair in two], readers, others).any()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    generate = CustomContrast.generate
    quick = lambda *a, **k: generate(*a, **k | {"num_inference_steps": 2})  # noqa: E731
    monkeypatch.setattr(CustomContrast, "generate", quick)
    weights = tiny_model(tmp_path / "tiny")
    words = ["pairs", "--weights", str(weights), "--limit", "2", "--seeds", "2", "--out", str(tmp_path / "out")]
    assert evaluate.main(words) == 0
    assert "in passes of their own" in capsys.readouterr().out
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]
    assert set(scores) == {*two_subjects.RUNS, two_subjects.CEILING}
    assert [scores[name]["each"]["count"] for name in scores] == [4, 4, 2]
    assert scores[two_subjects.CEILING]["both"]["mean"] >= scores["in one pass"]["both"]["mean"]
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.size == (8 * (two_subjects.CELL + GAP) + GAP, two_subjects.CELL + 2 * GAP + 20)  # a row, its words
    for wrong in (["--limit=0"], ["--seeds=0"], ["--adapter=/nowhere"], ["--readers=/nowhere"], ["--world=moon"]):
        assert evaluate.main([*words, *wrong]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("evaluate: ")
