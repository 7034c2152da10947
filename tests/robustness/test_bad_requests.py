"""The functions behind the page: whatever the controls hold, the visitor gets a picture or the sentence that is due."""

from __future__ import annotations

import html
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
from customcontrast.ui.handlers.messages import error_text
from customcontrast.ui.handlers.subject_panel import SLOTS
from customcontrast.ui.handlers.viewers import RunView
from customcontrast.ui.service import recipe
from customcontrast.ui.service.cutouts import CutOut, points_from
from customcontrast.ui.service.models import ServiceConfig
from customcontrast.ui.service.request import Request, SubjectRequest, check
from customcontrast.ui.service.service import Service
from tests.robustness.makers import (
    FEW,
    LONG_NOUN,
    NO_NOUNS,
    NO_TEXT,
    NOUNS,
    NUMBERS,
    PNG_STANDS,
    PROMPTS,
    broken_bytes,
    json_values,
    numbers,
    odd_text,
)
from tests.robustness.oracle import NUMBERS_OF_A_RUN, SWITCHES_OF_A_RUN, is_number, is_public, wrong_in
from tests.support.serving import EXAMPLES

GOOD = {
    "prompt": "a bear on the beach", "negative_prompt": "", "steps": 1, "guidance": 1.0, "subject_scale": 1.0,
    "seed": 5, "pictures": 1, "location_masks": True, "base": "toyland",
    "size": "", "scheduler": "", "text_tokens": True, "apart": True,
}  # fmt: skip
MAPS = {"branch": "text", "word": 1, "who": 0, "step": 0, "layers": ""}


