"""The world: identities, their number and split, sampling, labels, bodies."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from train.toyland import ToyScene, ToySubject, World, attributes, is_heldout, sample_scene, sample_subject
from train.toyland.species.accessories import ACCESSORIES
from train.toyland.species.bodies import POSES, SHAPES, SPECIES, assemble, extent
from train.toyland.subjects import COLORS, EARS, EYES, PATTERNS, SIZES, TAILS


def test_world_spans_what_it_should() -> None:
    full, small = World.full(), World.small()
    assert len(full.species) >= 14 and {"knight", "astronaut", "wizard", "chef"} <= set(full.species)
    assert len(full.colors) >= 12 and len(full.backgrounds) >= 12 and len(full.styles) >= 6
    assert len(full.shapes) == 5 and len(full.accessories) >= 7 and len(full.poses) >= 3
    assert full.count_subjects() > 1_000_000 and small.count_subjects() > 1_000_000
    for name in ("species", "colors", "backgrounds", "styles", "shapes", "accessories", "accessory_colors"):
        assert set(getattr(small, name)) <= set(getattr(full, name)), name
    assert (len(small.species), len(small.backgrounds), len(small.styles)) == (8, 8, 4)


def test_count_is_the_number_of_ids_and_ids_are_unique() -> None:
    world = replace(World.small(), species=("bear",), colors=("red", "blue", "green"), patterns=PATTERNS[:2])
    traits = itertools.product(
        world.species, itertools.permutations(world.colors, 2), world.patterns,
        *[range(len(SIZES))] * 3, range(EARS), range(TAILS), range(EYES),
    )  # fmt: skip
    ids = [ToySubject(s, *c, p, *rest).id for s, c, p, *rest in traits]
    assert len(ids) == len(set(ids)) == world.count_subjects()


def test_heldout_is_a_stable_twentieth() -> None:
    rng = random.Random(0)
    subjects = [sample_subject(rng, heldout=None) for _ in range(4000)]
    assert 0.03 < np.mean([is_heldout(s) for s in subjects]) < 0.07
    assert is_heldout(subjects[0]) == is_heldout(replace(subjects[0]))
    assert not any(is_heldout(sample_subject(rng)) for _ in range(200))
    assert all(is_heldout(sample_subject(rng, heldout=True)) for _ in range(20))
    drawn = (p.subject for _ in range(100) for p in sample_scene(rng).placements)
    assert not any(is_heldout(s) for s in drawn)


def test_sampling_is_deterministic_and_follows_the_odds() -> None:
    world = World.small()
    first, second = ([sample_scene(r, world) for _ in range(400)] for r in (random.Random(3), random.Random(3)))
    assert first == second
    assert first[:20] != [sample_scene(random.Random(4), world) for _ in range(20)]
    assert 0.06 < np.mean([len(s.placements) == 2 for s in first]) < 0.2
    assert 0.5 < np.mean([s.style == "photo" for s in first]) < 0.7
    places = [p for s in first for p in s.placements]
    assert 0.6 < np.mean([p.shape == "normal" for p in places]) < 0.8
    assert 0.4 < np.mean([p.accessory == "none" for p in places]) < 0.6
    assert {p.pose for p in places} == set(POSES)
    assert min(p.azimuth for p in places) < -150 and max(p.azimuth for p in places) > 150
    assert all(p.accessory_color != p.subject.color_1 for p in places)
    pairs = [s.placements for s in first if len(s.placements) == 2]
    assert all(a.subject.species != b.subject.species and a.x < b.x for a, b in pairs)


def test_fixed_fields_are_kept_and_unknown_ones_refused() -> None:
    rng = random.Random(1)
    subject = sample_subject(rng)
    scene = sample_scene(rng, subjects=(subject,), background="snow", style="photo", pose="sitting", azimuth=30.0)
    assert isinstance(scene, ToyScene) and scene.background == "snow"
    assert (scene.placements[0].pose, scene.placements[0].azimuth) == ("sitting", 30.0)
    with pytest.raises(ValueError, match="weather"):
        sample_scene(rng, weather="rain")


def test_attributes_label_everything() -> None:
    scene = sample_scene(random.Random(2), World.full())
    labels = attributes(scene)
    assert labels["background"] == scene.background and labels["style"] == scene.style
    for label, p in zip(labels["subjects"], scene.placements, strict=True):
        assert label["id"] == p.subject.id and label["species"] == p.subject.species
        assert (label["color_1"], label["color_2"]) == (p.subject.color_1, p.subject.color_2)
        assert (label["accessory_color"] is None) == (p.accessory == "none")


def test_bad_subjects_are_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="choose one of"):
        ToySubject("bear", "mauve", "red", "plain")
    with pytest.raises(ValueError, match="two different"):
        ToySubject("bear", "red", "red", "plain")
    with pytest.raises(ValueError, match="pattern"):
        ToySubject("bear", "red", "blue", "tartan")
    with pytest.raises(ValueError, match="species"):
        assemble(ToySubject("unicorn", "red", "blue", "plain"), "normal", "standing", "none", "red")


@pytest.mark.parametrize("species", SPECIES)
def test_bodies_stand_on_the_ground_at_a_common_size(species: str) -> None:
    for n, (shape, pose) in enumerate(itertools.product(SHAPES, POSES)):
        subject = ToySubject(species, "red", "blue", "plain", n % 3, n % 3, n % 3, n % EARS, n % TAILS, n % EYES)
        rows = assemble(subject, shape, pose, "none", "red")
        low, high = extent(rows)
        assert np.isfinite(rows).all()
        assert abs(low[1]) < 1e-6
        size = high - low
        assert 0.4 < max(size) < 2.2, (shape, pose)
        bare, dressed = len(rows), assemble(subject, shape, pose, "hat", "red")
        assert np.allclose(dressed[:bare], rows), "an accessory must not change its wearer"


@pytest.mark.parametrize("species", SPECIES)
def test_accessories_touch_their_wearer(species: str) -> None:
    subject = ToySubject(species, "red", "blue", "plain")
    body = assemble(subject, "normal", "standing", "none", "red")
    low, high = extent(body)
    for accessory in ACCESSORIES[1:]:
        rows = assemble(subject, "normal", "standing", accessory, "green")
        worn = rows[rows[:, 26] == 1]
        assert len(worn) and len(worn) + len(body) == len(rows)
        near, far = extent(worn)
        assert (near < high).all() and (far > low).all(), accessory


def test_traits_change_the_body_and_colors_do_not_change_its_form() -> None:
    base = ToySubject("cat", "red", "blue", "plain", 1, 1, 1, 0, 0, 0)
    form = assemble(base, "normal", "standing", "none", "red")[:, :16]
    painted = replace(base, color_1="teal", pattern="spotted")
    assert np.allclose(form, assemble(painted, "normal", "standing", "none", "red")[:, :16])
    for trait in ("head", "girth", "legs", "ears", "tail", "eyes"):
        other = assemble(replace(base, **{trait: 2}), "normal", "standing", "none", "red")[:, :16]
        assert other.shape != form.shape or not np.allclose(other, form, atol=1e-3), trait
    assert len(COLORS) == len(set(COLORS.values()))
