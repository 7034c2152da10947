"""The reader of attributes: its targets, what counts as right, and that colourless styles are colourless."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from train.base.networks import label_values
from train.evaluation import attribute_reader
from train.evaluation.attribute_reader import (
    COLORLESS,
    IGNORE,
    SHAPES,
    AttributeReader,
    Shape,
    correct,
    load_reader,
    reader_loss,
    save_reader,
    shows,
    targets,
)
from train.evaluation.tasks import ceiling, toyland_cases
from train.toyland import World, attributes, render, sample_scene, sample_subject

WORLD = World.small()
VALUES = label_values(WORLD)


def scene(style: str = "photo", two: bool = False) -> object:
    rng = random.Random(3)
    subjects = [sample_subject(rng, WORLD)]
    while two and len(subjects) < 2:
        other = sample_subject(rng, WORLD)
        subjects += [other] if other.species != subjects[0].species else []
    return sample_scene(rng, WORLD, subjects=tuple(subjects), style=style, background="studio", accessory="hat")


def test_labels_apply_where_they_can_be_seen() -> None:
    wanted = targets([attributes(scene()), attributes(scene("sketch")), attributes(scene(two=True))], VALUES)
    assert (wanted["color_1"] != IGNORE).tolist() == [True, False, False]
    assert (wanted["pattern"] != IGNORE).tolist() == [True, True, False]
    assert wanted["species"].sum(1).tolist() == [1, 1, 2]


def test_truth_is_right_and_cheap_and_its_opposite_is_neither() -> None:
    wanted = targets([attributes(scene()), attributes(scene(two=True))], VALUES)
    truth = {}
    for name, options in VALUES.items():
        index = wanted[name].clamp_min(0) if name != "species" else None
        one = torch.nn.functional.one_hot(index, len(options)) if index is not None else wanted[name]
        truth[name] = 40.0 * one.float() - 20
    wrong = {name: -x for name, x in truth.items()}
    right, none = correct(truth, wanted), correct(wrong, wanted)
    assert all(x[0] == 1 for x in right.values()) and all(x[0] == 0 for x in none.values())
    assert right["pattern"][1].isnan() and right["species"][1] == 1  # of two subjects, which has the pattern?
    assert reader_loss(truth, wanted) < 1e-3 < reader_loss(wrong, wanted)


@pytest.mark.parametrize("style", WORLD.styles)
def test_colorless_styles(style: str) -> None:
    image = render([scene(style)], 48).images[0].float() / 255
    assert (float((image.amax(0) - image.amin(0)).max()) < 0.2) == (style in COLORLESS)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_reader_takes_any_size_is_small_and_comes_back_as_it_was(shape: Shape, tmp_path: Path) -> None:
    reader, pixels = AttributeReader(VALUES, shape), torch.rand(2, 3, 64, 64)
    assert sum(p.numel() for p in reader.parameters()) < 3e6
    assert reader(pixels)["style"].shape == (2, len(WORLD.styles))
    reader.quality = {"style": 0.5}
    save_reader(reader.eval(), tmp_path / "reader.safetensors", 2)
    again = load_reader(tmp_path / "reader.safetensors")
    assert again.shape == shape and again.quality == reader.quality and again.values == VALUES
    assert torch.allclose(again(pixels)["species"], reader(pixels)["species"], atol=5e-3)


def test_what_is_wanted_of_a_picture_is_read_or_not() -> None:
    reader = AttributeReader(VALUES).eval()
    for name, head in reader.heads.items():
        torch.nn.init.zeros_(head.weight)
        head.bias.data = torch.arange(len(VALUES[name]), 0, -1.0)  # whatever it sees, it says the first value
    first, other = ({name: values[i] for name, values in VALUES.items()} for i in (0, 1))
    pictures = [to_pil_image(torch.rand(3, 40, 40)) for _ in range(4)]
    style, both = {"style": first["style"]}, {"style": first["style"], "shape": other["shape"]}
    found = shows(reader, pictures, [style, both, {}, {"shape": first["shape"]}])
    assert found == [{"style": 1.0}, {"style": 1.0, "shape": 0.0}, {}, {"shape": 1.0}]
    with pytest.raises(ValueError, match="never taught style 'claymation'"):
        shows(reader, pictures[:1], [{"style": "claymation"}])


def test_the_shipped_reader_sees_the_edits_of_the_benchmark() -> None:
    reader = attribute_reader.load_reader()
    assert reader.values == VALUES
    rows = [(case, task) for case in toyland_cases(12, WORLD) for task in case.tasks if task.edit]
    renders = [ceiling(case, task, 96)[0] for case, task in rows]
    asked = [task.edit for _, task in rows]
    assert np.mean([all(row.values()) for row in shows(reader, renders, asked)]) > 0.7
    others = asked[-4:] + asked[:-4]  # what was asked of another subject
    told = [all(row.values()) for row in shows(reader, renders, others)]
    wrong = [v for v, a, b in zip(told, asked, others, strict=True) if a != b]
    assert np.mean(wrong) < 0.2


def test_new_renders_join_the_pictures_and_are_in_the_batch_they_came_with(tmp_path: Path) -> None:
    world = World.demo()
    pictures = attribute_reader.Pictures(world, 24, [], fresh=3)
    images, labels = pictures.batch(8)
    assert images.shape == (3, 3, 24, 24) and len(labels) == 3  # nothing is there before
    again, more = pictures.batch(8)
    assert len(pictures.images) == len(pictures.labels) == 6 and again.shape[0] == 8
    assert more[-3:] == pictures.labels[3:] and torch.equal(again[-3:], torch.stack(pictures.images[3:]))
    assert all(row in pictures.labels[:3] for row in more[:-3])
    with pytest.raises(ValueError, match="fresh is 0"):
        attribute_reader.Pictures(world, 24, [], fresh=0)
    with pytest.raises(FileNotFoundError, match="no shard"):
        attribute_reader.Pictures(world, 24, [tmp_path], fresh=0)


def test_moved_pictures_differ_and_stay_in_range() -> None:
    ramp = torch.linspace(0, 1, 32).expand(4, 3, 32, 32).contiguous()
    moved = attribute_reader.moved(ramp, torch.Generator().manual_seed(0))
    assert moved.shape == ramp.shape and moved.min() >= 0 and moved.max() <= 1
    assert all(not torch.allclose(a, b, atol=0.02) for a, b in itertools.pairwise(moved))
    assert (moved[..., 16:].mean((1, 2, 3)) > moved[..., :16].mean((1, 2, 3)) + 0.2).all()  # still the same picture