@pytest.fixture(scope="module")
def handlers(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Handlers:
    service = Service(ServiceConfig("toyland", weights=str(weights), device="cpu"))
    service.models.model()
    return Handlers(service, EXAMPLES, lambda: tmp_path_factory.mktemp("answer"))


@pytest.fixture(scope="module")
def bear(handlers: Handlers, picture: Path) -> CutOut:
    return handlers.subjects.upload(str(picture))["cut"]


@pytest.fixture(scope="module")
def shown(handlers: Handlers, bear: CutOut) -> RunView:
    return [c for c in handlers.generation.generate(controls(bear)) if "run" in c][-1]["run"]


def controls(
    cut: CutOut | None, noun: Any = "bear", strength: Any = 1.0, place: Any = "", area: Any = "",
    turn: Any = "", pose: Any = "", **changed: Any,
) -> GenerationForm:  # fmt: skip
    first = SubjectForm(cut, (), noun, strength, place, area, turn, pose)
    return GenerationForm(**(GOOD | changed), subjects=(first, *[SubjectForm()] * (len(SLOTS) - 1)))


def as_told(action: Callable[..., Any]) -> Callable[..., Any]:
    """The action as the page wires it: its errors go through `said`, and what it says in yellow or red is its sentence.

    Yellow beside a finished picture is a note about it, and no sentence.
    """

    def act(*args: Any, **options: Any) -> Any:
        try:
            changes = action(*args, **options)
            changes = list(changes) if isinstance(changes, Iterator) else [changes]
        except Exception as error:
            raise RequestError(error_text(error)) from error
        for change in changes if isinstance(changes[-1], dict) else ():
            kinds = "error" if "run" in change else "error|warn"
            for value in (v for name, v in change.items() if name != "notes"):  # of a prompt, beside its field
                found = re.search(rf"cc-(?:{kinds})[^>]*>(.*?)</div>", str(value))
                if found:
                    raise RequestError(html.unescape(found[1]))
        return changes[-1]

    act.__qualname__ = action.__qualname__
    return act


def test_prompts_of_a_run(judge: Callable, handlers: Handlers, bear: CutOut) -> None:
    case, run = judge("page's functions: generate"), as_told(handlers.generation.generate)
    refused = [prompt for prompt in PROMPTS if wrong_in({"prompt": prompt})]
    for prompt in (*PROMPTS[::3], *refused, "a" * 5000 + " S*", *NO_TEXT):
        too_long = str(prompt).startswith("a" * 5000)  # the word before S* is kept
        case.told("prompt" if too_long else wrong_in({"prompt": prompt}), run, controls(bear, prompt=prompt))
    for prompt in (*NO_TEXT, "x" * 30_000, "fog", ""):
        told = wrong_in({"negative_prompt": prompt})
        case.told(told, run, controls(bear, negative_prompt=prompt))


@pytest.mark.parametrize("name", [*NUMBERS_OF_A_RUN, *SWITCHES_OF_A_RUN])
def test_numbers_and_switches_of_a_run(judge: Callable, handlers: Handlers, bear: CutOut, name: str) -> None:
    case, run = judge("page's functions: generate"), as_told(handlers.generation.generate)
    for value in (*NUMBERS, None):
        if not (name == "steps" and value is None):  # the base's default is right, and takes 20 steps
            case.told(wrong_in({name: value}), run, controls(bear, **{name: value}))


def test_subjects_of_a_run(judge: Callable, handlers: Handlers, bear: CutOut, tmp_path: Path) -> None:
    case, run = judge("page's functions: generate"), as_told(handlers.generation.generate)
    for value in (*NUMBERS, None):
        case.told(None if is_public(value, 0, 3) else "strength", run, controls(bear, strength=value))
    for noun in (*NOUNS, *NO_TEXT):
        right = isinstance(noun, str) and noun not in (*NO_NOUNS[:-1], LONG_NOUN)  # without its <> the last is a word
        case.told(None if right else "subject 1|noun", run, controls(bear, noun=noun))
        fresh = replace(bear, current=replace(bear.current, mask=bear.current.mask | (np.random.rand(96, 96) < 0.01)))
        if not right:  # a subject that was never looked at before says the same
            case.refused("subject 1|noun", run, controls(fresh, noun=noun))
    case.refused("click", run, controls(replace(bear, current=None)))
    case.works(run, controls(None))


def test_views_and_places_of_a_run(judge: Callable, handlers: Handlers, bear: CutOut) -> None:
    case, run = judge("page's functions: generate"), as_told(handlers.generation.generate)
    for place in ("left", "anywhere", None, ""):
        for area in ("1, 2", 3, None):  # counts for a box alone
            case.works(run, controls(bear, place=place, area=area))
    for place in ("nowhere", 3, ["left"], *NO_TEXT[1:]):
        case.refused("place", run, controls(bear, place=place))
    case.works(run, controls(bear, place="box", area="10, 10, 60, 60"))
    for area in ("", None, "1, 2", "60, 0, 10, 100", "nan, 0, 50, 50", "-1, 0, 50, 1e9", "a, b, c, d", 3):
        case.refused("place|where subject 1 stands", run, controls(bear, place="box", area=area))
    for turn in ("", "any", None):
        case.works(run, controls(bear, turn=turn))
    for turn in ("left", "-30", 45, "upside down", "999", "nan", [], *NO_TEXT[1:]):  # this base takes none
        case.refused("turn", run, controls(bear, turn=turn))
    for pose in ("", "any", None):
        case.works(run, controls(bear, pose=pose))
    for pose in ("sitting", "flying", 3, []):
        case.refused("pose", run, controls(bear, pose=pose))
    for camera in ("", "any", None):
        case.works(run, controls(bear, camera=camera))
    for camera in ("15", 15, "high", "-90", "inf", []):
        case.refused("camera", run, controls(bear, camera=camera))
    for base in ("", None, "toyland"):
        case.works(run, controls(bear, base=base))
    for base in ("sd15", "sdxl", "sd99", 3, ["toyland"], "../toyland", "TOYLAND"):
        case.refused("model", run, controls(bear, base=base))
    for name, values in {
        "size": ("", None, "x", "64", "0x0", "99999x99999", -1, [], 64),
        "scheduler": ("", None, "x", "DDIM", 3, []),
    }.items():
        for value in values:
            case.told(wrong_in({name: value}), run, controls(bear, **{name: value}))
    case.works(run, controls(bear, size="64 x 96", scheduler="euler"))


@FEW
@given(odd_text, odd_text, numbers, numbers, numbers)
def test_controls_by_hypothesis(
    judge: Callable, handlers: Handlers, prompt: str, noun: str, a: Any, b: Any, c: Any
) -> None:
    case = judge("page's functions: generate")
    given_ = {"prompt": prompt, "guidance": a, "seed": b}
    case.told(wrong_in(given_), as_told(handlers.generation.generate), controls(None, **given_))
    values = {"prompt": prompt, "negative_prompt": noun, "steps": b, "guidance": c, "subject_scale": a, "seed": b}
    wrong = [wrong_in(values | {"pictures": c})]
    wrong += [] if is_public(a, 0, 3) else ["strength"]
    letters = " ".join("".join(" " if letter in "<>*" else letter for letter in noun).split())
    wrong += [] if 1 <= len(letters) <= 40 else ["subject 1"]
    request = Request(subjects=(SubjectRequest((), noun, a),), pictures=c, **values)
    case.told("|".join(filter(None, wrong)) or None, as_told(lambda r: check(r)), request)
    case.works(as_told(handlers.prompt.notes), prompt, "toyland", [noun])


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I", "F", "I;16")  # that TIFF can hold
ORIENTATION = 0x0112


def test_uploads(judge: Callable, handlers: Handlers, picture: Path, tmp_path: Path) -> None:
    case, path, upload = judge("page's functions: upload"), tmp_path / "picture.png", handlers.subjects.upload
    for what, broken in broken_bytes(picture.read_bytes()):
        path.write_bytes(broken)
        case.told(None if what in PNG_STANDS else "picture|file", as_told(upload), str(path))
    for mode in MODES:
        for size in ((1, 1), (1, 300), (15, 15), (600, 20)):
            Image.new(mode, size).save(path, "TIFF")
            case.refused("picture", as_told(upload), str(path))
        Image.new(mode, (40, 40)).save(path, "TIFF")
        case.refused("no subject", as_told(upload), str(path))  # it is one plain colour
    for wrong in ("/nowhere.png", str(tmp_path), "/etc/passwd", "/dev/zero", "/dev/null", "\0", "http://x/y.png"):
        case.refused("file|picture", as_told(upload), wrong)
    for wrong in (3, b"x"):
        case.refused("picture", as_told(upload), wrong)
    with Image.open(picture) as whole:
        frames = [whole.copy(), *[Image.new("RGB", whole.size, "blue")] * 2]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):  # the first frame counts
        options = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(path, kind, save_all=True, append_images=frames[1:], **options)
        assert case.works(as_told(upload), str(path))["cut"].current is not None
    for angle in (0, 3, 6, 99):
        exif = Image.Exif()
        exif[ORIENTATION] = angle
        Image.new("RGB", (60, 40), "red").save(path, "JPEG", exif=exif)
        case.refused("no subject", as_told(upload), str(path))


