"""The ablation's rows differ in what the paper says they differ in, and the whole of it runs and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from train.adapter.adapter_config import AdapterTrainConfig
from train.evaluation.metrics import Score
from train.experiments import ablation
from train.experiments.ablation import VARIANTS, variant_config


def test_the_rows_are_those_of_tables_3_and_4() -> None:
    config = AdapterTrainConfig(encoder={"width": 32})
    rows = {i: variant_config(config, v, seed=3, steps=9) for i, v in VARIANTS.items()}
    assert rows[0].encoder == {"width": 32, "textual": False, "tv_fusion": False}
    assert rows[1].encoder == {"width": 32, "tv_fusion": False} and rows[2].encoder == {"width": 32}
    losses = {i: (row.loss.cscl, row.loss.macl) for i, row in rows.items()}
    assert [losses[i] for i in range(3)] == [(False, False)] * 3
    assert [losses[i] for i in (3, 4, 5)] == [(True, False), (False, True), (True, True)]
    assert len({repr((row.seed, row.optim, row.data)) for row in rows.values()}) == 1  # same seed, steps and data order


@pytest.mark.slow
def test_the_ablation_runs_and_goes_on(
    experiment: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*experiment, "--ids", "0", "5", "--seeds", "0"]
    assert ablation.main(arguments) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| 0 | Visual | " in table and "| 5 | 2 + CSCL + MACL | " in table and "0.591" in table
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.json")}
    assert ablation.main([*arguments, "--ids", "5", "--seeds", "0", "1"]) == 0
    assert {p: p.stat().st_mtime_ns for p in made} == made  # nothing was evaluated again
    assert "seeds 0 1, 1 subjects" in (tmp_path / "out" / "table.md").read_text()
    other = [*arguments, "--ids", "5", "--references", "edited"]  # of the same adapter
    assert ablation.main(other) == 0
    assert "| leaks |" in (tmp_path / "out" / "table-edited.md").read_text()
    assert {p: p.stat().st_mtime_ns for p in made} == made
    capsys.readouterr()


def test_differences_are_those_of_paired_pictures() -> None:
    def scores(gain: float, rank: int) -> list[Score]:
        kinds = ("reconstruction", "scene")
        return [Score(str(i), kind, f"{i}", 0.3 + gain, 0.5, 0.1 * i + gain, rank) for i in range(4) for kind in kinds]

    assert ablation.differences({0: scores(0, 0)}) == []
    _, head, _, first, last = ablation.differences({2: scores(0, 1), 5: scores(0.02, 0), 0: scores(-0.01, 1)})
    assert head == "| ID | less ID 2: E-CI | E-DI | CT | retrieval@1 |"
    assert first == (
        "| 0 | +0.000 [+0.000, +0.000] | -0.010 [-0.010, -0.010] | -0.010 [-0.010, -0.010] | +0.000 [+0.000, +0.000] |"
    )
    assert "+0.020" in last and last.endswith("| +1.000 [+1.000, +1.000] |")
    seen = {i: [replace(s, edit=float(i == 5)) for s in scores(0, 1)] for i in (2, 5)}
    *_, head, _, gain = ablation.differences(seen)
    assert head.endswith("| CT | edits | retrieval@1 |") and "| +1.000 [+1.000, +1.000] |" in gain
    assert "retrieval@1" not in ablation.differences({2: scores(0, -1), 5: scores(0, -1)})[1]
