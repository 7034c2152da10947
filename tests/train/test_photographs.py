"""train.evaluation.photographs: colours of subjects, and the command on a tiny base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from customcontrast.adapter_files import save_adapter
from customcontrast.base_model import BaseModel
from customcontrast.specs import BASES
from customcontrast.visualize.sheets import GAP
from tests.support.tiny_models import random_adapter
from train.evaluation import evaluate, photographs
from train.evaluation.paired_renders import to_lab
from train.toyland import World


def test_the_dominant_color_is_that_of_most_of_the_subject() -> None:
    picture = Image.new("RGB", (60, 60), (0, 0, 255))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((10, 10, 49, 49), fill=(200, 30, 30))  # the subject,
    draw.rectangle((10, 10, 49, 19), fill=(250, 250, 250))  # a quarter of it white
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10:50] = True
    red, blue = (to_lab(np.array(c) / 255) for c in ((200, 30, 30), (0, 0, 255)))
    assert np.allclose(photographs.dominant_color(picture, mask), red, atol=0.1)
    assert np.allclose(photographs.dominant_color(picture, ~mask & False), blue, atol=0.1)  # nothing: all of it
    one = Image.new("RGB", (5, 5), (200, 30, 30))
    assert np.allclose(photographs.dominant_color(one, np.ones((5, 5), bool)), red, atol=0.1)


def test_differences_are_to_ones_own_photograph_and_to_the_others() -> None:
    own = np.array([[0.0, 0, 0], [10, 0, 0], [0, 20, 0]])
    drawn = np.stack([own + np.array((0, 0, 3)), own + np.array((0, 4, 0))], 1)  # two pictures of each
    mine, others = photographs.differences(own, drawn)
    assert mine.shape == (3, 2) and others.shape == (3, 2, 2) and np.allclose(mine, [[3, 4]] * 3)
    for n, p in np.ndindex(3, 2):
        apart = [np.linalg.norm(drawn[n, p] - own[k]) for k in range(3) if k != n]
        assert np.allclose(others[n, p], apart)


def test_the_nearest_render_of_a_kind_is_the_one_in_those_colors() -> None:
    world = replace(World.small(), colors=("red", "blue"))
    found = photographs.rendered_colors("cat", world)
    assert found.shape == (2 * len(photographs.SECOND), 3, 3)
    own = np.stack([found[0].mean(0), found[-1].mean(0)])  # a red and a blue photograph
    near = photographs.nearest_renders(own, ["cat", "cat"], world)
    assert near.shape == (2, 3) and near.max() < photographs.NEAR  # shading differs from place to place
    other = photographs.nearest_renders(own, ["cat", "cat"], replace(world, colors=("red",)))
    assert np.allclose(other[0], near[0]) and other[1].min() > photographs.NEAR


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two subjects: one whose noun the base draws, one of which it knows nothing."""
    for name, color in {"cat": (200, 40, 40), "lamp": (40, 180, 60)}.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        picture = Image.new("RGBA", (64, 64))  # its transparency is its mask
        ImageDraw.Draw(picture).ellipse((14, 10, 50, 54), fill=(*color, 255))
        picture.save(tmp_path / "pictures" / name / "0.png")
    return tmp_path / "pictures"


def test_the_command(
    tiny_base: BaseModel, headed_folder: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = save_adapter(random_adapter(tiny_base), tmp_path / "a.safetensors")
    options = ["photographs", "--base", "toyland", "--weights", str(headed_folder), "--adapter", str(adapter)]
    options += ["--folder", str(folder), "--world", "small", "--steps", "1", "--out", str(tmp_path / "out")]
    assert evaluate.main(options) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert table.startswith("| | to its photograph |") and "2 photographs, 3 pictures each" in table
    assert [row["subject"] for row in scores] == ["cat", "lamp"]
    assert scores[0]["kind"] == "cat" and scores[1]["kind"] in BASES["toyland"].kinds
    near = np.array([row["difference"] for row in scores]) <= photographs.NEAR
    assert np.array([row["rendered"] for row in scores]).shape == near.shape
    assert near.shape == (2, 3) and f"within ΔE 15 | {near.mean():.3f}" in table
    assert Image.open(tmp_path / "out" / "sheet.png").width == 2 * 4 * (160 + GAP) + GAP
    capsys.readouterr()
    assert evaluate.main([*options, "--limit", "1"]) == 2
    assert "give 2 or more" in capsys.readouterr().err
    assert evaluate.main([*options, "--limit", "0"]) == 2
    assert "--limit 0" in capsys.readouterr().err


def test_a_base_without_kinds_and_a_folder_that_is_none_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no kinds"):
        photographs.PhotographsConfig(tmp_path, base="sd15")
    with pytest.raises(ValueError, match="there is no such folder"):
        photographs.PhotographsConfig(tmp_path / "nowhere")
