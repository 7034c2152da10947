"""Linear probes of what the image encoder tells."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from train.evaluation import probe
from train.evaluation.evaluate import main
from train.toyland import World, sample_subject


def test_what_features_hold_is_read_and_what_they_lack_is_not() -> None:
    rng, noise = random.Random(0), np.random.default_rng(0)
    subjects = [sample_subject(rng, World.demo()) for _ in range(150)]
    colors = sorted({s.color_1 for s in subjects})
    shown = np.eye(len(colors))[[colors.index(s.color_1) for s in subjects for _ in range(probe.VIEWS)]]
    features = {"layer 1": shown + 0.05 * noise.normal(size=shown.shape), "layer 2": noise.normal(size=(300, 8))}
    found = probe.accuracies(features, subjects)
    assert found["color_1"]["layer 1"] > 0.95 > 0.4 > found["color_1"]["layer 2"]
    assert found["eyes"]["layer 1"] < 0.6  # three kinds of eyes, of which the colour tells nothing


def test_a_layer_is_summed_up_with_its_places() -> None:
    states = torch.zeros(2, 1 + 36, 5)
    states[1, 1:7] = 1.0  # the uppermost of six rows of patches
    rows = probe.summary(states)
    assert rows.shape == (2, 3 * 5 + 9 * 5) and rows[0].abs().max() == 0
    grid = rows[1, 15:].view(5, 3, 3)
    assert torch.allclose(grid[:, 0], torch.tensor(0.5)) and grid[:, 1:].abs().max() == 0


def test_the_command_writes_a_table(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = f"--base toyland --weights {tiny_folder} --world small --count 50 --out {tmp_path}"
    assert main(["probe", *told.split()]) == 0
    table = capsys.readouterr().out.strip()
    assert table == (tmp_path / "table.md").read_text().strip() and "| pattern |" in table and "embedding" in table
    assert main(["probe", "--count", "3"]) == 2
    assert "--count 3" in capsys.readouterr().err
