"""The functions behind the page: whatever the controls hold, the visitor gets a picture or one sentence."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from customcontrast.errors import RequestError
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.handlers.forms import GenerationForm, SubjectForm
from customcontrast.ui.handlers.generation_run import ProgramCall
from customcontrast.ui.handlers.messages import said
from customcontrast.ui.handlers.subject_panel import SLOTS
from customcontrast.ui.handlers.viewers import RunView
from customcontrast.ui.service import recipe
from customcontrast.ui.service.cutouts import CutOut, points_from
from customcontrast.ui.service.models import ServiceConfig
from customcontrast.ui.service.request import Request, SubjectRequest, check
from customcontrast.ui.service.service import Service
from tests.robustness.makers import FEW, NO_TEXT, NOUNS, NUMBERS, PROMPTS, broken_bytes, json_values, numbers, odd_text
from tests.support.serving import EXAMPLES, tiny_model

GOOD = {
    "prompt": "a bear on the beach", "negative_prompt": "", "steps": 1, "guidance": 1.0, "subject_scale": 1.0,
    "seed": 5, "pictures": 1, "location_masks": True, "base": "toyland",
    "size": "", "scheduler": "", "text_tokens": True, "apart": True,
}  # fmt: skip
MAPS = {"branch": "text", "word": 1, "who": 0, "step": 0, "layers": ""}


@pytest.fixture(scope="module")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> Handlers:
    service = Service(ServiceConfig("toyland", weights=str(tiny_model(tmp_path_factory.mktemp("tiny"))), device="cpu"))
    service.models.model()
    return Handlers(service, EXAMPLES, lambda: tmp_path_factory.mktemp("answer"))


@pytest.fixture(scope="module")
def bear(handlers: Handlers) -> CutOut:
    return handlers.subjects.upload(str(EXAMPLES / "bear.png"))["cut"]


@pytest.fixture(scope="module")
def shown(handlers: Handlers, bear: CutOut) -> RunView:
    return [c for c in handlers.generation.generate(controls(bear)) if "run" in c][-1]["run"]


def controls(
    cut: CutOut | None, noun: Any = "bear", strength: Any = 1.0, place: Any = "", area: Any = "",
    turn: Any = "", pose: Any = "", **changed: Any,
) -> GenerationForm:  # fmt: skip
    first = SubjectForm(cut, (), noun, strength, place, area, turn, pose)
    return GenerationForm(**(GOOD | changed), subjects=(first, *[SubjectForm()] * (len(SLOTS) - 1)))


def as_told(action: Callable[..., Any]) -> Callable[..., None]:
    """The action as the page wires it: its errors go through `said`, and what it says in red is its sentence."""

    def act(*args: Any, **options: Any) -> None:
        try:
            changes = action(*args, **options)
            changes = list(changes) if isinstance(changes, Iterator) else [changes]
        except Exception as error:
            raise RequestError(said(error)) from error
        for change in changes if isinstance(changes[-1], dict) else ():
            for value in change.values():
                found = re.search(r"cc-error[^>]*>(.*?)</div>", str(value)) if "cc-error" in str(value) else None
                if found:
                    raise RequestError(html.unescape(found[1]))

    act.__qualname__ = action.__qualname__
    return act


def test_every_control_of_a_run(judge: Callable, handlers: Handlers, bear: CutOut) -> None:
    case, run = judge("page's functions: generate"), as_told(handlers.generation.generate)
    for prompt in (*PROMPTS, *NO_TEXT):
        case(run, controls(bear, prompt=prompt))
    for name in ("steps", "guidance", "subject_scale", "seed", "pictures", "location_masks"):
        for value in (*NUMBERS, None):
            if not (name == "steps" and value is None):  # the base's default is right, and takes 20 steps
                case(run, controls(bear, **{name: value}))
    for value in (*NUMBERS, None):
        case(run, controls(bear, strength=value))
    for noun in (*NOUNS, *NO_TEXT):
        case(run, controls(bear, noun=noun))
    for place in ("left", "box", "nowhere", None, 3, ["left"], *NO_TEXT):
        for area in (
            "10, 10, 60, 60",
            "",
            "1, 2",
            "60, 0, 10, 100",
            "nan, 0, 50, 50",
            "-1, 0, 50, 1e9",
            "a, b, c, d",
            3,
            None,
        ):
            case(run, controls(bear, place=place, area=area))
    for turn in ("left", "-30", 45, "any", "upside down", "999", "nan", None, [], *NO_TEXT):
        case(run, controls(bear, turn=turn))
    for pose in ("sitting", "any", "flying", None, 3, []):
        case(run, controls(bear, pose=pose))
    for camera in ("15", 15, "any", "high", "-90", "inf", None, []):
        case(run, controls(bear, camera=camera))
    for base in ("", "sd15", "sdxl", "sd99", None, 3, ["toyland"], "../toyland", "TOYLAND"):
        case(run, controls(bear, base=base))
    for prompt in NO_TEXT:
        case(run, controls(bear, negative_prompt=prompt))
    case(run, controls(bear, negative_prompt="x" * 30_000), says="longer")
    case(run, controls(replace(bear, current=None)), says="click")
    case(run, controls(None))


@FEW
@given(odd_text, odd_text, numbers, numbers, numbers)
def test_controls_by_hypothesis(
    judge: Callable, handlers: Handlers, prompt: str, noun: str, a: Any, b: Any, c: Any
) -> None:
    case = judge("page's functions: generate")
    case(as_told(handlers.generation.generate), controls(None, prompt=prompt, guidance=a, seed=b, pictures=1))
    case(as_told(lambda r: check(r)), Request(prompt, (SubjectRequest((), noun, a),), noun, b, c, a, b, c))
    case(as_told(handlers.prompt.notes), prompt, "toyland", [noun])


def test_uploads(judge: Callable, handlers: Handlers, tmp_path: Path) -> None:
    case, path = judge("page's functions: upload"), tmp_path / "picture.png"
    data = (EXAMPLES / "bear.png").read_bytes()
    for _, broken in broken_bytes(data):
        path.write_bytes(broken)
        case(as_told(handlers.subjects.upload), str(path))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"):
        for size in ((1, 1), (1, 300), (15, 15), (40, 40), (600, 20)):
            try:
                Image.new(mode, size).save(path, "TIFF")
            except (OSError, KeyError):  # not a mode of TIFF
                continue
            case(as_told(handlers.subjects.upload), str(path))
    for wrong in (
        "/nowhere.png",
        str(tmp_path),
        "/etc/passwd",
        "/dev/zero",
        "/dev/null",
        "\0",
        "http://x/y.png",
        3,
        b"x",
    ):
        case(as_told(handlers.subjects.upload), wrong, says="" if wrong is None else ".")
    for frames in (2, 5):
        pictures = [Image.new("RGB", (64, 64), (40 * k, 90, 30)) for k in range(frames)]
        for kind in ("GIF", "WEBP", "PNG", "TIFF"):
            pictures[0].save(path, kind, save_all=True, append_images=pictures[1:])
            case(as_told(handlers.subjects.upload), str(path))
    for angle in (0, 3, 6, 99):
        exif = Image.Exif()
        exif[0x0112] = angle
        Image.new("RGB", (60, 40), "red").save(path, "JPEG", exif=exif)
        case(as_told(handlers.subjects.upload), str(path))


def test_clicks_undo_and_recipes(judge: Callable, handlers: Handlers, bear: CutOut, tmp_path: Path) -> None:
    case = judge("page's functions: clicks, recipes")
    for place in ((0, 0), (-5, 3), (10**9, 1), (1.5, 2.5), ("a", 1), (None, 1), (float("nan"), 1), (1,), ()):
        for label_ in (0, 1, 2):
            case(as_told(handlers.subjects.click), place, bear, label_)
        case(as_told(handlers.subjects.click), place, None, 1)
    for label_ in (3, -1, None, "1", float("nan")):
        case(as_told(handlers.subjects.click), (20, 20), bear, label_)
    paths = (
        [[5, 5], [40, 60]],
        [[-50, 5], [9999, 60]],
        [],
        [[1]],
        [["a", 1]],
        [[float("nan"), 1]],
        None,
        3,
        [[1, 1]] * 9999,
    )
    for path_ in paths:
        for radius in (5, 0, -1, None, "x", float("inf"), 10**9):
            case(as_told(handlers.subjects.stroke), {"path": path_, "radius": radius}, bear, 1)
        for label_ in (0, 1, 2, 3, None, "1"):
            case(as_told(handlers.subjects.stroke), {"path": path_, "radius": 4}, bear, label_)
    for drawn in (None, 3, [], {}, {"path": [[1, 1]]}, {"box": [1, 2]}, {"box": [0, 0, 50, 50]}, {"box": ["x"] * 4}):
        case(as_told(handlers.subjects.stroke), drawn, bear, 1)
        case(as_told(handlers.subjects.draw_place), drawn)
    for place in ("", "left", "box", "nowhere", None, 3, []):
        for area in ("", "10, 10, 60, 60", "1", None, 3):
            case(as_told(handlers.subjects.choose_place), place, area)
    case(as_told(handlers.subjects.undo), bear)
    case(as_told(handlers.subjects.undo), None)
    case(as_told(handlers.subjects.reset), None)
    path = tmp_path / "r.png"
    whole = recipe.png_bytes(Image.new("RGB", (32, 32)), GOOD | {"subjects": []}, ())
    for _, broken in broken_bytes(whole):
        path.write_bytes(broken)
        case(as_told(handlers.replay.load), str(path))
    for key in GOOD:
        for value in (None, -1, "x", [], {}, 10**30, "\ud800"):
            path.write_bytes(recipe.png_bytes(Image.new("RGB", (32, 32)), GOOD | {"subjects": [], key: value}, ()))
            case(as_told(handlers.replay.load), str(path))
    for wrong in ("/nowhere.png", str(tmp_path), "/etc/passwd", "\0", str(EXAMPLES / "bear.png")):
        case(as_told(handlers.replay.load), wrong, says=".")


def test_viewers(judge: Callable, handlers: Handlers, shown: RunView) -> None:
    case = judge("page's functions: viewers")
    odd = (-1, 0, 1, 10**9, None, "x", float("nan"), 2.5, [], True)
    for value in odd:
        case(as_told(handlers.viewers.pick), value, shown)
        case(as_told(handlers.viewers.step), shown, value)
        for name in MAPS:
            for branch in ("text", "visual"):
                case(as_told(handlers.viewers.map), shown, *(MAPS | {"branch": branch, name: value}).values())
    for word in ("bear", "", "S*", "visual:1", "visual:0", "visual:99", "visual:x", "zebra", "\0", "x" * 999, None, 3):
        for step in (0, 1, -1, 10**9):
            case(as_told(handlers.viewers.named_map), shown, word, step, 0)
    for index in (-1, 1, 10**9):
        case(as_told(handlers.viewers.named_map), shown, "bear", 0, index, says="no picture")
    case(as_told(handlers.viewers.named_map), None, "bear", 0, 0, says="Generate")


@FEW
@given(json_values)
def test_points_of_programs(judge: Callable, values: Any) -> None:
    judge("page's functions: points")(points_from, values)


@FEW
@given(st.text(max_size=40), st.integers(0, 3))
def test_words_and_files_of_programs(judge: Callable, handlers: Handlers, nouns: str, count: int) -> None:
    call = ProgramCall([str(EXAMPLES / "bear.png")] * count, nouns, settings=GOOD)
    judge("page's functions: run")(as_told(handlers.generation.run), call)


def test_pictures_of_programs(judge: Callable, handlers: Handlers, tmp_path: Path) -> None:
    case, path = judge("page's functions: found"), tmp_path / "p.png"
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(noise, "PNG")
    for data in (noise.getvalue(), b"text"):
        path.write_bytes(data)
        for points in (None, [[5, 5, 1]], [[500, 5, 1]], [[5]], "x", 3, {"a": 1}, [[1, 2, 1]] * 70):
            case(as_told(handlers.service.cutouts.segmented), str(path), points)
    for wrong in (None, "", "/nowhere", str(tmp_path)):
        case(as_told(handlers.service.cutouts.segmented), wrong, says=".")