NAN = float("nan")
CLICKS = (  # place, and whether an added or a removed point can be there, on a picture of 96 x 96 px
    ((0, 0), True),
    ((1.5, 2.5), True),
    ((-5, 3), False),
    ((10**9, 1), False),
)
NO_CLICKS = (("a", 1), (None, 1), (NAN, 1), (1,), (), None, 3)
PATHS = (  # path of a stroke, and whether it can be painted
    ([[5, 5], [40, 60]], True),
    ([[-50, 5], [9999, 60]], True),
    ([], False),
    ([[1]], False),
    ([["a", 1]], False),
    ([[NAN, 1]], False),
    (None, False),
    (3, False),
    ([[1, 1]] * 9999, False),
)


def test_clicks_strokes_and_places(judge: Callable, handlers: Handlers, bear: CutOut) -> None:
    case, panel = judge("page's functions: clicks, strokes"), handlers.subjects
    click, stroke = as_told(panel.click), as_told(panel.stroke)
    for place, inside in CLICKS:
        for label in (0, 1):
            case.told(None if inside else "click", click, place, bear, label)
        case.works(click, place, bear, 2)  # the first corner of a box
        case.works(click, place, None, 1)
    for place in NO_CLICKS:
        case.refused("click", click, place, bear, 1)
        case.works(click, place, None, 1)
    for label in (3, -1, None, "add", NAN, [], 0.5):
        case.refused("click", click, (20, 20), bear, label)
    for path, right in PATHS:
        case.told(None if right else "stroke", stroke, {"path": path, "radius": 5}, bear, 1)
        for radius in (0, -1, None, "x", float("inf"), 10**9):
            case.refused("stroke|brush", stroke, {"path": path, "radius": radius}, bear, 1)
        for label in (0, 1):
            case.told(None if right else "stroke", stroke, {"path": path, "radius": 4}, bear, label)
        case.refused("brush", stroke, {"path": path, "radius": 4}, bear, 2)
        for label in (3, None, "1"):
            case.refused("stroke|paint", stroke, {"path": path, "radius": 4}, bear, label)
        case.refused("picture", stroke, {"path": path, "radius": 4}, None, 1)
    for drawn in (None, 3, [], {}, {"path": [[1, 1]]}, {"box": [1, 2]}, {"box": [0, 0, 50, 50]}):
        case.refused("stroke", stroke, drawn, bear, 1)
    for drawn in (None, 3, [], {}, {"path": [[1, 1]]}, {"box": [1, 2]}, {"box": ["x"] * 4}, {"box": [NAN, 0, 50, 50]}):
        case.refused("place", as_told(panel.draw_place), drawn)
    case.works(as_told(panel.draw_place), {"box": [0, 0, 50, 50]})
    for place in ("", "left", "anywhere", None):
        for area in ("", "10, 10, 60, 60", "1", None, 3):  # counts for a box alone
            case.works(as_told(panel.choose_place), place, area)
    for area, right in (("", True), (None, True), ("10, 10, 60, 60", True), ("1", False), (3, False)):
        case.told(None if right else "place", as_told(panel.choose_place), "box", area)
    for place in ("nowhere", 3, [], ["left"]):
        case.refused("place", as_told(panel.choose_place), place, "")
    for cut in (bear, None):
        case.works(as_told(panel.undo), cut)
        case.works(as_told(panel.reset), cut)


