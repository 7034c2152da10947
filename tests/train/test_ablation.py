"""The ablation's rows differ in what the paper says they differ in, and the whole of it runs and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

from customcontrast.base_model import BaseModel
from train.adapter.adapter_config import AdapterTrainConfig, DataConfig, LogConfig, OptimConfig
from train.evaluation import evaluate, readers
from train.evaluation.metrics import Score
from train.experiments import ablation
from train.experiments.ablation import VARIANTS, variant_config

ENCODER = {"width": 32, "heads": 2, "depth": 1, "visual_queries": 5, "text_queries": 3, "fourier_bands": 3}


def test_the_rows_are_those_of_tables_3_and_4() -> None:
    config = AdapterTrainConfig(encoder={"width": 32})
    rows = {i: variant_config(config, v, seed=3, steps=9) for i, v in VARIANTS.items()}
    assert rows[0].encoder == {"width": 32, "textual": False, "tv_fusion": False}
    assert rows[1].encoder == {"width": 32, "tv_fusion": False} and rows[2].encoder == {"width": 32}
    losses = {i: (row.loss.cscl, row.loss.macl) for i, row in rows.items()}
    assert [losses[i] for i in range(3)] == [(False, False)] * 3
    assert [losses[i] for i in (3, 4, 5)] == [(True, False), (False, True), (True, True)]
    assert len({repr((row.seed, row.optim, row.data)) for row in rows.values()}) == 1  # same seed, steps and data order


def test_the_ablation_runs_and_goes_on(
    tiny_base: BaseModel,
    headed_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluate, "DISTRACTORS", 2)
    AcceleratorState._reset_state(reset_partial_state=True)
    judge = readers.Readers().eval()
    judge.quality = {"mask_iou": 0.0}
    readers.save_readers(judge, tmp_path / "readers.safetensors", "small")
    data = DataConfig(path=str(tmp_path / "pool"), size=64, reference_size=48, subjects=3, targets=1, references=2)
    config = AdapterTrainConfig(
        weights=str(headed_folder),
        encoder=ENCODER,
        data=data,
        optim=OptimConfig(steps=9, batch=2),
        log=LogConfig(every=1),
    )
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.to_dict()))
    arguments = [
        "--config",
        str(tmp_path / "c.yaml"),
        "--ids",
        "0",
        "5",
        "--steps",
        "1",
        "--limit",
        "1",
        "--cpu",
        "--denoising",
        "2",
    ]
    arguments += ["--readers", str(tmp_path / "readers.safetensors"), "--out", str(tmp_path / "out")]
    assert ablation.main(arguments) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| 0 | Visual | " in table and "| 5 | 2 + CSCL + MACL | " in table and "0.591" in table
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.json")}
    assert ablation.main(arguments) == 0
    assert {p: p.stat().st_mtime_ns for p in made} == made  # nothing was evaluated again
    assert ablation.main([*arguments, "--references", "edited"]) == 0  # the same adapters, on other references
    assert "| leaks |" in (tmp_path / "out" / "table-edited.md").read_text()
    assert {p: p.stat().st_mtime_ns for p in made} == made
    capsys.readouterr()


def test_differences_are_those_of_paired_pictures() -> None:
    def scores(gain: float, rank: int) -> list[Score]:
        kinds = ("reconstruction", "scene")
        return [Score(str(i), kind, f"{i}", 0.3 + gain, 0.5, 0.1 * i + gain, rank) for i in range(4) for kind in kinds]

    assert ablation.differences({0: scores(0, 0)}) == []
    _, head, _, first, last = ablation.differences({2: scores(0, 1), 5: scores(0.02, 0), 0: scores(-0.01, 1)})
    assert head == "| ID | less ID 2: E-CI | E-DI | CT | found |"
    assert first == (
        "| 0 | +0.000 [+0.000, +0.000] | -0.010 [-0.010, -0.010] | -0.010 [-0.010, -0.010] | +0.000 [+0.000, +0.000] |"
    )
    assert "+0.020" in last and last.endswith("| +1.000 [+1.000, +1.000] |")
    seen = {i: [replace(s, edit=float(i == 5)) for s in scores(0, 1)] for i in (2, 5)}
    *_, head, _, gain = ablation.differences(seen)
    assert head.endswith("| CT | edits | found |") and "| +1.000 [+1.000, +1.000] |" in gain
    assert "found" not in ablation.differences({2: scores(0, -1), 5: scores(0, -1)})[1]
