"""placement: drawn boxes and masks, from the numbers to the picture."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from customcontrast.config import LocationConfig, RecordConfig
from customcontrast.pipeline import CustomContrast, Subject
from customcontrast.placement import Placement
from tests.conftest import Cutout

PROMPT = "a bear on the beach"
FAST = {"num_inference_steps": 3, "guidance_scale": 4.0, "seed": 2, "subject_scale": 3.0}
OFF = LocationConfig(enabled=False)
NO_MAPS = RecordConfig(maps=False)


def pixels(result: object) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in result.images])


# ---- the layout itself ------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [(0.1, 0.2, 0.55, 0.9), (0, 0, 1, 1), (0.4, 0.1, 0.45, 0.15)])
@pytest.mark.parametrize("grid", [(8, 12), (5, 7)])
def test_a_box_covers_what_it_covers(box: tuple, grid: tuple[int, int]) -> None:
    """Against counting points on a fine lattice."""
    fine, (x0, y0, x1, y1) = 40, box
    y = (np.arange(grid[0] * fine) + 0.5) / (grid[0] * fine)
    x = (np.arange(grid[1] * fine) + 0.5) / (grid[1] * fine)
    inside = ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
    counted = inside.reshape(grid[0], fine, grid[1], fine).mean(axis=(1, 3))
    layout = Placement(box=box).layout(grid, 64, 96)
    assert np.abs(layout.numpy() - counted).max() < 0.06
    assert float(layout.sum()) == pytest.approx((x1 - x0) * (y1 - y0) * grid[0] * grid[1], rel=1e-5)


def test_pixels_and_fractions_are_the_same_box() -> None:
    a = Placement(box=(24, 16, 72, 64)).layout((8, 12), 64, 96)
    b = Placement(box=(0.25, 0.25, 0.75, 1.0)).layout((8, 12), 64, 96)
    assert torch.allclose(a, b) and a[2, 3] == 1 and a[1, 3] == 0


def test_masks_of_every_kind_are_one() -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 2, (20, 30)) * 255
    kinds = [levels.astype(np.uint8), levels > 0, levels / 255, (levels / 255).astype(np.float16)]
    layouts = [Placement(mask=kind).layout((8, 12), 64, 96) for kind in kinds]
    assert all(torch.equal(layout, layouts[0]) for layout in layouts)
    assert torch.allclose(layouts[0].mean(), torch.tensor(levels.mean() / 255, dtype=torch.float32))
    assert ((layouts[0] > 0) & (layouts[0] < 1)).any() and layouts[0].shape == (8, 12)
    assert Placement().layout((8, 12), 64, 96) is None


def test_a_drawn_mask_is_averaged_over_each_cell() -> None:
    mask = np.random.default_rng(0).random((16, 24))
    wanted = np.round(mask * 255).reshape(8, 2, 12, 2).mean(axis=(1, 3)) / 255
    assert np.allclose(Placement(mask=mask).layout((8, 12), 64, 96).numpy(), wanted, atol=1e-6)
    finer = Placement(mask=mask > 0.5).layout((32, 48), 64, 96).numpy()
    assert np.array_equal(finer, (mask > 0.5).repeat(2, 0).repeat(2, 1))


def test_placements_survive_json() -> None:
    mask = np.random.default_rng(0).random((9, 7))
    for placement in (Placement(), Placement(False), Placement(box=(0, 0, 30, 20)), Placement(mask=mask)):
        again = Placement.from_dict(json.loads(json.dumps(placement.to_dict())))
        assert again.to_dict() == placement.to_dict()
    assert np.array_equal(again.mask, placement.mask)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"box": (0.5, 0, 0.2, 1)}, "x0 < x1"),
        ({"box": (0, 0, 1)}, "four numbers"),
        ({"box": (0, 0, 1, float("nan"))}, "0 <= y0 < y1"),
        ({"box": "abcd"}, "four numbers"),
        ({"box": (-1, 0, 1, 1)}, "0 <= x0"),
        ({"mask": np.zeros((2, 2, 3))}, r"shape \(2, 2, 3\)"),
        ({"mask": np.full((2, 2), 2.0)}, "outside 0 to 1"),
        ({"mask": np.zeros((2, 2), np.int64)}, "int64"),
        ({"mask": np.ones((2, 2)), "box": (0, 0, 1, 1)}, "one of them"),
        ({"location": False, "box": (0, 0, 1, 1)}, "location=False"),
        ({"location": "no"}, "location='no'"),
        ({"mask": "mask.png"}, r"shape \(\)"),
        ({"box": 5}, "four numbers"),
    ],
)
def test_wrong_placements_get_a_sentence(values: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Placement(**values)


def test_a_strange_mask_gets_a_sentence() -> None:
    for text in ("!!", "aGVsbG8=", 7):
        with pytest.raises(ValueError, match="PNG in base64"):
            Placement.from_dict({"mask": text})


# ---- in a generation --------------------------------------------------------------------------------


def test_a_layout_acts_from_the_first_step(any_custom: CustomContrast, bear: Subject) -> None:
    once = FAST | {"num_inference_steps": 1, "record": NO_MAPS}
    boxed = any_custom.generate(PROMPT, bear.placed(box=(0, 0, 0.5, 1)), **once)
    assert not np.array_equal(pixels(boxed), pixels(any_custom.generate(PROMPT, bear, **once)))
    off = any_custom.generate(PROMPT, bear.placed(box=(0, 0, 0.5, 1)), location=OFF, **once)
    assert np.array_equal(pixels(boxed), pixels(off)), "it holds with location masks off"
    mask = np.zeros((4, 4), bool)
    mask[:, :2] = True
    masked = any_custom.generate(PROMPT, bear.placed(mask=np.repeat(np.repeat(mask, 16, 0), 16, 1)), **once)
    assert np.abs(pixels(boxed) - pixels(masked)).max() <= 1, "a box is a mask"


def test_a_layout_is_the_mask_of_every_step(any_custom: CustomContrast, bear: Subject, cat: Subject) -> None:
    placed = [bear.placed(box=(0, 0, 0.5, 1)), cat]
    r = any_custom.generate("a bear and a cat", placed, num_images=2, height=64, width=96, **FAST)
    masks = r.location_masks
    layout = placed[0].placement.layout(masks.shape[-2:], 64, 96).numpy()
    assert np.array_equal(masks[:, :, 0], np.broadcast_to(layout, masks[:, :, 0].shape))
    assert (masks[:, :, 1] * layout).max() == 0 and masks[:, :, 1].max() > 0
    both = [bear.placed(box=(0, 0, 0.5, 1)), cat.placed(box=(0.5, 0, 1, 1))]
    drawn = any_custom.generate("a bear and a cat", both, record=NO_MAPS, **FAST)
    assert drawn.location_masks.shape[1:3] == (3, 2) and not np.array_equal(pixels(drawn)[0], pixels(r)[0])


def test_a_layout_of_ones_masks_nothing_and_of_zeros_removes_the_branch(
    any_custom: CustomContrast, bear: Subject
) -> None:
    options = FAST | {"record": NO_MAPS}
    free = pixels(any_custom.generate(PROMPT, bear, location=OFF, **options))
    ones = pixels(any_custom.generate(PROMPT, bear.placed(mask=np.ones((3, 5))), **options))
    assert np.abs(free - ones).max() <= 1
    visual = LocationConfig(mask_text=False)
    zeros = pixels(any_custom.generate(PROMPT, bear.placed(mask=np.zeros((3, 5))), location=visual, **options))
    gone = pixels(any_custom.generate(PROMPT, bear, location=OFF, **options | {"subject_scale": 0.0}))
    assert np.abs(zeros - gone).max() <= 1 and np.abs(zeros - free).max() > 1


def test_mask_off_for_all_subjects_is_masks_off(any_custom: CustomContrast, bear: Subject, cat: Subject) -> None:
    free = [bear.placed(location=False), cat.placed(location=False)]
    a = any_custom.generate("a bear and a cat", free, **FAST)
    b = any_custom.generate("a bear and a cat", [bear, cat], location=OFF, **FAST)
    assert np.array_equal(pixels(a), pixels(b)) and np.array_equal(a.location_masks, b.location_masks)
    on = any_custom.generate("a bear and a cat", [bear, cat], **FAST)
    one = any_custom.generate("a bear and a cat", [free[0], cat], **FAST)
    assert not np.array_equal(pixels(on), pixels(one)) and not np.array_equal(pixels(a), pixels(one))


@pytest.mark.parametrize("counts", [(1,), (4,), (2, 1), (1, 4, 2), (3, 1, 4, 2)])
def test_one_to_four_subjects_of_one_to_four_references(
    any_custom: CustomContrast, cutout: Callable[[int], Cutout], counts: tuple[int, ...]
) -> None:
    nouns = ["bear", "cat", "bird", "car"][: len(counts)]
    subjects = [
        any_custom.subject([cutout(10 * k + i) for i in range(count)], noun)
        for k, (count, noun) in enumerate(zip(counts, nouns, strict=True))
    ]
    subjects[0] = subjects[0].placed(box=(0, 0, 32, 64))
    subjects[-1] = subjects[-1].placed(location=False)
    prompt = " and ".join(f"a {noun}" for noun in nouns)
    r = any_custom.generate(prompt, subjects, num_inference_steps=2)
    assert r.location_masks.shape[2] == r.visual_maps.shape[2] == len(counts)
    assert np.isfinite(r.location_masks).all() and pixels(r).std() > 0
    other = [*subjects[:-1], any_custom.subject(cutout(99), nouns[-1]).placed(location=False)]
    assert not np.array_equal(pixels(r), pixels(any_custom.generate(prompt, other, num_inference_steps=2)))


def test_a_box_outside_the_picture_is_said_at_once(any_custom: CustomContrast, bear: Subject) -> None:
    with pytest.raises(ValueError, match="reaches out of the picture of 64 × 64 px"):
        any_custom.stream(PROMPT, bear.placed(box=(0, 0, 65, 20)), height=64, width=64)


def test_the_recipe_makes_the_layout_again(any_custom: CustomContrast, bear: Subject, cat: Subject) -> None:
    mask = np.random.default_rng(1).random((16, 16))
    first = any_custom.generate("a bear and a cat", [bear.placed(mask=mask), cat], **FAST)
    about = json.loads(json.dumps(first.recipe))["subjects"]
    assert "placement" not in about[1], "only what is out of the ordinary"
    placement = Placement.from_dict(about[0]["placement"])
    again = any_custom.generate("a bear and a cat", [bear.placed(mask=placement.mask), cat], **FAST)
    assert np.array_equal(pixels(first), pixels(again))


def test_a_subject_can_be_made_with_its_place(any_custom: CustomContrast, cutout: Callable[[int], Cutout]) -> None:
    made = any_custom.subject(cutout(1), "bear", placement=Placement(box=(0, 0, 0.5, 0.5)))
    assert made.placement.box == (0, 0, 0.5, 0.5) and made.placed().placement.box is None
    with pytest.raises(ValueError, match="must be a Placement"):
        any_custom.subject(cutout(1), "bear", placement=(0, 0, 1, 1))
    assert made.key == any_custom.subject(cutout(1), "bear").key, "the place is no part of what was looked at"
