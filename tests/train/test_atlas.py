"""Figure 7's numbers: analysis of variance against its definition, neighbours, and the command on tiny classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from customcontrast.base_model import BaseModel
from customcontrast.errors import AtlasError
from customcontrast.pipeline import CustomContrast
from customcontrast.toyland.feature_atlas import Atlas, encoder_features
from train.evaluation import atlas as features
from train.toyland import World


def test_variance_is_split_as_the_features_were_made() -> None:
    g = torch.Generator().manual_seed(0)
    subject, view = torch.randn(12, 1, 8, generator=g), torch.randn(1, 5, 8, generator=g)
    assert features.explained(subject.expand(12, 5, 8)).subject == pytest.approx(1)
    assert features.explained(view.expand(12, 5, 8)).view == pytest.approx(1)
    both = features.explained(subject + view)
    assert both.interplay == pytest.approx(0, abs=1e-9) and both.subject > 0 and both.view > 0


def test_variance_against_loops() -> None:
    x = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(1)).double()
    grand = x.mean((0, 1))
    total = sum(((x[s, v] - grand) ** 2).sum() for s in range(4) for v in range(3))
    subject = sum(((x[s].mean(0) - grand) ** 2).sum() for s in range(4) for _ in range(3)) / total
    view = sum(((x[:, v].mean(0) - grand) ** 2).sum() for v in range(3) for _ in range(4)) / total
    found = features.explained(x)
    assert found.subject == pytest.approx(subject.item()) and found.view == pytest.approx(view.item())
    assert found.subject + found.view + found.interplay == pytest.approx(1)


def test_neighbours_tell_identity_from_view() -> None:
    g = torch.Generator().manual_seed(2)
    noise = 0.01 * torch.randn(10, 4, 16, generator=g)
    assert features.report(torch.randn(10, 1, 16, generator=g) + noise).neighbour == 1
    assert features.report(torch.randn(1, 4, 16, generator=g) + noise).neighbour < 0.5
    many = features.report(torch.randn(40, 4, 16, generator=g))
    assert many.neighbour < 0.2 and many.chance == pytest.approx(3 / 159)


def test_common_direction_is_all_or_nothing_at_its_ends() -> None:
    g = torch.Generator().manual_seed(4)
    one = torch.randn(16, generator=g) * torch.rand(6, 4, 1, generator=g).add(0.1)
    assert features.report(one).common == pytest.approx(1)
    assert features.report(torch.cat([one, -one])).common == pytest.approx(0, abs=1e-6)


def test_a_view_is_the_same_for_every_subject() -> None:
    pictures, ids = features.across_views(3, 2, World.small(), crop=24)
    assert pictures.shape == (3, 2, 3, 24, 24) and len(set(ids)) == 3
    assert not torch.equal(pictures[0, 0], pictures[0, 1]) and not torch.equal(pictures[0, 0], pictures[1, 0])
    assert torch.equal(pictures, features.across_views(3, 2, World.small(), crop=24)[0])


def test_features_are_of_unit_length_and_see_no_neighbour(tiny_custom: CustomContrast) -> None:
    base: BaseModel = tiny_custom.base
    pictures = torch.randint(0, 255, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    together = features.picture_features(base, tiny_custom.adapter, pictures, times=(100, 900))
    alone = torch.cat(
        [features.picture_features(base, tiny_custom.adapter, p[None], times=(100, 900)) for p in pictures]
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(5))
    assert together.shape[1] == 2 * tiny_custom.adapter.config.width


def test_the_command_writes_table_pictures_and_json(tmp_path: Path) -> None:
    from customcontrast.specs import BASES

    file = Path(BASES["toyland"].weights) / "adapter.safetensors"
    arguments = ["--adapter", f"ours={file}", "--subjects", "4", "--views", "3", "--out", str(tmp_path)]
    arguments += ["--atlas", str(tmp_path / "features.safetensors")]
    assert features.main(arguments) == 0
    numbers = json.loads((tmp_path / "features.json").read_text())
    assert set(numbers["reports"]) == {"ours", "CLIP image embedding"} and len(numbers["subjects"]) == 4
    known = Atlas.read(tmp_path / "features.safetensors")
    assert known.features.shape[0] == 12 and known.pictures.shape[:3] == (4, 64, 64) and len(known.names) == 4
    for i in (0, 5, 11):  # a known picture is nearest to its own subject
        assert known.locate(known.features[i])[1][0] == (known.subjects[i], pytest.approx(1, abs=1e-4))
    assert "| ours |" in (tmp_path / "table.md").read_text() and (tmp_path / "ours.png").stat().st_size > 5000


def small_atlas() -> Atlas:
    """Two subjects, three views each, at right angles."""
    features = np.repeat(np.eye(2, 4, dtype=np.float32), 3, axis=0)
    places = np.array([[0, 0], [0, 1], [1, 0], [9, 9], [9, 10], [10, 9]], np.float32)
    return Atlas(features, places, np.array([0, 0, 0, 1, 1, 1]), np.zeros((2, 8, 8, 3), np.uint8), ("bear", "owl"))


def test_a_new_subject_lies_by_its_neighbours() -> None:
    known = small_atlas()
    place, near = known.locate(np.array([3.0, 0, 0, 0], np.float32))  # its length does not matter
    np.testing.assert_allclose(place, known.places[:3].mean(0), atol=1e-4)
    assert near == [(0, 1.0), (1, 0.0)]
    middle, _ = known.locate(np.array([1.0, 1.0, 0, 0], np.float32))
    weights = np.array([1, 1, 1, 1, 1]) / 5  # five of six, all equally alike
    np.testing.assert_allclose(middle, weights @ known.places[:5], atol=1e-4)
    with pytest.raises(AtlasError, match="another adapter"):
        known.locate(np.ones(5, np.float32))


def test_an_atlas_is_read_as_written_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "features.safetensors"
    with pytest.raises(AtlasError, match=r"--atlas features.safetensors"):
        Atlas.read(file)
    known = small_atlas()
    known.write(file)
    again = Atlas.read(file)
    assert again.names == known.names and all(
        np.array_equal(getattr(again, key), getattr(known, key))
        for key in ("features", "places", "subjects", "pictures")
    )
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(AtlasError, match="damaged"):
        Atlas.read(file)


def test_several_references_make_one_feature(tiny_custom: CustomContrast) -> None:
    f_I = torch.randn(2, 6, tiny_custom.adapter.config.width, generator=torch.Generator().manual_seed(4))
    joined = encoder_features(tiny_custom.adapter, f_I.reshape(1, 12, -1))
    assert joined.shape == (1, 2 * tiny_custom.adapter.config.width)
    assert joined.norm().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("wrong", [["--adapter", "file"], ["--adapter", "a=b", "--views", "1"]])
def test_wrong_arguments_are_named(wrong: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        features.main(wrong)
    assert wrong[-2] in capsys.readouterr().err


def test_a_missing_adapter_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert features.main(["--adapter", f"x={tmp_path / 'none.safetensors'}", "--subjects", "2", "--views", "2"]) == 2
    assert "none.safetensors" in capsys.readouterr().err


def test_parts_are_what_the_losses_and_the_denoiser_see(tiny_custom: CustomContrast) -> None:
    base, adapter = tiny_custom.base, tiny_custom.adapter
    pictures = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    made = features.part_features(base, adapter, pictures, times=(100, 900))
    assert set(made) == {"visual CLS", "textual CLS", "visual tokens", "S+"}
    c = adapter.config
    assert made["S+"].shape == (3, c.num_layers * c.text_queries * sum(c.text_widths))
    assert made["visual tokens"].shape == (3, c.num_layers * c.visual_tokens * c.width)
    for x in made.values():
        torch.testing.assert_close(x.norm(dim=1), torch.ones(3))
    one_time = features.part_features(base, adapter, pictures, times=(100,))
    torch.testing.assert_close(one_time["visual CLS"], made["visual CLS"])  # v knows no t
    assert not torch.allclose(one_time["S+"], made["S+"])
    both = features.unit(torch.cat([made["visual CLS"], one_time["textual CLS"]], dim=1))
    torch.testing.assert_close(both, features.picture_features(base, adapter, pictures, times=(100,)))
