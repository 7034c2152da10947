"""Layout channels: what they hold, how the base is told, and where a layout comes from when nobody asks for one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from customcontrast import CustomContrast, CustomContrastPipeline
from customcontrast.base_model import BaseModel, load_base
from customcontrast.config import LocationConfig, RecordConfig
from customcontrast.errors import BaseModelError
from customcontrast.layout import LAYOUT_CHANNELS, NUMBERS, Layout, LayoutPrior, SubjectLayout
from customcontrast.layout_channels import channels, layout_channels, mirrored_rows
from customcontrast.segmentation import Segmentation
from tests.support.tiny_models import PRIOR, random_adapter, save_tiny_toyland

LEFT = SubjectLayout((0.05, 0.2, 0.45, 0.9), 30.0, "waving")
RIGHT = SubjectLayout((0.5, 0.25, 0.95, 0.85), -100.0, "sitting")
TWO = Layout((LEFT, RIGHT), 20.0, (-40.0, 50.0))


def test_a_box_covers_its_share_of_every_cell() -> None:
    maps = layout_channels([TWO], 24, 24)[0]
    assert maps.shape == (LAYOUT_CHANNELS, 24, 24)
    for k, subject in enumerate(TWO.subjects):
        left, top, right, bottom = subject.box
        assert maps[4 + k].mean().item() == pytest.approx((right - left) * (bottom - top), abs=1e-5)
        inside = maps[4 + k] == 1
        view = maps[6:, inside]
        angle = torch.tensor(subject.azimuth).deg2rad()
        assert torch.allclose(view[:3].mean(1), torch.stack((angle.sin(), angle.cos(), (2 * angle).sin())), atol=1e-5)
        assert view[3:].sum(0).allclose(torch.ones(view.shape[1]))  # one pose


def test_unknown_is_zeros_and_a_row_says_its_own_layout_alone() -> None:
    maps = layout_channels([None, TWO, replace(TWO, subjects=(LEFT,))], 12, 8)
    assert not maps[0].any() and maps[1, :4].flatten(1).std(1).eq(0).all()
    assert torch.equal(maps[1:2], layout_channels([TWO], 12, 8)) and not maps[2, 5].any()


def test_the_mirror_of_a_layout_is_the_layout_of_the_mirror() -> None:
    rows = torch.tensor([TWO.numbers(), replace(TWO, subjects=(RIGHT,)).numbers(), [0.0] * NUMBERS])
    assert torch.allclose(mirrored_rows(rows)[0], torch.tensor(TWO.mirrored().numbers()))
    assert torch.allclose(mirrored_rows(mirrored_rows(rows)), rows, atol=1e-6)
    maps, mirrored = channels(rows, 12, 12), channels(mirrored_rows(rows), 12, 12).flip(-1)
    signs = torch.ones(LAYOUT_CHANNELS)
    signs[[1, 6, 8]] = -1  # sines: of the light, of the azimuth, of twice the azimuth
    assert torch.allclose(mirrored, maps * signs[:, None, None], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: SubjectLayout((0.5, 0.1, 0.5, 0.9)), "box"),
        (lambda: SubjectLayout((0.5, 0.1, 1.2, 0.9)), "box"),
        (lambda: SubjectLayout((0.1, 0.1, 0.9, 0.9), float("nan")), "azimuth"),
        (lambda: SubjectLayout((0.1, 0.1, 0.9, 0.9), 0.0, "flying"), "pose"),
        (lambda: Layout(()), "subjects"),
        (lambda: Layout((LEFT,) * 3), "subjects"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_by_name(make, word) -> None:
    with pytest.raises(ValueError, match=f"^{word}"):
        make()


# ------------------------------------------------------------------------------------------------ the prior


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a bear S* on the beach", [("bear", "normal", None)]),
        ("a teddy bear sitting next to a tall cat", [("bear", "normal", "sitting"), ("cat", "tall", None)]),
        ("A CAT", [("cat", "normal", None)]),
        ("a cat, a bear and a cat", [("cat", "normal", None), ("bear", "normal", None)]),
        ("a house", []),
    ],
)
def test_the_subjects_that_a_prompt_names(prompt: str, found: list) -> None:
    assert LayoutPrior.from_dict(PRIOR).named(prompt) == found


def test_a_drawn_layout_is_the_seeds_and_stays_in_the_picture() -> None:
    prior = LayoutPrior.from_dict(PRIOR)
    drawn = [prior.draw("a bear and a cat", seed) for seed in range(40)]
    assert drawn[3] == prior.draw("a bear and a cat", 3) and len(set(drawn)) == 40
    for layout in drawn:
        first, second = (s.box for s in layout.subjects)
        assert (first[0] + first[2]) / 2 < 0.4 < 0.6 < (second[0] + second[2]) / 2
    assert prior.draw("a house", 0) is None
    assert {prior.draw("a bear sitting", seed).subjects[0].pose for seed in range(20)} == {"sitting"}


def test_a_drawn_subject_faces_the_camera_where_any_did() -> None:
    rows = [[0.3, 0.2, 0.7, 0.9, azimuth, "standing", "normal"] for azimuth in (-170.0, -60, -40, 0, 25, 90)]
    both = LayoutPrior({"bear": "bear", "cat": "cat"}, {"bear": rows, "cat": rows[:2]}, {"": "normal"})
    assert {both.draw("a bear", seed).subjects[0].azimuth for seed in range(60)} == {-40, 0, 25}
    assert {both.draw("a cat", seed).subjects[0].azimuth for seed in range(60)} == {-170, -60}


def test_a_subject_keeps_its_shape_in_the_place_it_is_given() -> None:
    prior, place = LayoutPrior.from_dict(PRIOR), (0.0, 0.5, 1.0, 1.0)
    for seed in range(10):
        left, top, right, bottom = prior.draw("a tall cat", seed, [place]).subjects[0].box
        assert bottom == 1.0 and top >= 0.5 and (left + right) / 2 == pytest.approx(0.5)
        assert (right - left) / (bottom - top) == pytest.approx(0.3 / 0.8, abs=1e-6)


# -------------------------------------------------------------------------------------- a base that takes them


@pytest.fixture(scope="module")
def custom(laid_out: BaseModel) -> CustomContrast:
    return CustomContrast(laid_out, random_adapter(laid_out))


def subject_of(custom: CustomContrast, noun: str, color: tuple[int, int, int] = (200, 40, 40)):
    picture = Image.new("RGB", (48, 48), color)
    mask = np.zeros((48, 48), bool)
    mask[8:40, 12:36] = True
    return custom.subject(Segmentation(image=picture, mask=mask, score=1.0, method="test"), noun=noun)


def picture(custom: CustomContrast, prompt: str, *args: object, **options: object) -> np.ndarray:
    return custom.generate(prompt, *args, num_inference_steps=3, output_type="np", **options).images


def test_the_picture_follows_the_layout_it_is_given(custom: CustomContrast) -> None:
    assert custom.base.layout_channels == LAYOUT_CHANNELS and custom.base.latent_channels == 8
    prompt = "a bear on the beach"
    drawn = picture(custom, prompt, seed=5)
    own = custom.base.layout_prior.draw(prompt, 5)
    assert np.array_equal(drawn, picture(custom, prompt, seed=5, layout=own))
    moved = replace(own, subjects=(replace(own.subjects[0], box=(0.0, 0.0, 0.3, 0.4)),))
    assert not np.allclose(drawn, picture(custom, prompt, seed=5, layout=moved), atol=1e-4)


def test_every_picture_of_a_batch_has_the_layout_of_its_seed(custom: CustomContrast) -> None:
    several = picture(custom, "a cat", seed=2, num_images=3)
    alone = np.concatenate([picture(custom, "a cat", seed=2 + i) for i in range(3)])
    assert np.allclose(several, alone, atol=1e-4)


def test_a_place_drawn_on_the_page_is_what_the_base_is_told(custom: CustomContrast) -> None:
    bear = subject_of(custom, "bear")
    placed = bear.placed((0.5, 0.5, 1.0, 1.0))
    options = {"seed": 4, "location": LocationConfig(enabled=False)}
    told = custom.base.layout_prior.draw("a bear S*", 4, [(0.5, 0.5, 1.0, 1.0)])
    assert told.subjects[0].box[0] >= 0.5 and told.subjects[0].box[3] == 1.0
    free = custom.base.layout_prior.draw("a bear S*", 4)
    pictures = [picture(custom, "a bear S*", [placed], layout=x, **options) for x in (None, told, free)]
    assert np.array_equal(pictures[0], pictures[1]) and not np.allclose(pictures[0], pictures[2], atol=1e-4)


def test_places_go_with_their_subjects_in_whatever_order_the_prompt_names_them(custom: CustomContrast) -> None:
    boxes = {"bear": (0.0, 0.3, 0.45, 1.0), "cat": (0.55, 0.3, 1.0, 1.0)}
    two = [subject_of(custom, noun).placed(box) for noun, box in boxes.items()]
    for prompt, nouns in (("a bear S1* and a cat S2*", ("bear", "cat")), ("a cat S2* and a bear S1*", ("cat", "bear"))):
        told = custom.base.layout_prior.draw(prompt, 1, [boxes[noun] for noun in nouns])
        options = {"seed": 1, "location": LocationConfig(enabled=False)}
        assert np.array_equal(
            picture(custom, prompt, two, **options), picture(custom, prompt, two, layout=told, **options)
        )


@pytest.mark.parametrize("apart", [False, True])
def test_two_subjects_each_where_they_are_told(custom: CustomContrast, apart: bool) -> None:
    two = [subject_of(custom, "bear"), subject_of(custom, "cat", (30, 60, 200))]
    options = {"seed": 1, "location": LocationConfig(apart=apart)}
    first = picture(custom, "a bear S1* and a cat S2*", two, layout=TWO, **options)
    swapped = replace(TWO, subjects=(RIGHT, LEFT))
    assert np.isfinite(first).all()
    assert not np.allclose(
        first, picture(custom, "a bear S1* and a cat S2*", two, layout=swapped, **options), atol=1e-4
    )


def test_the_diffusers_pipeline_keeps_layout_and_padding(custom: CustomContrast, tmp_path: Path) -> None:
    """The same pictures from the pipeline, and from it saved and read back."""
    pipe = CustomContrastPipeline.from_parts(custom.base, custom.adapter)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    again = CustomContrastPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    for layout in (None, TWO):
        wanted = picture(custom, "a bear and a cat", seed=3, layout=layout)
        for one in (pipe, again):
            made = one("a bear and a cat", seed=3, layout=layout, num_inference_steps=3, output_type="np").images
            assert np.array_equal(np.asarray(made), wanted)
    assert again.masks_padding and again.layout_prior == custom.base.layout_prior


def test_a_given_layout_is_in_the_recipe(custom: CustomContrast) -> None:
    options = {"num_inference_steps": 1, "record": RecordConfig(maps=False)}
    told = custom.generate("a bear and a cat", layout=TWO, **options).recipe["layout"]
    subjects = tuple(SubjectLayout(**(s | {"box": tuple(s["box"])})) for s in json.loads(json.dumps(told))["subjects"])
    assert replace(TWO, subjects=subjects) == TWO and told["elevation"] == 20.0
    assert "layout" not in custom.generate("a bear", **options).recipe


def test_a_base_without_layout_channels_says_so(tiny_custom: CustomContrast) -> None:
    with pytest.raises(ValueError, match="layout"):
        tiny_custom.generate("a bear", layout=TWO)
    with pytest.raises(ValueError, match="layout=3"):
        tiny_custom.generate("a bear", layout=3)


def test_a_unet_with_other_extra_channels_is_refused(tmp_path: Path) -> None:
    save_tiny_toyland(tmp_path)
    config = UNet2DConditionModel.load_config(tmp_path / "unet")
    shutil.rmtree(tmp_path / "unet")
    UNet2DConditionModel.from_config(config, in_channels=8 + 9).save_pretrained(tmp_path / "unet")
    with pytest.raises(BaseModelError, match="17 channels for 8 of latents"):
        load_base("toyland", weights=tmp_path, device="cpu")
