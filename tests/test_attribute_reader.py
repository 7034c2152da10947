"""The reader of attributes: its targets, what counts as right, and that colourless styles are colourless."""

from __future__ import annotations

import random

import pytest
import torch

from train.attribute_reader import COLORLESS, IGNORE, AttributeReader, correct, reader_loss, targets
from train.pretrain_models import label_values
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


def test_reader_takes_any_size_and_is_small() -> None:
    reader = AttributeReader(VALUES)
    assert sum(p.numel() for p in reader.parameters()) < 3e6
    assert reader(torch.rand(2, 3, 64, 64))["style"].shape == (2, len(WORLD.styles))