def test_recipes_loaded(judge: Callable, handlers: Handlers, tmp_path: Path) -> None:
    case, path, load = judge("page's functions: recipes"), tmp_path / "r.png", as_told(handlers.replay.load)
    blank = Image.new("RGB", (32, 32))
    for what, broken in broken_bytes(recipe.png_bytes(blank, GOOD | {"subjects": []}, ())):
        path.write_bytes(broken)
        case.told(None if what in PNG_STANDS else "recipe", load, str(path))
    for key in GOOD:
        for value in (None, -1, "x", [], {}, 10**30, "\ud800", GOOD[key]):
            path.write_bytes(recipe.png_bytes(blank, GOOD | {"subjects": [], key: value}, ()))
            told = wrong_in({key: value})
            if key == "base" and value not in (None, "toyland"):
                told = "model"  # which is not on this machine, or no name
            case.told(told, load, str(path))
    for wrong in ("/nowhere.png", str(tmp_path), "/etc/passwd", "\0", str(EXAMPLES / "bear.png")):
        case.refused("recipe", load, wrong)


def test_viewers(judge: Callable, handlers: Handlers, shown: RunView) -> None:
    """The run has one picture, one subject, one step and the words of its prompt."""
    case, viewers = judge("page's functions: viewers"), handlers.viewers
    odd = (-1, 0, 1, 10**9, None, "x", NAN, 2.5, [], True)
    step, map_ = as_told(viewers.step), as_told(viewers.map)
    for value in odd:
        case.works(as_told(viewers.pick), value, shown)  # a picture that is not there changes nothing
        is_step = isinstance(value, int | float) and value == value
        case.told(None if is_step else "step", step, shown, value)  # the nearest that there is
    for branch in ("text", "visual"):
        for value in odd:
            place = not value or is_number(value, 0, float("inf"), whole=True)  # nothing = the first
            told = {
                "word": place and (branch == "visual" or (value or 0) < len(shown.words)),
                "who": place and (branch == "text" or not value),
                "step": place,  # the last where there are fewer
                "layers": not value,
            }
            for name, right in told.items():
                right = right or {"word": "visual", "who": "text"}.get(name) == branch  # not looked at there
                values = MAPS | {"branch": branch, name: value}
                case.told(None if right else "map", map_, shown, *values.values())
    for branch in odd:
        case.works(map_, shown, *(MAPS | {"branch": branch}).values())
    words = {
        "bear": None, "S*": None, "visual:1": None, "visual:0": "subject 0", "visual:99": "subject 99",
        "visual:x": "word", "zebra": "word", "": "word", "\0": "word", "x" * 999: "word", None: "word", 3: "word",
    }  # fmt: skip
    for word, told in words.items():
        for at in (0, 1):
            case.told(told, as_told(viewers.named_map), shown, word, at, 0)
    for at in (-1, 2, 10**9):
        case.refused(f"step {at}", as_told(viewers.named_map), shown, "bear", at, 0)
    for at in ("x", NAN, [[]]):
        case.refused("step", as_told(viewers.named_map), shown, "bear", at, 0)
    for index in (-1, 1, 10**9):
        case.refused(f"no picture {index}", as_told(viewers.named_map), shown, "bear", 0, index)
    case.refused("Generate a picture", as_told(viewers.named_map), None, "bear", 0, 0)


