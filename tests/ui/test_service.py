"""The library as a service: requests are checked, models load in the background, subjects are looked at once."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from customcontrast.config import LIMITS
from customcontrast.errors import PictureError, RequestError
from customcontrast.images.loading import load_picture
from customcontrast.placement import Placement
from customcontrast.segmentation import Segmentation
from customcontrast.specs import BASES, WEIGHTS
from customcontrast.ui.service import noun_guess
from customcontrast.ui.service.cutouts import ADD, BOX, MAX_SIDE, CutOut, points_from
from customcontrast.ui.service.models import ServiceConfig
from customcontrast.ui.service.noun_guess import Guess
from customcontrast.ui.service.phrases import fill, noun_from_name
from customcontrast.ui.service.prompt_hints import prompt_hints
from customcontrast.ui.service.request import (
    Request,
    StyleRequest,
    SubjectRequest,
    check,
    place_box,
    read_place,
    request_from,
)
from customcontrast.ui.service.service import Service
from tests.support.serving import EXAMPLES, ROOT, tiny_model
from tests.support.tiny_models import random_adapter


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Service:
    return Service(ServiceConfig("toyland", weights=str(tiny_model(tmp_path_factory.mktemp("tiny"))), device="cpu"))


@pytest.fixture(scope="module")
def bear(shared: Service) -> CutOut:
    return shared.cutouts.open(EXAMPLES / "bear.png")


def test_the_first_size_of_a_base_is_its_own():
    """What the page calls its size, before it is loaded."""
    for name in ("toyland", "toyland2"):
        config = json.loads((WEIGHTS / name / "unet" / "config.json").read_text())
        assert BASES[name].sizes[0] == "{0}x{0}".format(8 * config["sample_size"])


def test_sizes_are_read_and_written_alike():
    assert check(Request("a bear", size=" 64 × 96 ")).size == "64x96" and check(Request("a bear")).size == ""
    assert Request("a bear", size="64x96").width_height == (64, 96) and Request("a bear").width_height is None


def test_nothing_heavy_is_imported_before_a_model_is_asked_for():
    code = "import sys, customcontrast.ui.handlers; print(sorted({'torch', 'diffusers', 'gradio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": None}, "prompt is empty"),
        ({"prompt": "x" * 30_000}, "longer than"),
        ({"steps": 0}, "steps"),
        ({"steps": 10_000}, "steps"),
        ({"guidance": "much"}, "guidance"),
        ({"guidance": float("nan")}, "guidance"),
        ({"subject_scale": -1}, "subject scale"),
        ({"seed": -3}, "seed"),
        ({"seed": None}, "seed"),
        ({"pictures": 99}, "number of pictures"),
        ({"size": "large"}, "width x height"),
        ({"size": "8x8"}, "does not fit"),
        ({"size": "2048x2048"}, "at most"),
        ({"scheduler": "fast"}, "no scheduler"),
    ],
)
def test_wrong_requests_get_one_sentence(wrong: dict[str, object], said: str):
    with pytest.raises(RequestError, match=said) as caught:
        check(replace(Request("a bear"), **wrong))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("noun", "said"), [("", "Say what subject 1 is"), ("<>", "Say what"), ("b" * 99, "too long")])
def test_wrong_nouns_get_one_sentence(bear: CutOut, noun: str, said: str):
    with pytest.raises(RequestError, match=said):
        check(Request("a bear", (SubjectRequest((bear.current,), noun),)))


def test_settings_and_back(bear: CutOut):
    request = check(
        Request("a bear", (SubjectRequest((bear.current,), "bear", 0.5, "right"),), "fog", 7, 3.5, 0.75, 11, 2, False)
    )
    again = request_from(request.settings() | {"version": 1, "run": {}}, [s.segmentations for s in request.subjects])
    assert again == request


@pytest.mark.parametrize(
    "settings", [{}, {"prompt": 3}, {"prompt": "a", "subjects": [{}]}, {"prompt": "a", "seed": []}]
)
def test_damaged_settings_get_one_sentence(settings: dict[str, object]):
    with pytest.raises(RequestError):
        request_from(settings, [[]] if settings.get("subjects") else [])


def test_example_is_cut_out_and_clicks_correct_it(shared: Service, bear: CutOut):
    assert bear.mask is not None and 0.02 < bear.mask.mean() < 0.8 and not bear.trouble
    y, x = np.argwhere(~bear.mask)[0]
    more = shared.cutouts.clicked(bear, [(int(x), int(y), ADD)])
    assert more.mask[y, x] and len(more.points) == 1 and more.auto is bear.auto
    assert np.array_equal(shared.cutouts.clicked(more, ()).mask, bear.mask)


def test_places_have_one_spelling():
    assert [read_place(text) for text in (None, "", " Left ", "ANYWHERE")] == ["", "", "left", "anywhere"]
    assert read_place("10 20 %, 60;100%") == "10, 20, 60, 100" == read_place("10.0,20,60,1e2")
    assert place_box("") is None is place_box("anywhere") and place_box("right") == (50, 0, 100, 100)
    assert place_box("10, 20, 60, 99.5") == (10, 20, 60, 99.5)


def test_a_place_goes_from_the_request_to_the_subject(shared: Service, bear: CutOut):
    model = shared.models.model()

    def placement(place: str) -> Placement:
        return shared.subject(model, SubjectRequest((bear.current,), "bear", place=place)).placement

    assert placement("left").box == (0, 0, 0.5, 1) and placement("10, 20, 60, 100").box == (0.1, 0.2, 0.6, 1)
    assert not placement("anywhere").location and placement("").location and not placement("").drawn


def test_an_old_recipe_has_no_place(bear: CutOut):
    settings = {"prompt": "a bear", "subjects": [{"noun": "bear", "strength": 1.0}]}
    assert request_from(settings, [[bear.current]]).subjects[0].place == ""
    settings["subjects"][0]["place"] = "under the table"
    with pytest.raises(RequestError, match="left, middle, right"):
        request_from(settings, [[bear.current]])


def test_guidance_on_the_subject_is_in_the_recipe(bear: CutOut):
    """A recipe from before it says nothing of it, and its picture was made without."""
    settings = {"prompt": "a bear", "subjects": [{"noun": "bear"}]}
    for given, taken in ({}, 0.0), ({"subject_guidance_end": None}, None), ({"subject_guidance_end": 0.25}, 0.25):
        request = request_from(settings | given, [[bear.current]])
        assert request.subject_guidance_end == taken == request.to_config().subject_guidance_end
    with pytest.raises(RequestError, match=r"end of the guidance on subjects is 3; it must be a number from 0 to 1"):
        request_from(settings | {"subject_guidance_end": 3}, [[bear.current]])


def test_two_box_clicks_make_a_box(shared: Service, bear: CutOut):
    one = shared.cutouts.clicked(bear, [(200, 180, BOX)])
    assert one.box is None and np.array_equal(one.mask, bear.mask)
    two = shared.cutouts.clicked(bear, [(200, 180, BOX), (40, 20, BOX)])
    assert two.box == (40, 20, 201, 181)
    assert not two.mask[:20].any() and not two.mask[181:].any()


def test_where_nothing_stands_out_a_click_shows_it(shared: Service):
    blank = shared.cutouts.open(Image.new("RGB", (120, 90), (128, 128, 128)))
    assert blank.current is None and blank.trouble and blank.picture.size == (120, 90)


def test_transparent_pictures_are_taken_at_their_word(shared: Service):
    rgba = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    rgba.paste((255, 0, 0, 255), (16, 16, 48, 48))
    cut = shared.cutouts.open(rgba)
    assert cut.current.method == "alpha" and cut.mask.sum() == 32 * 32


def test_large_pictures_are_reduced(shared: Service):
    big = Image.open(EXAMPLES / "bear.png").convert("RGB").resize((2000, 1500))
    assert max(shared.cutouts.open(big).picture.size) == MAX_SIDE


def test_subjects_are_looked_at_once(shared: Service, bear: CutOut):
    model = shared.models.model()
    first = shared.subject(model, SubjectRequest((bear.current,), "bear"))
    other = Segmentation(bear.current.image.copy(), bear.current.mask.copy())
    second = shared.subject(model, SubjectRequest((other,), "teddy", 0.5))
    assert second.features is first.features and (second.noun, second.strength) == ("teddy", 0.5)
    third = shared.subject(model, SubjectRequest((replace(other, mask=~other.mask),), "bear"))
    assert third.features is not first.features


def test_the_same_request_gives_the_same_picture(shared: Service, bear: CutOut):
    request = Request("a bear on the beach", (SubjectRequest((bear.current,), "bear"),), steps=3)
    first, second = ([*shared.stream(request)][-1] for _ in range(2))
    assert np.array_equal(np.asarray(first.images[0]), np.asarray(second.images[0]))


def test_a_base_without_style_says_so(shared: Service):
    request = Request("a bear", style=StyleRequest(Image.new("RGB", (40, 40), "red")))
    with pytest.raises(RequestError, match=r"takes no style picture: remove it, or start the server with SD-1\.5"):
        list(shared.stream(request))


def test_prompt_notes(shared: Service):
    shared.models.model()
    assert prompt_hints(shared.models, "a bear on the beach", ["bear"]) == []
    assert not any(
        "not in the prompt" in note for note in prompt_hints(shared.models, "two bears in the city", ["bear"])
    )
    assert "“cat” is not in the prompt" in prompt_hints(shared.models, "a bear on the beach", ["cat"])[0]
    assert any(
        "beech" in note and "“beach”" in note for note in prompt_hints(shared.models, "a bear on the beech", ["bear"])
    )
    long = prompt_hints(shared.models, "a bear " + "on the beach " * 400, ["bear"])
    assert len(long) == 1 and "left out" in long[0] and len(long[0]) < 300
    taken = prompt_hints(shared.models, "a <cat> on the beach", ["bear"])
    assert len(taken) == 1 and "<cat>" in taken[0] and "'bear'" in taken[0]  # it stands for the bear, and says so


def test_a_missing_model_is_one_sentence_and_can_be_repaired(tmp_path: Path):
    broken = Service(ServiceConfig("toyland", weights=str(tmp_path / "nothing"), device="cpu"))
    with pytest.raises(RequestError, match="could not be loaded") as caught:
        broken.models.model()
    assert "\n" not in str(caught.value) and not broken.models.ready()
    tiny_model(tmp_path / "nothing")
    assert broken.models.model() is not None and broken.models.ready()


@pytest.mark.parametrize(
    ("template", "nouns", "filled"),
    [
        ("{subject} on the beach", ["elephant"], "an elephant on the beach"),
        ("{subject} on the beach", [], "a robot on the beach"),
        ("{tall subject} in the snow", ["cat", "robot"], "a tall cat and a robot in the snow"),
        ("{subject wearing a hat} at night", ["a", "b", "c"], "an a wearing a hat, a b and a c at night"),
    ],
)
def test_presets_are_filled(template: str, nouns: list[str], filled: str):
    assert fill(template, nouns) == filled


@pytest.mark.parametrize(("name", "noun"), [("bear.png", "bear"), ("striped-orange-cat_2.png", "cat"), ("07.png", "")])
def test_nouns_are_guessed_from_example_names(name: str, noun: str):
    assert noun_from_name(name) == noun


@pytest.mark.parametrize("points", ["no", [[1, 2]], [[1, 2, 7]], [["a", 1, 1]], [[1, 1, 1]] * 100])
def test_wrong_points_get_one_sentence(points: object):
    with pytest.raises(RequestError, match="points"):
        points_from(points)


EARLY = """
import sys, threading
from customcontrast.ui.service.request import Request
from customcontrast.ui.service.prompt_hints import prompt_hints
from customcontrast.ui.service.models import ServiceConfig
from customcontrast.ui.service.service import Service

