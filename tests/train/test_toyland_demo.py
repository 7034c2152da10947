"""The part of Toyland that the embedded model learns: how it fills the frame, and what its pool says of layouts."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from train.base.base_config import PoolConfig
from train.base.pool import read_shard, write_shard
from train.toyland import World, render, sample_scene
from train.toyland.geometry import frame_box
from train.toyland.layouts import layout_of

WORLD = World.demo()


@pytest.fixture(scope="module")
def scenes() -> list:
    rng = random.Random("demo")
    return [sample_scene(rng, WORLD) for _ in range(400)]


def test_subjects_fill_the_frame_and_stay_in_it(scenes: list) -> None:
    for scene in scenes:
        limits = WORLD.heights[len(scene.placements) - 1]
        for p in scene.placements:
            low, high = frame_box(p, scene.elevation)
            assert low.min() >= -1 and high.max() <= 1
            share = (high[1] - low[1]) / 2
            assert share <= limits[1] + 1e-9
            wide = (high[0] - low[0]) / 2
            room = 0.93 if len(scene.placements) == 1 else 0.49
            assert share >= limits[0] - 1e-9 or wide == pytest.approx(room)  # or as large as its width allows


def test_two_subjects_have_a_half_each(scenes: list) -> None:
    pairs = [s.placements for s in scenes if len(s.placements) == 2]
    assert 60 < len(pairs) < 140  # a quarter of 400
    for left, right in pairs:
        assert left.x < 0 < right.x


def test_places_come_in_few_variants_and_most_subjects_face_the_camera(scenes: list) -> None:
    assert {s.seed for s in scenes} == set(range(WORLD.variants))
    every = [p for s in scenes for p in s.placements]
    assert np.mean([abs(p.azimuth) <= WORLD.frontal for p in every]) > 0.8
    patterns = Counter(p.subject.pattern for p in every)
    assert 0.42 < patterns["plain"] / len(every) < 0.58


def test_the_screen_box_is_that_of_the_rendered_mask(scenes: list) -> None:
    some = scenes[:24]
    masks = render(some, 96).masks
    for scene, planes in zip(some, masks, strict=True):
        alone = [replace(scene, placements=(p,)) for p in scene.placements]
        for own, k in zip(alone, range(len(alone)), strict=True):
            mask = planes[0] if len(alone) == 1 else render([own], 96).masks[0, 0]
            low, high = frame_box(scene.placements[k], scene.elevation)
            box = layout_of(own, mask[None]).subjects[0].box
            outer = ((low[0] + 1) / 2, (1 - high[1]) / 2, (high[0] + 1) / 2, (1 - low[1]) / 2)
            slack = 1.5 / 96
            assert box[0] >= outer[0] - slack and box[1] >= outer[1] - slack
            assert box[2] <= outer[2] + slack and box[3] <= outer[3] + slack
            assert (box[3] - box[1]) > 0.8 * (outer[3] - outer[1])  # boxes of parts are a little generous


def test_a_hidden_subject_has_the_box_it_would_fill(scenes: list) -> None:
    scene = next(s for s in scenes if len(s.placements) == 2)
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[0, 4:9, 10:20] = True
    shown, hidden = layout_of(scene, mask).subjects
    assert shown.box == (10 / 32, 4 / 32, 20 / 32, 9 / 32)
    low, high = frame_box(scene.placements[1], scene.elevation)
    assert hidden.box == pytest.approx(((low[0] + 1) / 2, (1 - high[1]) / 2, (high[0] + 1) / 2, (1 - low[1]) / 2))


def test_the_pool_keeps_the_layout_of_every_picture(tmp_path) -> None:
    config = PoolConfig(world="demo", size=48, subjects_per_shard=3, views=2, variants=2, captions=2)
    shard = read_shard(write_shard(0, config, tmp_path))
    for record, mask in zip(shard.records, shard.masks, strict=True):
        subjects = record["labels"]["subjects"]
        rows = torch.tensor(record["layout"])[3:].unflatten(0, (2, 6))
        for k, row in enumerate(rows):
            assert bool(row[2] > row[0]) == (k < len(subjects))
            if k < len(subjects) and mask[k].any():
                top = int(mask[k].any(1).nonzero()[0])
                assert row[1] * 48 == pytest.approx(top)


def test_older_worlds_draw_what_they_drew() -> None:
    """The demo's own odds leave the random numbers of the others alone: values from before there was a demo."""
    rng = random.Random(7)
    last = [sample_scene(rng, World.small()) for _ in range(20)][-1]
    assert last.seed == 952679003 and last.placements[0].azimuth == pytest.approx(40.537452)
    assert rng.random() == pytest.approx(0.0200817268316269)