def is_click(value: Any) -> bool:
    """[x, y, label] in numbers, or their text; the label 1 or 0."""
    if not isinstance(value, list) or len(value) != 3 or any(isinstance(v, bool) for v in value):
        return False
    return is_public(value[2], 0, 1, whole=True) and all(is_public(v, -1e300, 1e300) for v in value[:2])


clicks = st.lists(st.one_of(json_values, st.lists(st.integers(-1, 2), min_size=3, max_size=3)), max_size=3)


@FEW
@given(st.one_of(json_values, clicks))
def test_points_of_programs(judge: Callable, values: Any) -> None:
    right = values is None or (isinstance(values, list) and all(map(is_click, values)))
    judge("page's functions: points").told(None if right else "points", points_from, values)


@FEW
@given(st.lists(st.sampled_from(("bear", "teddy bear", "", " ", "<>", "*", "b" * 41)), max_size=3), st.integers(0, 3))
def test_words_and_files_of_programs(
    judge: Callable, handlers: Handlers, picture: Path, words: list[str], count: int
) -> None:
    call = ProgramCall([str(picture)] * count, ",".join(words), settings=GOOD)
    named = [word for word in words if word.strip()]
    names = "nouns" if len(named) != count else None
    names = names or next((f"subject {k}" for k, word in enumerate(named, 1) if "bear" not in word), None)
    judge("page's functions: run").told(names, as_told(handlers.generation.run), call)


@FEW
@given(st.text(max_size=40))
def test_more_files_than_words_of_programs(judge: Callable, handlers: Handlers, nouns: str) -> None:
    call = ProgramCall([str(EXAMPLES / "bear.png")] * (nouns.count(",") + 2), nouns, settings=GOOD)
    judge("page's functions: run").refused("nouns", as_told(handlers.generation.run), call)


def test_pictures_of_programs(judge: Callable, handlers: Handlers, picture: Path, tmp_path: Path) -> None:
    case, path = judge("page's functions: found"), tmp_path / "p.png"
    found = as_told(handlers.service.cutouts.segmented)
    path.write_bytes(b"text")
    wrong = ([[5]], "x", 3, {"a": 1}, [[1, 2, 1]] * 70, [[1, 2, 2]])
    for points in (None, [[5, 5, 1]], *wrong):
        case.refused("picture", found, str(path), points)
    case.works(found, str(picture), None)
    case.works(found, str(picture), [[48, 48, 1]])
    case.refused("click", found, str(picture), [[500, 5, 1]])
    for points in wrong:
        case.refused("points", found, str(picture), points)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    case.refused("no subject", found, str(path), None)
    for picture_ in (None, "", "/nowhere", str(tmp_path)):
        case.refused("picture|file", found, picture_)
