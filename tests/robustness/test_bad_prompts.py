"""Any prompt, noun and number ends in a picture or in one sentence: the library's own functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from customcontrast.conditioning.prompt import guess_noun, parse_prompt
from customcontrast.conditioning.text_context import encode_prompt
from customcontrast.config import EncoderConfig, LocationConfig, RecordConfig
from customcontrast.pipeline import CustomContrast
from customcontrast.segmentation import Segmentation, Segmenter
from tests.robustness.makers import FEW, NO_TEXT, NOUNS, NUMBERS, PROMPTS, numbers, odd_text

ONE = {"num_inference_steps": 1, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def bear(tiny_custom: CustomContrast, cutout):
    return tiny_custom.subject(cutout(0), "bear")


@pytest.fixture(scope="module")
def found() -> Segmentation:
    """A green disc on grey."""
    y, x = np.mgrid[:60, :80]
    mask = (x - 40) ** 2 + (y - 30) ** 2 < 300
    pixels = np.where(mask[..., None], (40, 160, 60), (128, 128, 128)).astype(np.uint8)
    return Segmentation(Image.fromarray(pixels), mask)


@pytest.mark.parametrize("subjects", [0, 1, 2])
def test_prompts(judge: Callable, tiny_custom: CustomContrast, bear, cutout, subjects: int) -> None:
    case = judge("library: generate, prompts")
    who = [bear, replace(bear, noun="cat")][:subjects]
    for prompt in (*PROMPTS, *NO_TEXT):
        case(tiny_custom.generate, prompt, who, **ONE)
    for prompt in NO_TEXT:
        case(tiny_custom.generate, prompt, who, says="prompt", **ONE)
        if prompt is not None:
            case(tiny_custom.generate, "a bear", who, negative_prompt=prompt, says="negative_prompt", **ONE)


@FEW
@given(odd_text, st.sampled_from([(), ("bear",), ("bear", "cat")]))
def test_texts_by_hypothesis(judge: Callable, tiny_base, prompt: str, nouns: tuple[str, ...]) -> None:
    case = judge("library: prompts, parsed")
    case(parse_prompt, prompt, nouns)
    case(encode_prompt, tiny_base, prompt, nouns, 3)
    case(guess_noun, prompt)


def test_prompts_parsed(judge: Callable, tiny_custom: CustomContrast) -> None:
    case = judge("library: prompts, parsed")
    for prompt in PROMPTS:
        case(guess_noun, prompt)
        case(tiny_custom.unknown_words, prompt)
        for nouns in ((), ("bear",), ("bear", "bear"), ("bear", "cat", "dog", "robot")):
            case(encode_prompt, tiny_custom.base, prompt, nouns, 3)
    for noun in NOUNS:
        case(encode_prompt, tiny_custom.base, "a bear S* on the beach", (noun,), 3)
    for prompt in NO_TEXT:
        case(guess_noun, prompt, says="prompt")
        case(tiny_custom.unknown_words, prompt, says="prompt")


def test_nouns_and_subjects(judge: Callable, tiny_custom: CustomContrast, cutout, found: Segmentation) -> None:
    case = judge("library: subject")
    for noun in (*NOUNS, *NO_TEXT):
        case(tiny_custom.subject, found, noun)
    for strength in NUMBERS:
        case(tiny_custom.subject, found, "bear", strength)
    for wrong in (None, [], (), 3, "bear.png", found.image, [found, None], np.zeros((4, 4)), {}, b"x"):
        case(tiny_custom.subject, wrong, "bear", says="segmentation")


@pytest.mark.parametrize(
    "name",
    "num_inference_steps guidance_scale subject_scale seed height width num_images preview_every scheduler".split(),
)
def test_numbers(judge: Callable, tiny_custom: CustomContrast, bear, name: str) -> None:
    case = judge("library: generate, numbers")
    for value in NUMBERS:
        case(tiny_custom.generate, "a bear", bear, **(ONE | {name: value}))
    for value in (-1, float("nan"), "5", [1]):
        if not (name == "subject_scale" and value == -1) and not (name == "guidance_scale" and value == -1):
            case(tiny_custom.generate, "a bear", bear, says=name, **(ONE | {name: value}))


@FEW
@given(numbers, numbers, numbers)
def test_numbers_by_hypothesis(judge: Callable, tiny_custom: CustomContrast, bear, a: object, b: object, c: object):
    case = judge("library: generate, numbers")
    steps = a if isinstance(a, bool) or not isinstance(a, int) else min(a, 2)  # larger ones are right, and take time
    case(tiny_custom.generate, "a bear", bear, **(ONE | {"num_inference_steps": steps, "guidance_scale": b, "seed": c}))


def test_objects_in_place_of_settings(judge: Callable, tiny_custom: CustomContrast, bear, found: Segmentation) -> None:
    case = judge("library: generate, objects")
    for wrong in (3, "bear", found, [found], [None], [bear] * 5, {"a": bear}, bear.features):
        case(tiny_custom.generate, "a bear", wrong, says="subjects", **ONE)
    for wrong in (3, True, "on", {"enabled": True}, RecordConfig()):
        case(tiny_custom.generate, "a bear", bear, location=wrong, says="location", **ONE)
    for wrong in (3, True, "all", {"maps": True}, LocationConfig()):
        case(tiny_custom.generate, "a bear", bear, record=wrong, says="record", **ONE)
    other = replace(bear, features=torch.zeros(1, 5, 7))
    case(tiny_custom.generate, "a bear", other, says="subjects", **ONE)
    case(tiny_custom.generate, "a bear", replace(bear, strength=float("nan")), **ONE)
    plain = CustomContrast.from_parts(tiny_custom.base)
    case(plain.generate, "a bear", bear, says="no adapter", **ONE)
    case(plain.subject, found, "bear", says="no adapter")


def test_configs(judge: Callable) -> None:
    case = judge("library: configs")
    for value in (*NUMBERS, None):
        for name in ("threshold", "start_step", "freeze_step", "enabled", "mask_text"):
            case(LocationConfig, **{name: value})
        for name in ("steps", "maps"):
            case(RecordConfig, **{name: value})
        for name in ("width", "heads", "depth", "text_queries", "text_widths", "image_layers", "num_layers"):
            facts = {"image_width": 24, "image_layers": (2, 4, 6), "text_widths": (32,), "num_layers": 7}
            case(EncoderConfig.from_dict, facts | {name: value})


POINTS = (
    [], [(1, 2, 1)], [(40, 30, 1)], [(40, 30, 0)], [(1, 2)], [()], [(1, 2, 3, 4)], [(-1, 5, 1)], [(80, 5, 1)],
    [(float("nan"), 5, 1)], [(float("inf"), 5, 1)], [(5, 5, 2)], [(5, 5, float("nan"))], [("a", "b", "c")], [None],
    3, "clicks", None, [[5, 5, True]], [(10**30, 5, 1)], [(40, 30, 1)] * 500, {"a": 1}, [(5, 5, "1")], [(5j, 5, 1)],
)  # fmt: skip
BOXES = (
    None, (0, 0, 80, 60), (80, 60, 0, 0), (5, 5, 5, 5), (5, 5, 7, 7), (-9, -9, 900, 900), (200, 200, 300, 300),
    (float("nan"),) * 4, (float("inf"), 0, 1, 1), (1, 2, 3), (1, 2, 3, 4, 5), "box", 3, [], ("a",) * 4, True,
    (None,) * 4,
)  # fmt: skip


def test_clicks_and_boxes(judge: Callable, found: Segmentation) -> None:
    case, segmenter = judge("library: segmenter"), Segmenter(threads=1)
    for points in POINTS:
        case(segmenter.refine, found, points)
    for box in BOXES:
        case(segmenter.refine, found, (), box)
        case(segmenter.refine, found, [(40, 30, 1)], box)
    for wrong in (None, 3, b"", "nowhere.png", np.zeros((0, 0, 3)), Image.new("RGB", (70, 70))):
        case(segmenter.auto, wrong)
        case(segmenter.refine, wrong, [(3, 3, 1)])
