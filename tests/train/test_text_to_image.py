"""The numbers of `python -m train.evaluation base`: ratios, distances, and a whole small run on a tiny base."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

from train.base.networks import label_values
from train.evaluation import evaluate, text_to_image
from train.evaluation.attribute_reader import AttributeReader, heldout_scenes, rendered, save_reader
from train.evaluation.text_to_image import TARGETS, kernel_distance, markdown, ratio_row, reached
from train.toyland import World, is_heldout

WORLD = World.small()


def test_ratio_is_of_the_means_and_its_interval_holds_it() -> None:
    generated, real = torch.tensor([1.0, 0, 1, 0] * 25), torch.tensor([1.0, 1, 1, 0] * 25)
    row = ratio_row("scene", generated, real)
    assert (row.generated, row.real, row.count) == (0.5, 0.75, 100)
    assert row.ratio == pytest.approx(2 / 3)
    assert 0.4 < row.low < row.ratio < row.high < 0.9
    assert ratio_row("scene", real, real).low == ratio_row("scene", real, real).high == 1.0
    with pytest.raises(ValueError, match="no prompt asks for 'scene'; raise --count"):
        ratio_row("scene", generated[:0], real[:0])


def test_columns_of_the_targets() -> None:
    assert [reached(x, TARGETS["species"]) for x in (0.93, 0.92, 0.8, 0.7)] == ["GPU", "GPU", "CPU", "missed"]


def test_distance_is_near_nothing_between_renders_and_far_from_noise() -> None:
    torch.manual_seed(0)
    reader = AttributeReader(label_values(WORLD)).eval()
    one, other = (rendered(heldout_scenes(WORLD, seed, 40), 48) for seed in ("one", "other"))
    noise = torch.randint(0, 256, one.shape, dtype=torch.uint8)
    near, far = kernel_distance(reader, one, other), kernel_distance(reader, one, noise)
    assert abs(near["mean"]) < far["mean"] / 5


def test_prompts_are_of_heldout_subjects_and_of_every_kind() -> None:
    scenes = heldout_scenes(WORLD, "spread", 60)
    assert all(is_heldout(p.subject) for s in scenes for p in s.placements)
    assert sum(len(s.placements) == 2 for s in scenes) == 12
    assert {s.background for s in scenes} == set(WORLD.backgrounds)
    assert {s.style for s in scenes} == set(WORLD.styles)


def test_a_whole_run_makes_table_scores_and_sheet_and_goes_on(
    tmp_path: Path, headed_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(text_to_image, "SHEET", text_to_image.SHEET[:2])
    for name, fewer in (("autoencoder_quality", {"count": 2}), ("seconds", {"rounds": 1})):
        monkeypatch.setattr(text_to_image, name, functools.partial(getattr(text_to_image, name), **fewer))
    reader = AttributeReader(label_values(WORLD))
    reader.quality = {"species": 0.5}
    save_reader(reader, tmp_path / "reader.safetensors", seen=0)
    command = ["base", "--weights", str(headed_folder), "--reader", str(tmp_path / "reader.safetensors")]
    command += ["--count", "24", "--steps", "2", "--out", str(tmp_path / "out")]
    assert evaluate.main(command) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    report = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {row["name"] for row in report["rows"]} >= set(TARGETS)
    assert all(name in table for name in TARGETS)
    assert (tmp_path / "out" / "sheet.png").stat().st_size > 1000
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "pictures").iterdir()}
    assert len(times) == 26
    assert evaluate.main(command) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "pictures").iterdir()} == times
    assert evaluate.main(["base", "--reader", str(tmp_path / "none")]) == 2
    assert "python -m train.evaluation.attribute_reader" in capsys.readouterr().err


def test_markdown_says_which_column_was_reached() -> None:
    rows = [ratio_row("scene", torch.ones(4), torch.ones(4))]
    quality = {"PSNR": 30.0, "SSIM": 0.9}
    facts = {
        "kernel distance": {"mean": 0.01, "deviation": 0.001},
        "kernel distance of other renders": {"mean": 0.0, "deviation": 0.001},
        "autoencoder": {96: quality},
        "seconds": {"first preview": 0.1, "picture": 0.8, "threads": 1},
    }
    about = {"prompts": 4, "seed": 0, "steps": 20, "guidance": 4.0, "weights": "abc"}
    assert "| 0.95 / 0.85: GPU |" in markdown(rows, facts, about)
