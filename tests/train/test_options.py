"""What a command line becomes: one frozen configuration, whose defaults are the command's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from train.common.options import from_options
from train.data import prepare
from train.data.shards import FilterConfig
from train.evaluation import atlas, evaluate, paired_renders, text_to_image, two_subjects
from train.evaluation.evaluation_config import EvaluationConfig
from train.evaluation.grounded_sam import DETECTOR, SAM
from train.experiments import ablation, baselines


class Seen:
    """Stands in for the function that does the work; keeps its configuration."""

    config: Any = None

    def __call__(self, config: object) -> str:
        self.config = config
        return ""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    for module, name in (
        (evaluate, "evaluate_adapter"),
        (text_to_image, "evaluate_base"),
        (two_subjects, "evaluate_pairs"),
        (paired_renders, "evaluate_paired"),
        (atlas, "compare"),
        (ablation, "run"),
        (baselines, "run"),
    ):
        monkeypatch.setattr(module, name, found)
    return found


def test_a_bare_command_is_its_default_configuration(seen: Seen, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # `baselines` makes its folder
    for command, default in (
        ("adapter", EvaluationConfig()),
        ("base", text_to_image.BaseEvaluationConfig()),
        ("pairs", two_subjects.TwoSubjectsConfig()),
        ("paired", paired_renders.PairedConfig()),
    ):
        assert evaluate.main([command]) == 0
        assert seen.config == default, command
    for module, default in ((ablation, ablation.AblationConfig()), (baselines, baselines.BaselinesConfig())):
        assert module.main([]) == 0
        assert seen.config == default, module
    assert atlas.main(["--adapter", "ours=a.safetensors", "--adapter", "b=c"]) == 0
    assert seen.config == atlas.AtlasConfig(adapter=("ours=a.safetensors", "b=c"))


def test_options_reach_their_fields(seen: Seen, tmp_path: Path) -> None:
    evaluate.main("adapter --seeds 3 4 3 --limit 2 --out there --subject-scale 0.5 --benchmark dogs".split())
    expected = EvaluationConfig(seeds=(3, 4, 3), limit=2, out=Path("there"), subject_scale=0.5, benchmark="dogs")
    assert seen.config == expected and seen.config.picture_seeds == [3, 4]
    assert EvaluationConfig(seed=5).picture_seeds == [5]
    arguments = ["--set", "optim.batch=2", "--set", "seed=1", "--ids", "0", "5", "--denoising", "7"]
    assert ablation.main([*arguments, "--out", str(tmp_path)]) == 0
    assert seen.config == ablation.AblationConfig(
        tmp_path, overrides=("optim.batch=2", "seed=1"), ids=(0, 5), denoising=7
    )


@pytest.mark.parametrize(
    ("words", "models"),
    [
        ([], ()),
        (["--grounding"], (DETECTOR, SAM)),
        (["--grounding", "mine"], ("mine", SAM)),
        (["--grounding", "mine", "too"], ("mine", "too")),
    ],
)
def test_grounding_takes_none_one_or_two_models(seen: Seen, words: list[str], models: tuple[str, ...]) -> None:
    assert evaluate.main(["adapter", *words]) == 0
    assert seen.config.grounding == models


def test_three_models_of_grounding_are_one_sentence(seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["adapter", "--grounding", "a", "b", "c"]) == 2
    assert "--grounding a b c: give a Grounding DINO and a SAM" in capsys.readouterr().err
    assert seen.config is None


def test_photographs_are_packed_as_the_command_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: list[prepare.PackingConfig] = []
    monkeypatch.setattr(prepare, "_prepare_shards", lambda config: kept.append(config) or 0)
    command = ["prepare", "--source", "folder", "--input", "a", "--output", "b"]
    assert prepare.main(command) == 0
    assert prepare.main([*command, "--part", "3/16", "--min-side", "64"]) == 0
    plain = prepare.PackingConfig("folder", Path("a"), Path("b"))
    assert kept[0] == plain and plain.min_side >= FilterConfig().min_side
    assert kept[1] == prepare.PackingConfig("folder", Path("a"), Path("b"), min_side=64, part=(3, 16))


def test_an_option_without_a_field_is_named() -> None:
    options = argparse.Namespace(benchmark="toyland", benchmrk="dogs")
    with pytest.raises(TypeError, match="EvaluationConfig has no field 'benchmrk'"):
        from_options(EvaluationConfig, options)
    assert from_options(EvaluationConfig, options, leave=["benchmrk"], seeds=[1]) == EvaluationConfig(seeds=(1,))
