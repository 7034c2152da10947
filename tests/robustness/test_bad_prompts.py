"""Any prompt, noun and number ends as it must, in a picture or in one sentence: the library's own functions."""

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
from tests.robustness.makers import (
    FEW,
    LONG_NOUN,
    NO_NOUNS,
    NO_TEXT,
    NOUNS,
    NUMBERS,
    PROMPTS,
    SAYING,
    numbers,
    odd_text,
)
from tests.robustness.oracle import is_number

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
    """Any text is drawn, cut to the tokens there are; only a noun and S* that do not fit together are refused."""
    case = judge("library: generate, prompts")
    who = [bear, replace(bear, noun="cat")][:subjects]
    for prompt in (*PROMPTS[subjects::3], "a" * 5000 + " S*"):  # all are parsed below, with each number of subjects
        too_long = subjects and prompt.startswith("a" * 5000)
        case.told("prompt" if too_long else None, tiny_custom.generate, prompt, who, **ONE)
    plain = ONE | {"record": RecordConfig(maps=False)}
    for prompt in NO_TEXT:
        if prompt == ["a bear"]:  # several prompts, of which there is one
            case.works(tiny_custom.generate, prompt, who, **ONE)
        else:
            case.refused("prompt", tiny_custom.generate, prompt, who, **ONE)
        case.refused("prompt", tiny_custom.generate, ["a bear", prompt], who, **plain)
        if prompt is not None:
            case.refused("negative_prompt", tiny_custom.generate, "a bear", who, negative_prompt=prompt, **ONE)
    several = PROMPTS[subjects::3][:8]
    case.works(tiny_custom.generate, several, who, **plain)


@FEW
@given(odd_text, st.sampled_from([(), ("bear",), ("bear", "cat")]))
def test_texts_by_hypothesis(judge: Callable, tiny_base, prompt: str, nouns: tuple[str, ...]) -> None:
    case = judge("library: prompts, parsed")
    case.works(parse_prompt, prompt, nouns)
    case.works(encode_prompt, tiny_base, prompt, nouns, 3)
    case.works(guess_noun, f"{prompt} on a <bear>")
    without_letters = "".join(letter for letter in prompt if not letter.isalpha())
    case.refused("mark its word", guess_noun, without_letters)


def test_prompts_parsed(judge: Callable, tiny_custom: CustomContrast) -> None:
    case = judge("library: prompts, parsed")
    for prompt in PROMPTS:
        case.told(None if prompt in SAYING else "mark its word", guess_noun, prompt)
        case.works(tiny_custom.unknown_words, prompt)
        for nouns in ((), ("bear",), ("bear", "bear"), ("bear", "cat", "dog", "robot")):
            too_long = nouns and prompt.startswith("a" * 5000)
            case.told("prompt" if too_long else None, encode_prompt, tiny_custom.base, prompt, nouns, 3)
    for noun in NOUNS:
        names = "noun" if noun in NO_NOUNS else "prompt" if noun == LONG_NOUN else None
        case.told(names, encode_prompt, tiny_custom.base, "on the beach", (noun,), 3)
    for prompt in NO_TEXT:
        case.refused("prompt", guess_noun, prompt)
        case.refused("prompt", tiny_custom.unknown_words, prompt)


def test_nouns_and_subjects(judge: Callable, tiny_custom: CustomContrast, cutout, found: Segmentation) -> None:
    case = judge("library: subject")
    for noun in (*NOUNS, *NO_TEXT):
        is_noun = isinstance(noun, str) and noun not in NO_NOUNS
        case.told(None if is_noun else "noun", tiny_custom.subject, found, noun)
    for strength in NUMBERS:
        right = is_number(strength, -1000, 1000)
        case.told(None if right else "strength", tiny_custom.subject, found, "bear", strength)
    for wrong in (None, [], (), 3, "bear.png", found.image, [found, None], np.zeros((4, 4)), {}, b"x"):
        case.refused("segmentation", tiny_custom.subject, wrong, "bear")


