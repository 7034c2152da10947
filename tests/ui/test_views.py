"""Views: how subjects are turned and where the camera is, from the controls to the picture and back by its recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from customcontrast.errors import RequestError
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.handlers.forms import AS_INPUT, GenerationForm, SubjectForm, read_camera, size_like, turn_text
from customcontrast.ui.service.cutouts import CutOut
from customcontrast.ui.service.models import ServiceConfig
from customcontrast.ui.service.recipe import read_png
from customcontrast.ui.service.request import Request, SubjectRequest, check, request_from
from customcontrast.ui.service.service import Service
from customcontrast.ui.service.view_layout import DIRECTIONS, chosen_layout, read_turn
from tests.support.serving import EXAMPLES, LAYOUTS, tiny_layout_model, tiny_model


@pytest.fixture(scope="module")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> Handlers:
    weights = tiny_layout_model(tmp_path_factory.mktemp("layout") / "tiny")
    service = Service(ServiceConfig("toyland", weights=str(weights), device="cpu"))
    return Handlers(service, EXAMPLES, lambda: tmp_path_factory.mktemp("answer"))


@pytest.fixture(scope="module")
def bear(handlers: Handlers) -> CutOut:
    return handlers.service.cutouts.open(EXAMPLES / "bear.png")


def form(bear: CutOut, turn: str = "", pose: str = "", **changed: object) -> GenerationForm:
    first = SubjectForm(bear, (), "bear", turn=turn, pose=pose)
    settings = {"prompt": "a bear on the beach", "steps": 3, "guidance": 2.0, "base": "toyland"} | changed
    return GenerationForm(**settings, subjects=(first, *[SubjectForm()] * 3))


def run(handlers: Handlers, given: GenerationForm) -> dict:
    last = list(handlers.generation.generate(given))[-1]
    assert "run" in last, last["status"]
    return last


def test_a_turn_reaches_the_base_and_another_turn_gives_another_picture(handlers: Handlers, bear: CutOut):
    left = run(handlers, form(bear, "left", "sitting", camera="30"))["run"].result
    layout = left.recipe["layout"]
    assert layout["elevation"] == 30
    assert layout["subjects"][0]["azimuth"] == 90 and layout["subjects"][0]["pose"] == "sitting"
    back = run(handlers, form(bear, "back", "sitting", camera="30"))["run"].result
    assert not np.array_equal(np.asarray(left.images[0]), np.asarray(back.images[0]))
    assert "layout" not in run(handlers, form(bear))["run"].result.recipe


def test_what_is_left_open_is_drawn_as_without_a_view(handlers: Handlers, bear: CutOut):
    base = handlers.service.models.model().base
    drawn = base.layout_prior.draw("a bear on the beach", 4)
    request = form(bear, "left", seed=4).request()
    chosen = chosen_layout(base, request)
    assert chosen == replace(drawn, subjects=(replace(drawn.subjects[0], azimuth=90.0),))
    assert chosen_layout(base, form(bear, seed=4).request()) is None


def test_the_order_of_the_prompt_and_the_places_count(handlers: Handlers, bear: CutOut):
    base, found = handlers.service.models.model().base, (bear.current,)
    first = SubjectRequest(found, "bear", place="50, 10, 100, 90", azimuth=-45.0)
    second = SubjectRequest(found, "cat", pose="waving")
    layout = chosen_layout(base, check(Request("a cat and a bear", (first, second))))
    cat, bear_layout = layout.subjects
    assert cat.pose == "waving" and bear_layout.azimuth == -45 and bear_layout.box[0] >= 0.5
    three = check(Request("a cat, a bear and a car", (first, second, SubjectRequest(found, "car"))))
    with pytest.raises(RequestError, match="2 subjects at most"):
        chosen_layout(base, three)


def test_words_that_the_base_does_not_know_still_have_a_view(handlers: Handlers, bear: CutOut):
    base, found = handlers.service.models.model().base, (bear.current,)
    assert "zebra" not in LAYOUTS["nouns"]
    layout = chosen_layout(base, check(Request("a zebra", (SubjectRequest(found, "zebra", azimuth=30.0),))))
    assert layout.subjects[0].azimuth == 30 and len(layout.subjects) == 1
    pair = (SubjectRequest(found, "zebra", azimuth=30.0), SubjectRequest(found, "whale"))
    left, right = chosen_layout(base, check(Request("a zebra and a whale", pair))).subjects
    assert left.box[2] <= right.box[0]


def test_views_come_back_from_a_recipe(handlers: Handlers, bear: CutOut, tmp_path: Path):
    given = form(bear, "-30", "walking", camera="12.5")
    file = run(handlers, given)["gallery"]["value"][0]
    settings, references = read_png(file)
    assert request_from(settings, references).subjects[0].azimuth == -30
    loaded = handlers.replay.load(file)
    slot = loaded["slots"][1]
    assert (slot["turn"], slot["pose"], loaded["camera"]) == ("-30", "walking", "12.5")
    again = form(slot["cut"], slot["turn"], slot["pose"], camera=loaded["camera"])
    same = run(handlers, again)["gallery"]["value"][0]
    assert np.array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(same)))


def test_views_are_hidden_where_no_base_takes_them(handlers: Handlers, bear: CutOut, tmp_path: Path):
    assert handlers.prompt.base_changes("toyland")["view"]["visible"]
    other = Service(ServiceConfig("toyland", weights=str(tiny_model(tmp_path / "tiny")), device="cpu"))
    assert not other.models.takes_layout() and other.models.takes_layout("toyland2")
    assert not other.models.takes_layout("sd15")
    with pytest.raises(RequestError, match="not told how subjects are turned"):
        list(other.stream(form(bear, "left").request()))


@pytest.mark.parametrize(
    ("turn", "camera", "said"),
    [
        ("upside down", "", "turn “upside down”"),
        ("999", "", "turn of subject 1"),
        ("", "90", "camera"),
        ("", "up", "any"),
    ],
)
def test_wrong_views_get_a_sentence(handlers: Handlers, bear: CutOut, turn: str, camera: str, said: str):
    answer = list(handlers.generation.generate(form(bear, turn, camera=camera)))
    assert len(answer) == 1 and said in answer[0]["status"]


def test_turns_have_names_and_numbers():
    assert [read_turn(text) for text in (None, "", "any", " Front  Left ", "-30°", 45)] == [
        None,
        None,
        None,
        45,
        -30,
        45,
    ]
    assert all(turn_text(degrees) == name and read_turn(name) == degrees for name, degrees in DIRECTIONS.items())
    assert (
        turn_text(None) == "" and turn_text(33.0) == "33" and read_camera("15°") == 15 and read_camera(" any") is None
    )


def test_a_subject_is_turned_around(handlers: Handlers, bear: CutOut):
    *told, last = handlers.turntable.turn(form(bear, steps=2))
    assert any("Picture 8 of 8" in changes["status"] for changes in told) or len(told) >= 1
    assert last["turn_sheet"]["value"].width > 3 * 224
    film = Image.open(last["turn_film"]["value"])
    assert film.n_frames == len(DIRECTIONS) == 8 and last["turn_gif"]["visible"]
    frames = set()
    for index in range(film.n_frames):
        film.seek(index)
        frames.add(film.convert("RGB").tobytes())
    assert len(frames) == 8
    assert "no subject to turn" in list(handlers.turntable.turn(GenerationForm(prompt="a bear")))[-1]["status"]


def test_the_shape_of_a_picture_becomes_a_size(handlers: Handlers, bear: CutOut):
    wide = replace(bear, picture=Image.new("RGB", (600, 300)))
    given = form(wide, base="sd15", size=AS_INPUT)
    assert given.request().size == size_like((600, 300), "sd15") and given.request().to_config().width > 512
    assert GenerationForm(prompt="a bear", base="sd15", size=AS_INPUT).request().size == ""
    assert all(AS_INPUT in dict(handlers.prompt.sizes(base)).values() for base in ("sd15", "toyland2"))
    shapes = {(300, 400): "192x256", (900, 200): "256x192", (400, 390): "192x192"}  # the nearest it was trained with
    assert {shape: size_like(shape, "toyland2") for shape in shapes} == shapes
    assert size_like((400, 400), "sd15") == "512x512"
    width, height = map(int, size_like((300, 600), "sdxl").split("x"))
    assert width % 64 == 0 == height % 64 and abs(height / width - 2) < 0.15
    assert 0.85 < width * height / 1024**2 < 1.15
    assert size_like((300, 600), None) == ""