service, gate = Service(ServiceConfig("toyland")), threading.Event()
models = service.models
load = models._load
models._load = lambda name: gate.wait() and load(name)
picture = lambda: next(service.stream(Request("a bear", steps=1)))
notes = lambda: prompt_hints(models, "a bear", [])
asked = [picture, models.atlas, notes]
threads = [threading.Thread(target=ask, daemon=True) for ask in asked]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(1.0)
print([m for m in ("torch", "diffusers", "transformers") if m in sys.modules])
gate.set()
for thread in threads:
    thread.join(120.0)
print([thread.is_alive() for thread in threads])
"""


@pytest.mark.slow
def test_who_asks_before_the_model_is_there_imports_nothing_beside_its_loader():
    """Two threads that import diffusers at once find it half made."""
    command = [sys.executable, "-c", EARLY]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240, cwd=ROOT)
    assert found.stdout.split("\n")[:2] == ["[]", "[False, False, False]"]
    assert "Traceback" not in found.stderr


def test_limits_are_those_of_the_one_table():
    for name, field in {"num_inference_steps": "steps", "guidance_scale": "guidance", "num_images": "pictures"}.items():
        limit = LIMITS[name]
        for value in (limit.public_low, limit.public_high):
            assert getattr(check(replace(Request("a bear"), **{field: value})), field) == value
        with pytest.raises(RequestError):
            check(replace(Request("a bear"), **{field: limit.public_high + 1}))


def test_a_subject_of_another_adapter_is_looked_at_again(shared: Service, bear: CutOut):
    """Same width, other weights: its features are its own."""
    from customcontrast.pipeline import CustomContrast

    model = shared.models.model()
    other = CustomContrast.from_parts(model.base, random_adapter(model.base, seed=9))
    request = SubjectRequest((bear.current,), "bear")
    mine, theirs = shared.subject(model, request), shared.subject(other, request)
    assert mine.features.shape == theirs.features.shape and not mine.features.equal(theirs.features)
    assert shared.subject(other, request).features is theirs.features


def test_a_model_that_fails_to_load_leaves_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    broken = Service(ServiceConfig("toyland", weights=str(tmp_path / "nothing"), device="cpu"))
    with pytest.raises(RequestError):
        broken.models.model()
    told = [record for record in caplog.records if "could not be loaded" in record.getMessage()]
    assert len(told) == 1 and "toyland" in told[0].getMessage() and told[0].levelname == "ERROR"


def test_a_round_avatar_is_not_taken_as_its_own_mask(shared: Service):
    picture = Image.open(EXAMPLES / "bear.png").convert("RGBA")
    disc = Image.new("L", picture.size)
    ImageDraw.Draw(disc).ellipse((0, 0, picture.width - 1, picture.height - 1), fill=255)
    picture.putalpha(disc)
    cut = shared.cutouts.open(picture)
    assert cut.current is None or (cut.current.method != "alpha" and cut.mask.mean() < 0.6)
    corners = Image.new("L", picture.size)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, picture.width - 1, picture.height - 1), 40, fill=255)
    picture.putalpha(corners)
    assert shared.cutouts.open(picture).current.method != "alpha"


def test_a_damaged_avif_is_called_one(tmp_path: Path):
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x20ftypavif" + b"\0" * 60)
    with pytest.raises(PictureError, match="AVIF picture that is cut short or damaged"):
        load_picture(tmp_path / "a.avif")


@pytest.mark.parametrize(
    ("name", "noun"),
    [("IMG_2041.JPG", ""), ("Screenshot 2026-11.png", ""), ("my red car (2).png", "car"), ("teddy/01.png", "teddy")],
)
def test_what_cameras_call_a_picture_is_no_noun(name: str, noun: str):
    assert noun_from_name(name) == noun


def test_nouns_are_guessed_by_name_then_by_clip(shared: Service, bear: CutOut, monkeypatch: pytest.MonkeyPatch):
    shared.models.model()
    assert shared.nouns.guess(bear.current, "bear.png") == Guess("bear")
    assert shared.nouns.guess(bear.current, "IMG_1.png") == Guess()  # this model brings no text projection
    ranked = [("cat", 0.4), ("bear", 0.35), ("dog", 0.25)]
    (Path(shared.config.weights) / noun_guess.HEAD).touch()
    monkeypatch.setattr(shared.nouns, "ranked", lambda *_: ranked)
    assert shared.nouns.guess(bear.current, "IMG_1.png") == Guess("cat", False, ("bear", "dog"))
    assert shared.nouns.guess(None, "IMG_1.png") == Guess()


@pytest.mark.parametrize("base", ["toyland", "toyland2"])
def test_clip_offers_the_right_noun_among_three_mostly(base: str):
    """With the shipped weights, for the examples without their file's name; it is never called sure."""
    service = Service(ServiceConfig(base, device="cpu"))
    service.models.model()
    right = 0
    for path in sorted(EXAMPLES.glob("*.png")):
        guess = service.nouns.guess(service.cutouts.open(path).current, "IMG_1.png")
        assert not guess.sure and guess.noun in BASES[base].kinds
        right += path.stem in (guess.noun, *guess.others)
    assert right >= 5
