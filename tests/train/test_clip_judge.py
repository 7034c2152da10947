"""The CLIP that judges CT: what it is taught, that it learns it, that a file of it comes back and is used."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import to_pil_image
from transformers import CLIPTokenizer

from customcontrast.specs import WEIGHTS
from train.base.networks import label_values
from train.evaluation import attribute_reader, clip_judge, readers
from train.evaluation.attribute_reader import AttributeReader, Shape
from train.evaluation.clip_judge import (
    ClipJudge,
    SpreadPictures,
    captioned,
    captions,
    changed,
    contrast,
    judge_loss,
    load_judge,
    main,
    measure,
    save_judge,
    spread_scene,
    train_judge,
)
from train.toyland import World, attributes, describe, sample_scene

WORLD = World.demo()
TINY = Shape(side=24, width=16, widths=(1, 2), patch=4, norm="batch")


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(WEIGHTS / "toyland2" / "tokenizer")


@pytest.fixture
def judge(tokenizer: CLIPTokenizer) -> ClipJudge:
    torch.manual_seed(0)
    return ClipJudge(AttributeReader(label_values(WORLD), TINY), tokenizer)


@pytest.mark.parametrize("words", ["noun", "full"])
def test_labels_are_enough_to_describe_a_scene(words: str) -> None:
    rng = random.Random(0)
    for scene in (sample_scene(rng, WORLD) for _ in range(40)):
        assert describe(captioned(attributes(scene)), None, words).text == describe(scene, None, words).text


@pytest.mark.parametrize("full", [False, True])
def test_one_thing_is_changed_and_the_caption_says_so(full: bool) -> None:
    rng, words = random.Random(1), "full" if full else "noun"
    for scene in (spread_scene(rng, WORLD) for _ in range(100)):
        other = changed(scene, rng, WORLD, full)
        assert describe(other, None, words).text != describe(scene, None, words).text
        before, after = attributes(scene), attributes(other)
        differ = [name for name in ("background", "style") if before[name] != after[name]]
        for a, b in zip(before["subjects"], after["subjects"], strict=True):
            differ += [name for name in a if a[name] != b[name] and name not in ("id", "accessory_color")]
            differ += ["accessory_color"] * (a["accessory"] == b["accessory"] and a != b and a["id"] == b["id"])
        assert len(set(differ) - {"accessory_color"}) <= 1 and differ
        assert len({p.subject.species for p in other.placements}) == len(scene.placements)


def test_a_picture_has_one_right_caption_and_others_that_are_not() -> None:
    rng = random.Random(2)
    rows = [captions(attributes(spread_scene(rng, WORLD)), rng, WORLD, 3) for _ in range(30)]
    assert all(len(row) == 4 and row[0] not in row[1:] for row in rows)


def test_scenes_to_learn_from_have_every_edit_in_plenty() -> None:
    rng = random.Random(3)
    seen = [attributes(spread_scene(rng, WORLD)) for _ in range(400)]
    for name, options in (("shape", WORLD.shapes), ("accessory", WORLD.accessories)):
        found = [row[name] for labels in seen for row in labels["subjects"]]
        assert min(found.count(option) for option in options) > 0.1 * len(found)


def test_contrast_is_cheap_at_the_own_text_and_dear_at_a_changed_one() -> None:
    texts, others = torch.eye(8)[:3], torch.eye(8)[3:6][:, None]
    none = torch.zeros(3, 3, dtype=torch.bool)
    right, wrong = (float(contrast(p, texts, others, none, 20.0)) for p in (texts, others[:, 0]))
    assert right < 1e-3 < 5 < wrong
    even = float(contrast(torch.zeros(3, 8), texts, others, none, 20.0))
    assert even == pytest.approx((math.log(4) + math.log(3)) / 2, abs=1e-5)  # of three texts and one changed; of three


def test_the_same_words_of_two_pictures_are_no_mistake() -> None:
    texts, others = torch.eye(8)[[0, 0, 1]], torch.eye(8)[3:6][:, None]
    same = torch.tensor([[a == b for b in (0, 0, 1)] for a in (0, 0, 1)])
    assert float(contrast(texts, texts, others, same, 20.0)) < 1e-3
    assert float(contrast(texts, texts, others, torch.zeros_like(same), 20.0)) > 0.3


def test_it_learns(judge: ClipJudge) -> None:
    """A minute fraction of a training: the loss on its own pictures falls."""
    pictures = SpreadPictures(WORLD, TINY.side, [], 16)
    images, labels = pictures.batch(16)

    def loss() -> float:
        judge.train()
        with torch.no_grad():
            return float(judge_loss(judge, images.float() / 255, labels, random.Random(0), WORLD))

    before, seen = loss(), train_judge(judge, pictures, 0.08, batch=32, rate=3e-3)
    assert seen >= 32 and loss() < before
    assert not any(p.requires_grad for p in judge.parameters())


def test_a_file_of_it_comes_back_as_it_was(judge: ClipJudge, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    judge.eval().told, judge.reader.quality = 0.5, {"style": 0.25}
    save_judge(judge, tmp_path / "judge.safetensors", "demo", 3)
    again = load_judge(tmp_path / "judge.safetensors", tokenizer)
    assert (again.told, again.reader.quality) == (0.5, {"style": 0.25})
    pictures = [to_pil_image(torch.rand(3, size, 30)) for size in (24, 30)]  # of different sizes
    ours, theirs = judge.spaces(), again.spaces()
    assert F.cosine_similarity(ours.image(pictures), theirs.image(pictures)).min() > 0.999
    texts = ["a cat in the snow", "a tall robot wearing a red hat on the beach, cartoon style"]
    assert F.cosine_similarity(ours.text(texts), theirs.text(texts)).min() > 0.999
    assert torch.allclose(theirs.text(texts)[:1], theirs.text(texts[:1]), atol=1e-5)  # alone as beside a longer one


def test_a_file_that_is_none_is_refused(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--clip .*clip_judge"):
        load_judge(tmp_path / "none.safetensors", tokenizer)
    (tmp_path / "text.safetensors").write_text("no tensors")
    for file in (tmp_path / "text.safetensors", WEIGHTS / "toyland2" / "readers.safetensors"):
        with pytest.raises(ValueError, match="no CLIP judge"):
            load_judge(file, tokenizer)


def test_what_is_measured_is_a_share_and_chance_for_one_that_knows_nothing(judge: ClipJudge) -> None:
    assert 0 <= measure(judge.eval(), WORLD, count=48) < 0.5


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--pool", str(tmp_path), "--minutes", "0.01"]) == 2
    assert "there is no shard" in capsys.readouterr().err


@pytest.mark.parametrize("command", [clip_judge, attribute_reader, readers])
@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "ten"])
def test_no_time_is_told_before_anything_is_rendered(
    command: ModuleType, minutes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main([f"--minutes={minutes}"])
    assert "give a number of minutes above 0" in capsys.readouterr().err