BOUNDS = {  # of `generate`: least, most, whole numbers alone; and a value that is surely right
    "num_inference_steps": (1, 1000, True, 1),
    "guidance_scale": (-1000, 1000, False, 7.5),
    "subject_scale": (-1000, 1000, False, 0.5),
    "seed": (0, 2**62, True, 2**62),
    "height": (8, 8192, True, 32),
    "width": (8, 8192, True, 32),
    "num_images": (1, 64, True, 1),
    "preview_every": (0, 1000, True, 1),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_numbers(judge: Callable, tiny_custom: CustomContrast, bear, name: str) -> None:
    case = judge("library: generate, numbers")
    low, high, whole, right = BOUNDS[name]
    for value in (*NUMBERS, right):
        fits = is_number(value, low, high, whole) and (name not in ("height", "width") or value % 8 == 0)
        case.told(None if fits else name, tiny_custom.generate, "a bear", bear, **(ONE | {name: value}))


def test_schedulers(judge: Callable, tiny_custom: CustomContrast, bear) -> None:
    case = judge("library: generate, numbers")
    for value in (*NUMBERS, "DDIM", "FlowMatchEulerDiscreteScheduler", "os.system"):
        case.refused("scheduler", tiny_custom.generate, "a bear", bear, scheduler=value, **ONE)
    for value in (None, "ddim", "euler"):
        case.works(tiny_custom.generate, "a bear", bear, scheduler=value, **ONE)


@FEW
@given(numbers, numbers, numbers)
def test_numbers_by_hypothesis(judge: Callable, tiny_custom: CustomContrast, bear, a: object, b: object, c: object):
    case = judge("library: generate, numbers")
    steps = a if isinstance(a, bool) or not isinstance(a, int) else min(a, 2)  # larger ones are right, and take time
    wrong = [
        name
        for name, right in (
            ("num_inference_steps", steps is None or is_number(steps, 1, 1000, whole=True)),
            ("guidance_scale", b is None or is_number(b, -1000, 1000)),
            ("seed", is_number(c, 0, 2**62, whole=True)),
        )
        if not right
    ]
    options = ONE | {"num_inference_steps": steps, "guidance_scale": b, "seed": c}
    case.told("|".join(wrong) or None, tiny_custom.generate, "a bear", bear, **options)


def test_objects_in_place_of_settings(judge: Callable, tiny_custom: CustomContrast, bear, found: Segmentation) -> None:
    case = judge("library: generate, objects")
    for wrong in (3, "bear", found, [found], [None], [bear] * 5, {"a": bear}, bear.features):
        case.refused("subjects", tiny_custom.generate, "a bear", wrong, **ONE)
    for wrong in (3, True, "on", {"enabled": True}, RecordConfig()):
        case.refused("location", tiny_custom.generate, "a bear", bear, location=wrong, **ONE)
    for wrong in (3, True, "all", {"maps": True}, LocationConfig()):
        case.refused("record", tiny_custom.generate, "a bear", bear, record=wrong, **ONE)
    other = replace(bear, features=torch.zeros(1, 5, 7))
    case.refused("subjects", tiny_custom.generate, "a bear", other, **ONE)
    case.refused("strength", tiny_custom.generate, "a bear", replace(bear, strength=float("nan")), **ONE)
    plain = CustomContrast.from_parts(tiny_custom.base)
    case.refused("no adapter", plain.generate, "a bear", bear, **ONE)
    case.refused("no adapter", plain.subject, found, "bear")


def whole_from(least: int) -> Callable[[object], bool]:
    return lambda value: is_number(value, least, float("inf"), whole=True)


def size(value: object) -> bool:
    """A size of an encoder: 1 to 65,536."""
    return is_number(value, 1, 65_536, whole=True)


def switch(value: object) -> bool:
    return isinstance(value, bool)


FACTS = {"image_width": 24, "image_layers": (2, 4, 6), "text_widths": (32,), "num_layers": 7}
CONFIGS = (  # what makes it, its field, and which values are right
    (LocationConfig, "threshold", lambda value: is_number(value, 0, 1) and value < 1),
    (LocationConfig, "start_step", whole_from(2)),
    (LocationConfig, "freeze_step", lambda value: value is None or whole_from(1)(value)),
    (LocationConfig, "enabled", switch),
    (LocationConfig, "mask_text", switch),
    (RecordConfig, "steps", lambda value: value is None or isinstance(value, list)),  # the lists of NUMBERS are right
    (RecordConfig, "maps", switch),
    (EncoderConfig.from_dict, "width", lambda value: size(value) and value % 8 == 0),
    (EncoderConfig.from_dict, "heads", size),
    (EncoderConfig.from_dict, "depth", size),
    (EncoderConfig.from_dict, "text_queries", size),
    (EncoderConfig.from_dict, "num_layers", size),
    (EncoderConfig.from_dict, "text_widths", lambda value: value == [1]),
    (EncoderConfig.from_dict, "image_layers", lambda value: value == [1]),
)


@pytest.mark.parametrize(("make", "name", "right"), CONFIGS, ids=[name for _, name, _ in CONFIGS])
def test_configs(judge: Callable, make: Callable, name: str, right: Callable[[object], bool]) -> None:
    case = judge("library: configs")
    for value in (*NUMBERS, None, 0.5, 8):
        told = None if not isinstance(value, np.ndarray) and right(value) else name
        if make == EncoderConfig.from_dict:
            case.told(told, make, FACTS | {name: value})
        else:
            case.told(told, make, **{name: value})


POINTS = (  # clicks on a disc at (40, 30) of a picture of 80 x 60 px, and what is wrong with them
    ([], None),
    ([(1, 2, 1)], None),
    ([(40, 30, 1)], None),
    ([(40, 30, 0)], "clicks"),  # nothing is left
    ([(1, 2)], "points"),
    ([()], "points"),
    ([(1, 2, 3, 4)], "points"),
    ([(-1, 5, 1)], "points"),
    ([(80, 5, 1)], "points"),
    ([(float("nan"), 5, 1)], "points"),
    ([(float("inf"), 5, 1)], "points"),
    ([(5, 5, 2)], "label"),
    ([(5, 5, float("nan"))], "label"),
    ([("a", "b", "c")], "points"),
    ([None], "points"),
    (3, "points"),
    ("clicks", "points"),
    (None, "points"),
    ([[5, 5, True]], None),
    ([(10**30, 5, 1)], "points"),
    ([(40, 30, 1)] * 100, None),
    ({"a": 1}, "points"),
    ([(5, 5, "1")], None),  # numbers as text, as some clients send them
    ([(5j, 5, 1)], "points"),
)  # fmt: skip
BOXES = (
    (None, None),
    ((0, 0, 80, 60), None),
    ((80, 60, 0, 0), None),
    ((5, 5, 5, 5), "box"),
    ((5, 5, 7, 7), "box"),
    ((-9, -9, 900, 900), None),
    ((200, 200, 300, 300), "box"),
    ((float("nan"),) * 4, "box"),
    ((float("inf"), 0, 1, 1), "box"),
    ((1, 2, 3), "box"),
    ((1, 2, 3, 4, 5), "box"),
    ("box", "box"),
    (3, "box"),
    ([], "box"),
    (("a",) * 4, "box"),
    (True, "box"),
    ((None,) * 4, "box"),
)


def test_clicks_and_boxes(judge: Callable, found: Segmentation) -> None:
    case, segmenter = judge("library: segmenter"), Segmenter(threads=1)
    for points, names in POINTS:
        case.told(names, segmenter.refine, found, points)
    for box, names in BOXES:
        case.told(names, segmenter.refine, found, (), box)
        if names or box is None:  # a right one costs another look
            case.told(names, segmenter.refine, found, [(40, 30, 1)], box)
    for wrong in (None, 3, b"", "nowhere.png", np.zeros((0, 0, 3))):
        case.refused("image", segmenter.auto, wrong)
        case.refused("image", segmenter.refine, wrong, [(3, 3, 1)])
    plain = Image.new("RGB", (70, 70))
    case.refused("no subject", segmenter.auto, plain)
    case.refused("no subject", segmenter.refine, plain)
    case.works(segmenter.refine, plain, [(3, 3, 1)])
