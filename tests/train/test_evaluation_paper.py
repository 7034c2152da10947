"""Evaluation as in the paper (section 4.1): backbones by name, every prompt, several seeds, Grounded SAM."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    Dinov2Config,
    Dinov2Model,
)

from customcontrast.base_model import BaseModel, load_base
from customcontrast.config import LocationConfig
from customcontrast.pipeline import CustomContrast
from customcontrast.segmentation import Segmentation
from customcontrast.subject import WholePicture
from tests.support.ip_files import random_ip_file
from tests.support.tiny_models import make_tokenizer, save_tiny_sd15
from tests.train.test_data_scale import write_views
from train.evaluation import atlas, evaluate, metrics, tasks
from train.evaluation.evaluation_config import EvaluationConfig
from train.evaluation.metrics import CATEGORIES, in_chunks

FACES = Path(tasks.__file__).with_name("prompts") / "faces.yaml"


@pytest.fixture
def subjects(tmp_path: Path) -> Path:
    for i, name in enumerate(("cat", "dog", "owl")):
        write_views(tmp_path / "own" / name, i, 3)
    return tmp_path / "own"


def test_every_prompt_of_a_file_is_asked_of_every_subject(subjects: Path) -> None:
    prompts = tasks.read_prompts(FACES)
    assert set(prompts) == set(CATEGORIES)
    cases = tasks.folder_cases(subjects, prompts=prompts)
    assert len(cases) == 3  # all of the folder, where no number is given
    for case in cases:
        assert len(case.tasks) == sum(map(len, prompts.values()))
        assert all(f"<{case.noun}>" in task.prompt for task in case.tasks)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("style: [a painting]", "must hold {} once"),
        ("mood: ['a sad {}']", "'mood' is no category"),
        ("style: a {}", "must be a list"),
        ("- a {}", "must be a mapping"),
        ("style: [", "cannot be read"),
        ("style: ['a {} {0}']", "must hold {} once"),
        ("style: ['{0} on a {}']", "must hold {} once"),
    ],
)
def test_a_file_of_prompts_that_is_none_is_one_sentence(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "prompts.yaml").write_text(text)
    with pytest.raises(ValueError, match=match):
        tasks.read_prompts(tmp_path / "prompts.yaml")


def test_references_are_found_as_generated_subjects_are(subjects: Path) -> None:
    """P9: with Grounded SAM the references are its too, not U²-Net's; one it does not find goes to the next picture."""
    asked: list[str] = []

    def find(picture: Image.Image, noun: str) -> Segmentation | None:
        asked.append(noun)
        if len(asked) == 1:
            return None
        mask = np.zeros((picture.height, picture.width), bool)
        mask[5:20, 5:20] = True
        return Segmentation(image=picture, mask=mask, score=0.9, method="grounded-sam")

    cases = tasks.folder_cases(subjects, count=2, find=find)
    assert [case.reference.method for case in cases] == ["grounded-sam"] * 2
    assert asked == ["cat", "cat", "dog"]


def test_pictures_go_through_an_encoder_in_portions() -> None:
    sizes: list[int] = []

    def encode(rows: list[int]) -> torch.Tensor:
        sizes.append(len(rows))
        return torch.tensor(rows)[:, None]

    assert in_chunks(encode, 4)(list(range(10)))[:, 0].tolist() == list(range(10)) and sizes == [4, 4, 2]
    assert "patch32" in metrics.CLIP and "dinov2" in metrics.DINO


def test_several_seeds_are_several_pictures_of_each_prompt(
    tiny_custom: CustomContrast, tiny_base: BaseModel, subjects: Path, tmp_path: Path
) -> None:
    cases = [
        case.__class__(case.subject, case.noun, case.reference, case.tasks[:1])
        for case in tasks.folder_cases(subjects, count=1)
    ]
    config = EvaluationConfig(steps=1, seed=7, seeds=(7, 8))
    find = lambda picture, noun: None  # noqa: E731
    made = list(evaluate.pictures(tiny_custom, cases, config, tmp_path / "out", find, with_subject=True))
    assert [m.seed for m in made] == [7, 8] and len(list((tmp_path / "out").iterdir())) == 2
    assert made[0].picture.tobytes() != made[1].picture.tobytes()
    one = replace(config, seeds=())
    again = list(evaluate.pictures(tiny_custom, cases, one, tmp_path / "out", find, with_subject=True))
    assert again[0].picture.tobytes() == made[0].picture.tobytes() and len(list((tmp_path / "out").iterdir())) == 2
    flat = lambda pictures: torch.tensor([[float(np.asarray(p).mean()), 1.0] for p in pictures])  # noqa: E731
    backbones = metrics.Backbones(lambda texts: torch.ones(len(texts), 2), flat, flat)
    assert [score.seed for score in evaluate.score(made, backbones)] == [7, 8]


@pytest.fixture
def published(tmp_path: Path) -> dict[str, str]:
    """A CLIP and a DINOv2 as they are published, at toy width: {field of EvaluationConfig: folder}."""
    tokenizer = make_tokenizer()
    towers = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    size = {"height": 24, "width": 24}
    text = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 32}
    vision = {"image_size": 24, "patch_size": 8}
    clip = CLIPConfig(text_config=towers | text, vision_config=towers | vision, projection_dim=16)
    pictures = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=size)
    CLIPModel(clip).save_pretrained(tmp_path / "clip")
    CLIPProcessor(pictures, tokenizer).save_pretrained(tmp_path / "clip")
    dino = Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=24, patch_size=8)
    Dinov2Model(dino).save_pretrained(tmp_path / "dino")
    BitImageProcessor(size={"shortest_edge": 24}, crop_size=size).save_pretrained(tmp_path / "dino")
    return {"clip": str(tmp_path / "clip"), "dino": str(tmp_path / "dino")}


