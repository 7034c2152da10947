"""Pictures against renders of the same scenes: the measures by hand, and the command on a tiny base."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from customcontrast.base_model import load_base
from customcontrast.visualize.sheets import GAP
from train.evaluation import paired_renders, readers
from train.evaluation.drawings import base_digest
from train.toyland import World


def test_lab_of_known_colours() -> None:
    rgb = np.array([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0.5, 0.5, 0.5]])
    wanted = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [53.39, 0, 0]]
    assert np.allclose(paired_renders.to_lab(rgb), wanted, atol=0.05)


def test_a_render_against_itself_is_perfect_and_a_shifted_one_is_not() -> None:
    rng = np.random.default_rng(0)
    real = np.asarray(Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).resize((48, 48)))
    mask = np.zeros((48, 48), bool)
    mask[10:40, 12:30] = True
    same = paired_renders.compare("a bear", real, real, mask, mask, mask)
    assert (same.iou, same.color, same.pixels) == (1, 0, 0) and same.ssim == pytest.approx(1)
    moved = paired_renders.compare("a bear", np.roll(real, 6, 1), real, np.roll(mask, 6, 1), mask, mask)
    assert moved.iou == pytest.approx(12 / 24) and moved.pixels > moved.color > 0 and moved.ssim < 0.9
    assert paired_renders.iou(mask & ~mask, mask & ~mask) == 1


def test_frechet_distance_of_normal_distributions() -> None:
    """|μ₁ − μ₂|² + Σ (σ₁ − σ₂)² for independent coordinates."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, (20_000, 3)), rng.normal(2, 3, (20_000, 3))
    assert paired_renders.frechet(a, b) == pytest.approx(3 * 4 + 3 * 4, rel=0.05)
    assert paired_renders.frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_the_critic_tells_only_what_can_be_told() -> None:
    rng = np.random.default_rng(2)
    a, b, c = rng.normal(0, 1, (400, 8)), rng.normal(0, 1, (400, 8)), rng.normal(2, 1, (400, 8))
    assert 0.4 < paired_renders.critic(a, b) < 0.6 and paired_renders.critic(a, c) > 0.95


def test_the_critic_of_pixels_sees_what_is_smudged() -> None:
    """The same noise told apart from another's is a coin's throw; smoothed, it is told."""
    rng = np.random.default_rng(2)
    noise = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)) for _ in range(240)]
    smooth = [picture.filter(ImageFilter.GaussianBlur(1)) for picture in noise[:80]]
    few = {"steps": 40, "batch": 16}
    assert paired_renders.pixel_critic(smooth, noise[80:160], **few) > 0.95
    assert 0.3 < paired_renders.pixel_critic(noise[80:160], noise[160:], **few) < 0.7


def test_scenes_are_held_out_and_the_seeds() -> None:
    from train.toyland import is_heldout

    scenes = paired_renders.heldout(World.demo(), 0, 6)
    assert all(is_heldout(s.placements[0].subject) and len(s.placements) == 1 for s in scenes)
    assert scenes == paired_renders.heldout(World.demo(), 0, 6) != paired_renders.heldout(World.demo(), 1, 6)


def test_the_command_writes_scores_table_and_sheet(exported_demo: Path, tmp_path: Path) -> None:
    judge = readers.Readers().eval()
    readers.save_readers(judge, tmp_path / "readers.safetensors", "demo")
    options = ["--weights", str(exported_demo), "--readers", str(tmp_path / "readers.safetensors"), "--count", "24"]
    table = paired_renders.paired_command([*options, "--steps", "1", "--out", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert len(report["pairs"]) == 24 and "critic's accuracy" in table
    assert report["scores"]["ΔE by pixel, median"] > 0
    sheet = Image.open(tmp_path / "out" / "sheet.png")
    assert sheet.size == (8 * (32 + GAP) + GAP, 6 * (32 + GAP) + GAP)


def test_pictures_of_other_layouts_are_made_anew(exported_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation finds its pictures again by what made them; the prior is a part of it."""
    base = load_base("toyland2", exported_demo, "cpu")
    before = base_digest(base)
    assert before == base_digest(base)
    monkeypatch.setattr("customcontrast.layout.FACING", 5)
    assert before != base_digest(base)


def test_a_base_without_layout_cannot_be_paired(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="takes no layout"):
        paired_renders.paired_command(["--base", "toyland", "--weights", str(tiny_folder), "--count", "2"])
