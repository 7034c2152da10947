"""Several prompts in one call draw what a call for each draws, on every kind of base and adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from customcontrast import CustomContrast
from customcontrast.base_model import BaseModel
from customcontrast.config import LocationConfig, RecordConfig
from customcontrast.errors import ConfigError
from customcontrast.subject import Subject
from tests.support.tiny_models import random_adapter

PROMPTS = ["a bear S* on the beach", "a photo of a red bear S* wearing a hat and a scarf in the forest", "a <bear>"]
FAST = {"num_inference_steps": 4, "output_type": "np", "record": RecordConfig(maps=False)}
Options = dict[str, Any]


def same(custom: CustomContrast, prompts: list[str], subjects: list[Subject], **options: Any) -> np.ndarray:
    """The pictures of one call, after they were held against those of a call for each prompt."""
    together = custom.generate(prompts, subjects, **FAST | options).images
    alone = [custom.generate(prompt, subjects, **FAST | options).images for prompt in prompts]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=2e-4)
    return together


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_images": 2, "negative_prompt": "a car"},
        {"guidance_scale": 1.0, "subject_scale": 0.5},
        {"guidance_end": 0.5, "subject_guidance_end": 0.75, "subject_guidance_scale": 3.0},
        {"location": LocationConfig(enabled=False), "subject_end": 0.5, "clip_skip": 1},
    ],
    ids=["plain", "two of each", "unguided", "on the subject", "not located"],
)
def test_one_subject(any_custom: CustomContrast, cutout: Callable, options: Options) -> None:
    pictures = same(any_custom, PROMPTS, [any_custom.subject(cutout(0), "bear")], seed=3, **options)
    first, last = pictures[0], pictures[-1]
    assert len(pictures) == 3 * options.get("num_images", 1) and not np.allclose(first, last, atol=1e-3)


def test_two_subjects_and_none(any_custom: CustomContrast, cutout: Callable) -> None:
    two = [any_custom.subject(cutout(0), "bear"), any_custom.subject(cutout(1), "cat").placed((0.5, 0.0, 1.0, 1.0))]
    same(any_custom, ["a <bear> and a <cat>", "a red <cat> and a <bear> on the beach"], two)
    same(any_custom, ["a bear", "a red car on a beach"], [])


def test_weighted_words(any_custom: CustomContrast, cutout: Callable) -> None:
    same(
        any_custom,
        ["a <bear> in a (forest)1.5", "a <bear> in a (red)0.5 city"],
        [any_custom.subject(cutout(0), "bear")],
    )


def test_each_is_drawn_in_its_own_layout(laid_out: BaseModel, cutout: Callable) -> None:
    custom = CustomContrast(laid_out, random_adapter(laid_out))
    pictures = same(
        custom, ["a <bear>", "a tall cat and a <bear>"], [custom.subject(cutout(0), "bear")], num_images=2, seed=4
    )
    assert not np.allclose(pictures[0], pictures[1], atol=1e-3)  # another seed's noise and layout


def test_what_is_said_of_them(any_custom: CustomContrast, cutout: Callable) -> None:
    bear = any_custom.subject(cutout(0), "bear")
    result = any_custom.generate(["a <bear>", "a car"], bear, **FAST)
    assert result.prompt.splitlines()[0] == any_custom.generate("a <bear>", bear, **FAST).prompt
    assert len(result.prompt.splitlines()) == 2 and result.recipe["further_prompts"] == ("a car",)
    assert any_custom.generate("a car", bear, **FAST).notes == result.notes  # the noun that the second lacks
    assert "further_prompts" not in any_custom.generate("a <bear>", bear, **FAST).recipe


@pytest.mark.parametrize(
    ("prompts", "options", "said"),
    [
        ([], {}, r"prompt=\[\] must be text, or a list of texts"),
        (["a <bear>", 3], {}, "prompt=3 must be text"),
        (["a <bear>", "a car"], {"record": RecordConfig()}, "have no maps; pass record"),
        (["a <bear>"] * 65, {}, "65 prompts with num_images=1; a call makes up to 64"),
        (["a <bear>"] * 33, {"num_images": 2}, "33 prompts with num_images=2"),
        (["a <bear> and a <cat>"] * 2, {"location": LocationConfig(apart=True)}, "location=LocationConfig"),
        (["a <bear>"] * 2, {"latents": np.zeros((1, 8, 8, 8))}, "latents is"),
    ],
)
def test_what_cannot_be_done_is_said(
    tiny_custom: CustomContrast, cutout: Callable, prompts: Any, options: Options, said: str
) -> None:
    two = [tiny_custom.subject(cutout(0), "bear"), tiny_custom.subject(cutout(0), "cat")]
    with pytest.raises(ConfigError, match=said):
        tiny_custom.stream(prompts, two, **FAST | options)