def test_real_pictures_are_scored_by_published_backbones(
    tiny_base: BaseModel, subjects: Path, published: dict[str, str]
) -> None:
    """A reference shown again is its own likeness; nobody reads edits off real pictures, and the judges are named."""
    bench = evaluate.Bench.of(tiny_base, EvaluationConfig(benchmark=str(subjects), limit=2, **published))
    made = [
        evaluate.Made(case, task, case.reference.image, case.reference) for case in bench.cases for task in case.tasks
    ]
    scores = evaluate.score(made, bench.backbones, bench.others)
    assert [score.ci for score in scores] == pytest.approx([1.0] * len(made), abs=1e-5)
    assert [score.di for score in scores] == pytest.approx([1.0] * len(made), abs=1e-5)
    assert len({round(score.ct, 6) for score in scores}) > 1
    assert {(score.edit, score.leaks, score.ir, score.rank) for score in scores} == {(None, None, None, -1)}
    table = metrics.markdown({"adapter": scores}, bench.backbones.names, bench.notes)
    assert f"- DI: {published['dino']}, segmented" in table and f"- CT: {published['clip']}\n" in table


def test_real_views_are_grouped_by_sub_folder_and_file_name(subjects: Path) -> None:
    """P16: Fig. 7 of photographs: view k has the same name in every sub-folder."""
    (subjects / "owl" / "002.png").unlink()
    pictures, names = atlas.from_folder(subjects, 24, 3, 24)
    assert names == ["cat", "dog"] and pictures.shape == (2, 3, 3, 24, 24)
    fewer, names = atlas.from_folder(subjects, 24, 2, 24)
    assert names == ["cat", "dog", "owl"] and fewer.shape[:2] == (3, 2)
    assert not torch.equal(pictures[0], pictures[1])
    with pytest.raises(ValueError, match="one sub-folder for each subject"):
        atlas.from_folder(subjects / "cat", 24, 3, 24)
    for name in ("dog", "cat"):
        shutil.rmtree(subjects / name)
    with pytest.raises(ValueError, match="sub-folders share"):
        atlas.from_folder(subjects, 24, 3, 24)
    assert "subjects of views from 3 views" in atlas.table({}, 2, 3, where="views")


@pytest.mark.parametrize("module", ["train.evaluation.readers", "train.evaluation.attribute_reader"])
def test_a_world_that_is_none_is_one_sentence(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    with pytest.raises(SystemExit):
        importlib.import_module(module).main(["--world", "moon"])
    assert "--world is 'moon'; choose one of" in capsys.readouterr().err
    assert evaluate.main(["base", "--world", "moon"]) == 2
    assert "world is 'moon'" in capsys.readouterr().err


def test_a_published_ip_adapter_is_evaluated(
    subjects: Path, published: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The true IP-Adapter-plus of Table 1: a file in the published layout, from the command line to the table."""
    save_tiny_sd15(tmp_path / "sd15")
    base = load_base("sd15", weights=tmp_path / "sd15", device="cpu")
    file = random_ip_file(tmp_path / "plus.safetensors", "plus", base.unet, base.image_encoder.config)
    options = ["--base", "sd15", "--weights", str(tmp_path / "sd15"), "--adapter", str(file), "--steps", "2"]
    judges = [word for name, folder in published.items() for word in (f"--{name}", folder)]
    (tmp_path / "prompts.yaml").write_text("style: ['a painting of a {}']")
    where = ["--benchmark", str(subjects), "--limit", "1", "--out", str(tmp_path / "out")]
    where += ["--prompts", str(tmp_path / "prompts.yaml")]
    assert evaluate.main(["adapter", *options, *judges, *where]) == 0
    assert "| adapter" in capsys.readouterr().out and list((tmp_path / "out" / "pictures" / "adapter").glob("*.png"))
    about = json.loads((tmp_path / "out" / "scores.json").read_text())["about"]
    assert (about["references"], about["location_masks"]) == ("cut", True)


def test_a_whole_reference_is_shown_as_it_is(tiny_custom: CustomContrast, subjects: Path, tmp_path: Path) -> None:
    """IP-Adapter as its authors use it: the picture uncut, subjects not located; recorded, and never the cut-out's."""
    case = tasks.folder_cases(subjects, count=1)[0]
    case = replace(case, tasks=case.tasks[:1])
    find = lambda picture, noun: None  # noqa: E731
    cut = EvaluationConfig(steps=1, seed=7)
    strict = replace(cut, whole_references=True, location_masks=False)
    made = {}
    for config in (cut, strict, cut):
        (made[config],) = evaluate.pictures(tiny_custom, [case], config, tmp_path / "out", find, with_subject=True)
    assert len(list((tmp_path / "out").iterdir())) == 2
    located = LocationConfig(enabled=False)
    subject = tiny_custom.subject(WholePicture(case.reference.image), case.noun)
    wanted = tiny_custom.generate(case.tasks[0].prompt, subject, num_inference_steps=1, seed=7, location=located)
    assert made[strict].picture.tobytes() == wanted.images[0].tobytes() != made[cut].picture.tobytes()
    assert evaluate.how_shown(strict) == {"references": "whole", "location_masks": False}
    assert "the whole picture is shown" in evaluate.strictness(strict)[0] and not evaluate.strictness(cut)
