"""Everything a visitor can do, without a browser: what each action changes on the page."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Sequence
from itertools import count as counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from customcontrast.adapter import save_adapter
from customcontrast.errors import RequestError
from customcontrast.ui.handlers.generation import CONTROLS, EMPTY_ROW, OUR_FAULT, SLOTS, Changes, Desk, Set, Shown
from customcontrast.ui.handlers.subject_panel import AREA
from customcontrast.ui.service import recipe
from customcontrast.ui.service.request import ADD, ANYWHERE, BOX, REMOVE, Cut
from customcontrast.ui.service.service import PACKAGED, PLAIN, Studio, StudioConfig
from tests.support.serving import EXAMPLES, tiny_model
from tests.support.tiny_models import random_adapter

DEFAULTS = {
    "prompt": "a bear on the beach",
    "negative_prompt": "",
    "steps": 4,
    "guidance": 4.0,
    "subject_scale": 1.0,
    "seed": 5,
    "pictures": 1,
    "location_masks": True,
    "base": "toyland",
    "size": "",
    "scheduler": "",
    "text_tokens": True,
    "apart": False,
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    shared = Studio(StudioConfig(weights=str(tiny_model(tmp_path_factory.mktemp("tiny"))), device="cpu"))
    numbers = counter()
    return Desk(shared, EXAMPLES, lambda: tmp_path_factory.mktemp(f"answer{next(numbers)}"))


@pytest.fixture(scope="module")
def bear(desk: Desk) -> Cut:
    return desk.upload(1, str(EXAMPLES / "bear.png"))["cut1"]


@pytest.fixture(scope="module")
def cat(desk: Desk) -> Cut:
    return desk.upload(1, str(EXAMPLES / "cat.png"))["cut1"]


def values(
    subjects: Sequence[tuple[Cut | None, str]] = (),
    rests: Sequence[Sequence[Cut]] = (),
    places: Sequence[tuple[str, str]] = (),
    **changed: object,
) -> list[object]:
    """The values of all controls, in the page's order. places: for each subject the choice and its box's numbers."""
    controls = DEFAULTS | changed
    slots: list[object] = []
    for k in range(len(SLOTS)):
        cut, noun = subjects[k] if k < len(subjects) else (None, "")
        place = places[k] if k < len(places) else ("", "")
        slots += [cut, rests[k] if rests else (), noun, 1.0, *place]
    return [*(controls[n] for n in CONTROLS), *slots]


@pytest.fixture(scope="module")
def run(desk: Desk, bear: Cut, cat: Cut) -> list[Changes]:
    prompt = "a bear and a cat in the forest"
    return list(desk.generate(*values([(bear, "bear"), (cat, "cat")], prompt=prompt, pictures=2)))


@pytest.fixture(scope="module")
def shown(run: list[Changes]) -> Shown:
    return run[-1]["shown"]


def png(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def test_upload_shows_the_cutout_at_once(bear: Cut, desk: Desk):
    changes = desk.upload(2, str(EXAMPLES / "bear.png"))
    assert set(changes) == {"cut2", "cutout2", "brush2", "note2"} and changes["note2"]["visible"] is False
    assert changes["cutout2"].size == bear.picture.size


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("text.png", b"this is not a picture"),
        ("empty.png", b""),
        ("one.png", png(Image.new("RGB", (1, 1)))),
        ("huge.png", png(Image.new("1", (20_000, 20_000)))),
        ("cut.png", png(Image.effect_noise((300, 300), 90))[:2000]),
    ],
)
def test_bad_uploads_get_a_sentence_and_leave(desk: Desk, tmp_path: Path, name: str, data: bytes):
    (tmp_path / name).write_bytes(data)
    changes = desk.upload(1, str(tmp_path / name))
    assert changes["cut1"] is None and changes["cutout1"] is None and changes["upload1"] is None
    message = changes["note1"]["value"]
    assert "cc-error" in message and "Traceback" not in message and OUR_FAULT not in message


def test_a_picture_without_a_subject_stays_to_be_clicked(desk: Desk, tmp_path: Path):
    Image.new("RGB", (100, 80), (120, 120, 120)).save(tmp_path / "grey.png")
    changes = desk.upload(1, str(tmp_path / "grey.png"))
    assert changes["cut1"].current is None and changes["cutout1"] is not None and "upload1" not in changes
    assert "click" in changes["note1"]["value"]
    refused = list(desk.generate(*values([(changes["cut1"], "bear")])))
    assert len(refused) == 1 and "no subject yet" in refused[0]["status"]


def test_clicks_undo_and_reset(desk: Desk, bear: Cut):
    y, x = np.argwhere(~bear.mask)[0]
    once = desk.click(1, (int(x), int(y)), bear, ADD)
    assert once["cut1"].mask[y, x] and not np.array_equal(
        np.asarray(once["cutout1"]), np.asarray(desk.reset(1, bear)["cutout1"])
    )
    twice = desk.click(1, (x, y), once["cut1"], REMOVE)["cut1"]
    assert [label for *_, label in twice.points] == [ADD, REMOVE]
    assert desk.undo(1, twice)["cut1"].points == once["cut1"].points
    assert np.array_equal(desk.reset(1, twice)["cut1"].mask, bear.mask)
    assert desk.undo(1, bear)["cut1"].points == () and desk.undo(1, None)["cut1"] is None
    assert desk.click(1, (0, 0), None, ADD)["cut1"] is None


def painted(desk: Desk, cut: Cut, path: list[list[float]], radius: float, label: int) -> Changes:
    return desk.stroke(1, {"path": path, "radius": radius}, cut, label)


def test_strokes_of_the_brush_add_and_remove_and_are_taken_back(desk: Desk, bear: Cut):
    y, x = (int(v) for v in np.argwhere(~bear.mask)[0])
    once = painted(desk, bear, [[x, y], [x + 30, y]], 6, ADD)
    assert once["cut1"].mask[y, x : x + 30].all() and bear.mask[~once["cut1"].mask].sum() == 0
    assert not np.array_equal(np.asarray(once["cutout1"]), np.asarray(desk.undo(1, bear)["cutout1"]))
    assert once["brush1"].startswith("data:image/jpeg;base64,") and not once["note1"]["visible"]
    inside = [int(v) for v in np.argwhere(bear.mask).mean(0)[::-1]]
    twice = painted(desk, once["cut1"], [inside], 9, REMOVE)["cut1"]
    assert not twice.mask[inside[1], inside[0]] and twice.mask[y, x] and twice.current.method == "drawn"
    back = desk.undo(1, twice)["cut1"]
    assert np.array_equal(back.mask, once["cut1"].mask)
    assert np.array_equal(desk.undo(1, back)["cut1"].mask, bear.mask)
    assert np.array_equal(desk.reset(1, twice)["cut1"].mask, bear.mask) and desk.reset(1, twice)["cut1"].strokes == ()


def test_strokes_and_clicks_are_taken_back_in_their_order(desk: Desk, bear: Cut):
    y, x = (int(v) for v in np.argwhere(~bear.mask)[0])
    far = [int(v) for v in np.argwhere(~bear.mask)[-1][::-1]]
    first = desk.click(1, (x, y), bear, ADD)["cut1"]
    second = painted(desk, first, [far], 4, ADD)["cut1"]
    third = desk.click(1, (x, y), second, REMOVE)["cut1"]
    assert third.mask[far[1], far[0]]  # a click elsewhere leaves the stroke as it is
    refuted = desk.click(1, far, third, REMOVE)["cut1"]
    assert not refuted.mask[far[1], far[0]]  # one on it takes it back
    counts = []
    cut = refuted
    while cut.points or cut.strokes:
        cut = desk.undo(1, cut)["cut1"]
        counts.append((len(cut.points), len(cut.strokes)))
    assert counts == [(2, 1), (1, 1), (1, 0), (0, 0)] and np.array_equal(cut.mask, bear.mask)


def test_the_brush_finds_a_subject_where_nothing_stood_out(desk: Desk, tmp_path: Path):
    Image.new("RGB", (100, 80), (120, 120, 120)).save(tmp_path / "grey.png")
    grey = desk.upload(1, str(tmp_path / "grey.png"))["cut1"]
    refused = painted(desk, grey, [[50, 40]], 10, REMOVE)
    assert refused["cut1"].current is None and "paint over it" in refused["note1"]["value"]
    drawn = painted(desk, grey, [[50, 40]], 10, ADD)
    assert 250 < drawn["cut1"].mask.sum() < 400 and drawn["note1"]["visible"] is False
    empty = painted(desk, drawn["cut1"], [[0, 40], [99, 40]], 60, REMOVE)
    assert (
        np.array_equal(empty["cut1"].mask, drawn["cut1"].mask) and "nothing is left" in empty["note1"]["value"].lower()
    )
    assert "no subject stands out" in desk.undo(1, drawn["cut1"])["note1"]["value"].lower()


def test_the_brush_needs_a_picture_and_a_label(desk: Desk, bear: Cut):
    assert "picture first" in painted(desk, None, [[1, 1]], 5, ADD)["note1"]["value"]
    boxed = painted(desk, bear, [[1, 1]], 5, BOX)
    assert boxed["cut1"] is bear and "“Add” or “Remove”" in boxed["note1"]["value"]


def test_a_painted_subject_is_what_the_recipe_keeps(desk: Desk, bear: Cut):
    y, x = (int(v) for v in np.argwhere(~bear.mask)[0])
    cut = painted(desk, bear, [[x, y]], 8, ADD)["cut1"]
    last = list(desk.generate(*values([(cut, "bear")], steps=2)))[-1]
    loaded = desk.load(last["gallery"]["value"][0])
    assert np.array_equal(loaded["cut1"].mask, cut.mask) and loaded["brush1"]


def test_the_place_of_a_subject_is_chosen_typed_or_drawn(desk: Desk):
    left = desk.choose_place(2, "left", "")
    assert left["place2"] == "left" and left["area2"] == Set(visible=False) and 'width="50"' in left["frame2"]
    assert left["placing2"] == Set(label="Where in the picture: left")
    first = desk.choose_place(1, AREA, "")
    assert first["place1"] == AREA and first["area1"]["visible"] and first["area1"]["value"]
    typed = desk.choose_place(1, AREA, " 10 20% 60,100 ")
    assert typed["area1"] == Set(value="10, 20, 60, 100", visible=True) and "where the model" not in typed["frame1"]
    drawn = desk.draw_place(3, {"box": [0, 10, 50, 90]})
    assert (drawn["place3"], drawn["area3"]["value"]) == (AREA, "0, 10, 50, 90")
    assert "without a mask" in desk.choose_place(1, ANYWHERE, "1, 2")["frame1"]
    for wrong in ("60, 0, 10, 100", "10, 20", "a, b, c, d", "0, 0, 1, 1", "0, 0, 50, 101", "nan, 0, 50, 50"):
        with pytest.raises(RequestError, match="place"):
            desk.choose_place(1, AREA, wrong)
    with pytest.raises(RequestError, match="at least 5 percent"):
        desk.draw_place(1, {"box": [10, 10, 12, 12]})


def test_places_reach_the_picture_and_come_back_from_its_recipe(desk: Desk, bear: Cut, cat: Cut):
    subjects, prompt = [(bear, "bear"), (cat, "cat")], "a bear and a cat in the city"
    places = [("left", ""), (AREA, "50, 10, 100, 90")]
    last = list(desk.generate(*values(subjects, (), places, prompt=prompt)))[-1]
    masks = np.asarray(last["shown"].result.location_masks[0][-1], np.float32)  # of the last step (2, h, w)
    half = masks.shape[-1] // 2
    assert masks[0, :, half:].max() == 0 and masks[0, :, :half].min() == 1
    assert masks[1, :, :half].max() == 0 and masks[1, 0].max() < 1
    rows = last["shown"].settings["subjects"]
    assert [row["place"] for row in rows] == ["left", "50, 10, 100, 90"]
    file = last["gallery"]["value"][0]
    loaded = desk.load(file)
    back = [(loaded[f"place{k}"], loaded[f"area{k}"].get("value", "")) for k in (1, 2)]
    assert back == places and loaded["place3"] == "" and loaded["area2"]["visible"]
    again = values([(loaded["cut1"], "bear"), (loaded["cut2"], "cat")], (), back, prompt=prompt)
    same = list(desk.generate(*again))[-1]["gallery"]["value"][0]
    free = list(desk.generate(*values(subjects, (), [(ANYWHERE, "")] * 2, prompt=prompt)))[-1]["gallery"]["value"][0]
    pictures = [np.asarray(Image.open(path)) for path in (file, same, free)]
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])


def test_a_box_without_numbers_is_asked_for(desk: Desk, bear: Cut):
    answer = list(desk.generate(*values([(bear, "bear")], (), [(AREA, " ")])))
    assert len(answer) == 1 and "where subject 1 stands" in answer[0]["status"]
    answer = list(desk.generate(*values([(bear, "bear")], (), [(AREA, "9, 9")])))
    assert len(answer) == 1 and "in percent" in answer[0]["status"]


def test_slots_are_added_and_removed_in_place(desk: Desk, bear: Cut, cat: Cut):
    assert desk.add(1)["count"] == 2 and desk.add(1)["slot2"]["visible"] and not desk.add(1)["slot3"]["visible"]
    assert desk.add(4)["count"] == 4 and desk.add(3)["add"]["visible"] is False
    rows = [bear, (), "bear", 0.5, "", "", cat, (bear,), "cat", 2.0, "right", "", *EMPTY_ROW, *EMPTY_ROW]
    changes = desk.remove(1, 2, *rows)
    assert (changes["upload1"], changes["cut1"], changes["noun1"]) == (cat.picture, cat, "cat")
    assert (changes["place1"], changes["place2"]) == ("right", "") and "50" in changes["frame1"]
    assert changes["strength1"] == 2.0 and changes["rest1"] == (bear,) and changes["rest2"] == ()
    assert changes["cut2"] is None and changes["cutout2"] is None and changes["count"] == 1
    assert changes["slot1"]["visible"] and not changes["slot2"]["visible"]


def test_examples_fill_the_first_empty_slot(desk: Desk, bear: Cut):
    index = [path.stem for path in desk.examples].index("cat")
    changes = desk.example(index, 2, bear, None, None, None)
    assert changes["noun2"] == "cat" and changes["cut2"].current is not None
    assert desk.example(index, 1, bear, None, None, None)["noun1"] == "cat"


def test_every_example_is_cut_out_with_a_word(desk: Desk):
    assert len(desk.examples) >= 4
    for index, path in enumerate(desk.examples):
        changes = desk.example(index, 1, None, None, None, None)
        assert changes["noun1"].isalpha() and changes["cut1"].current is not None, path.name


def test_presets_speak_of_the_visitors_subjects(desk: Desk):
    for kind, presets in desk.presets.items():
        for i in range(len(presets)):
            prompt = desk.preset(kind, i, "elephant", "", "robot", None)["prompt"]
            assert "elephant" in prompt and "a robot" in prompt and "{" not in prompt, (kind, i)


def test_presets_speak_words_that_the_packaged_model_knows(desk: Desk):
    known = set(json.loads((PACKAGED / "toyland" / "vocabulary.json").read_text("utf-8")))
    for kind, presets in desk.presets.items():
        for i in range(len(presets)):
            words = re.findall(r"[a-z]+", desk.preset(kind, i, "bear")["prompt"].lower())
            assert set(words) <= known, (kind, i)


def test_notes_about_the_prompt(desk: Desk):
    desk.studio.model()
    assert desk.prompt_notes("a bear on the beach", "toyland", "bear", "", "", None)["notes"] == Set(
        value="", visible=False
    )
    assert "“cat”" in desk.prompt_notes("a bear", "toyland", "bear", "cat", "", "")["notes"]["value"]
    assert "&lt;script&gt;" in desk.prompt_notes("a bear", "toyland", "<script>", "", "", "")["notes"]["value"]
    assert desk.prompt_notes("", "toyland", "bear", "", "", "")["notes"]["visible"] is False


def test_generate_shows_progress_previews_and_pictures(run: list[Changes]):
    assert run[0]["stop"] == Set(interactive=True)
    steps = [c for c in run if "cc-progress" in c.get("status", "")]
    assert 1 <= len(steps) <= 4 and any("gallery" in c for c in steps)
    last = run[-1]
    assert last["stop"] == Set(interactive=False) and "Done in" in last["status"]
    assert len(last["gallery"]["value"]) == 2 and all(Path(p).suffix == ".png" for p in last["gallery"]["value"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"prompt": ""}, "prompt is empty"), ({"seed": -1}, "seed"), ({"steps": 0}, "steps"), ({"seed": None}, "seed")],
)
def test_wrong_controls_get_a_sentence(desk: Desk, bear: Cut, changed: dict[str, object], said: str):
    answer = list(desk.generate(*values([(bear, "bear")], **changed)))
    assert len(answer) == 1 and said in answer[0]["status"] and "cc-error" in answer[0]["status"]
    assert answer[0]["stop"] == Set(interactive=False)


def test_a_subject_needs_its_word(desk: Desk, bear: Cut):
    assert "Say what subject 1 is" in list(desk.generate(*values([(bear, "")])))[-1]["status"]


@pytest.mark.parametrize(
    "prompt", ["a bear " + "red " * 2000, "ein Bär am Strand ☃", "zxqv", "S* <bear> S9*", "<|endoftext|>"]
)
def test_odd_prompts_simply_work(desk: Desk, bear: Cut, prompt: str):
    last = list(desk.generate(*values([(bear, "bear")], prompt=prompt, steps=2)))[-1]
    assert "gallery" in last, last["status"]


def test_text_alone_works_and_is_shown(desk: Desk):
    last = list(desk.generate(*values(prompt="a red car in the city")))[-1]
    changes = desk.show(last["shown"])
    assert changes["strip"] == Set(value=None, visible=False) and changes["no_place"]["visible"]
    assert changes["map"] is not None and changes["viewers"]["visible"]
    assert changes["who"] == Set(choices=[], value=None, visible=False) and changes["word"]["value"] == 1  # "red"
    assert desk.show_more(last["shown"])["film"]["visible"] is False
    with pytest.raises(RequestError, match="without a subject"):
        desk.map(last["shown"], "visual", 0, 0, 0, "")


def test_closing_a_run_stops_it(desk: Desk, bear: Cut):
    stream = desk.generate(*values([(bear, "bear")], steps=50))
    next(stream), next(stream)
    stream.close()
    assert desk.stop()["stop"] == Set(interactive=False)


def test_an_error_of_ours_never_shows_a_traceback(tmp_path: Path, bear: Cut, desk: Desk):
    def broken(*_: object) -> None:
        raise RuntimeError("secret path /home/someone")

    answer = list(Desk(desk.studio, EXAMPLES, lambda: tmp_path, broken).generate(*values([(bear, "bear")])))
    assert OUR_FAULT in answer[-1]["status"] and "secret" not in str(answer)


def test_a_recipe_restores_every_control_and_the_same_picture(desk: Desk, run: list[Changes]):
    file = run[-1]["gallery"]["value"][0]
    changes = desk.load(file)
    assert changes["prompt"] == "a bear and a cat in the forest" and changes["count"] == 2 and changes["seed"] == 5
    assert set(CONTROLS) <= set(changes) and changes["noun2"] == "cat" and changes["slot2"]["visible"]
    rows = [(changes[f"cut{k}"], changes[f"noun{k}"]) for k in SLOTS]
    controls = {n: changes[n]["value"] if isinstance(changes[n], Set) else changes[n] for n in CONTROLS}
    again = list(desk.generate(*values(rows, **controls)))[-1]
    for before, after in zip(run[-1]["gallery"]["value"], again["gallery"]["value"], strict=True):
        assert np.array_equal(np.asarray(Image.open(before)), np.asarray(Image.open(after)))


def test_a_recipe_for_a_model_that_is_not_here_says_so(desk: Desk, tmp_path: Path):
    settings = {"prompt": "a bear", "base": "sdxl", "subjects": []}
    (tmp_path / "x.png").write_bytes(recipe.png_bytes(Image.new("RGB", (8, 8)), settings))
    if desk.studio.offers("sdxl"):
        pytest.skip("sdxl is on this machine")
    changes = desk.load(str(tmp_path / "x.png"))
    assert "base" not in changes and "not on this machine" in changes["status"]


def test_several_pictures_of_one_subject_and_back(desk: Desk, bear: Cut, cat: Cut):
    aside = desk.another(1, bear, ())
    assert aside["cut1"] is None and aside["rest1"] == (bear,) and aside["others1"]["visible"]
    back = desk.swap(1, 0, cat, (bear,))
    assert back["cut1"] is bear and back["rest1"] == (cat,) and back["upload1"] is bear.picture
    assert "at most 4" in desk.another(1, bear, (cat, cat, cat))["note1"]["value"]
    assert "picture first" in desk.another(1, None, ())["note1"]["value"] and desk.swap(1, 5, cat, ()) == {}
    album = [(cat,), (), (), ()]
    settings = {"steps": 2, "size": "32 x 64", "scheduler": "euler", "text_tokens": False, "apart": True}
    both = list(desk.generate(*values([(bear, "bear")], album, **settings)))[-1]
    alone = list(desk.generate(*values([(bear, "bear")], **settings)))[-1]
    file = both["gallery"]["value"][0]
    assert Image.open(file).size == (32, 64)
    assert not np.array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(alone["gallery"]["value"][0])))
    loaded = desk.load(file)
    assert loaded["size"]["value"] == "32x64" and loaded["scheduler"] == "euler" and loaded["text_tokens"] is False
    assert loaded["apart"] is True
    assert len(loaded["rest1"]) == 1 and np.array_equal(loaded["rest1"][0].mask, cat.mask)
    again = values([(loaded["cut1"], "bear")], [loaded["rest1"], (), (), ()], **settings)
    same = list(desk.generate(*again))[-1]["gallery"]["value"][0]
    assert np.array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(same)))


def test_the_same_seed_four_ways(desk: Desk, bear: Cut):
    *told, last = desk.compare(*values([(bear, "bear")], steps=4, subject_scale=2.0))
    assert all("compare_status" in changes for changes in told)
    pictures = {key: np.asarray(image).tobytes() for key, (_, image) in last["compared"].pictures.items()}
    assert list(pictures) == ["text", "visual", "unmasked", "full"] and len(set(pictures.values())) == 4
    full = list(desk.generate(*values([(bear, "bear")], steps=4, subject_scale=2.0)))[-1]["shown"].result.images[0]
    assert np.asarray(full).tobytes() == pictures["full"]
    plain = list(desk.generate(*values(steps=4)))[-1]["shown"].result.images[0]
    assert np.asarray(plain).tobytes() == pictures["text"]
    left, right = last["slider"]["value"]
    assert left.size == right.size and last["sheet"]["value"].width > 3 * 256
    other = desk.side_by_side(last["compared"], "text", "full")["slider"]["value"]
    assert np.asarray(other[0]).tobytes() != np.asarray(left).tobytes()
    assert "no subject to compare" in list(desk.compare(*values()))[-1]["compare_status"]


def test_an_adapter_without_the_contrastive_losses_stands_beside(
    tmp_path_factory: pytest.TempPathFactory, bear: Cut, desk: Desk
):
    folder = tiny_model(tmp_path_factory.mktemp("tiny"))
    shared = Studio(StudioConfig(weights=str(folder), device="cpu"))
    other = random_adapter(shared.model().base, seed=5)
    save_adapter(other, folder / PLAIN)
    mine = Desk(shared, EXAMPLES, lambda: tmp_path_factory.mktemp("answer"))
    control = values([(bear, "bear")], steps=4, subject_scale=2.0)
    pictures = list(mine.compare(*control))[-1]["compared"].pictures
    assert list(pictures) == ["text", "visual", "plain", "unmasked", "full"]
    made = {key: np.asarray(image).tobytes() for key, (_, image) in pictures.items()}
    assert len(set(made.values())) == 5
    before = list(desk.compare(*control))[-1]["compared"]
    assert np.asarray(before.pictures["full"][1]).tobytes() == made["full"]  # the other adapter left no trace
    with pytest.raises(RequestError, match="train.experiments.ablation --ids 2"):
        desk.side_by_side(before, "plain", "full")
    request = dataclasses.replace(mine._request(control), contrast=False)
    with pytest.raises(RequestError, match="put it beside the adapter as adapter-plain.safetensors"):
        list(desk.studio.stream(request))


def test_a_grid_over_two_parameters(desk: Desk, bear: Cut):
    made = list(desk.grid("seed", "1, 2, 3", "prompt", "a bear\na red car", *values([(bear, "bear")], steps=2)))[-1]
    sheet = made["made_grid"]["value"]
    assert sheet.width > 3 * 256 and sheet.height > 2 * 256
    one = list(desk.generate(*values([(bear, "bear")], steps=2, seed=2)))
    assert one[-1]["shown"].result is not None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("seed", "1", "seed", "2"), "two different"),
        (("seed", "1,2,3,4,5", "guidance", "1,2,3,4"), "at most 16"),
        (("seed", "much", "guidance", "1"), "must be numbers"),
        (("seed", "", "guidance", "1"), "which values"),
        (("seed", "-1", "guidance", "1"), "seed is -1"),
        (("scheduler", "none such", "guidance", "1"), "no scheduler"),
        (("nonsense", "1", "guidance", "1"), "cannot run over"),
    ],
)
def test_grids_that_cannot_be_made_get_a_sentence(desk: Desk, bear: Cut, given: tuple[str, ...], said: str):
    last = list(desk.grid(*given, *values([(bear, "bear")])))[-1]
    assert said in last["grid_status"] and "cc-error" in last["grid_status"]


def test_the_steps_play_over_the_forming_picture(desk: Desk, shown: Shown):
    assert [step for step, _ in shown.previews] == [2, 4]
    assert shown.forming(2).size == shown.result.images[0].size and shown.forming(4) is shown.result.images[0]
    second = Shown(shown.request, shown.result, 1, shown.previews)
    assert not np.array_equal(np.asarray(shown.forming(2)), np.asarray(second.forming(2)))
    begun = desk.play(shown, 4, False)
    assert begun["clock"] == Set(active=True) and begun["running"] and begun["step"]["value"] == 1
    assert desk.tick(shown, 1, True)["step"]["value"] == 2 and desk.tick(shown, 1, False) == {}
    end = desk.tick(shown, 3, True)
    assert end["step"]["value"] == 4 and end["running"] is False and end["clock"] == Set(active=False)
    assert desk.play(shown, 2, True)["running"] is False and desk.play(None, 1, False) == {}


def test_features_say_how_to_make_the_atlas(desk: Desk, shown: Shown):
    changes = desk.features(shown)
    assert "train.evaluation.atlas" in changes["around_note"]["value"] and changes["around"]["visible"] is False
    assert "no subject" in desk.features(None)["around_note"]["value"]


def test_a_subject_is_placed_among_known_ones(desk: Desk, shown: Shown):
    from customcontrast.toyland.feature_atlas import FILE, Atlas, encoder_features

    model = desk.studio.model()
    subjects = [desk.studio.subject(model, "toyland", picked) for picked in shown.request.subjects]
    rows = np.concatenate([encoder_features(model.adapter, subject.features).numpy() for subject in subjects])
    places = np.array([[0, 0], [10, 10]], np.float32)
    pictures = np.zeros((2, 16, 16, 3), np.uint8)
    file = Path(desk.studio.config.weights) / FILE
    Atlas(rows, places, np.arange(2), pictures, ("first", "second")).write(file)
    try:
        changes = desk.features(shown)
        assert changes["around"]["visible"] and changes["alike_note"]["visible"] and changes["alike"]["value"].width > 0
    finally:
        file.unlink()
        desk.studio._atlases.clear()


def test_chips_put_a_subject_into_the_prompt(desk: Desk):
    chips = desk.chips("bear", "", None, "owl")
    assert chips["chip1"] == Set(value="+ bear", visible=True) and not chips["chip2"]["visible"]
    assert (
        desk.chip(4, "a bear", "owl")["prompt"] == "a bear and an owl"
        and desk.chip(1, "", "bear")["prompt"] == "a bear"
    )
    assert "what subject 1 is" in desk.chip(1, "", " ")["notes"]["value"]


def test_a_base_that_is_not_here_says_how_to_get_it(desk: Desk):
    if not desk.studio.offers("sdxl"):
        changes = desk.choose_base("sdxl")
        assert changes["base"] == "toyland" and "hf download" in changes["base_note"]["value"]
    changes = desk.choose_base("toyland")
    assert ("96 × 128", "96x128") in changes["size"]["choices"] and changes["size"]["value"] == ""


def test_the_seed_of_the_picture_on_view(desk: Desk, shown: Shown):
    assert desk.reuse_seed(shown) == {"seed": 5} and "picture first" in desk.reuse_seed(None)["status"]
    assert desk.reuse_seed(Shown(shown.request, shown.result, 1)) == {"seed": 6}


def test_viewers(desk: Desk, shown: Shown):
    changes = desk.show(shown)
    assert changes["step"] == Set(maximum=4, value=4, visible=True)
    words = dict(changes["word"]["choices"])
    assert {"bear", "cat", "S1* (bear)", "S2* (cat)", "forest"} <= set(words)
    assert [name for name, _ in changes["who"]["choices"]] == ["bear", "cat"]
    strip = changes["strip"]["value"]
    assert strip.height > strip.width / 8  # one row for each of the two subjects
    assert changes["overlay"]["value"].width >= 384
    more = desk.show_more(shown)
    assert (
        Path(more["video"]["value"]).read_bytes()[4:8] == b"ftyp"
        and Image.open(more["film"]["value"]).n_frames >= 2
        and more["grid"].width > 0
        and more["plot"]["value"].width > 0
    )


def test_other_steps_words_branches_and_layers_give_other_maps(desk: Desk, shown: Shown):
    overlays = [np.asarray(desk.step(shown, step)["overlay"]) for step in (1, 4)]
    assert not np.array_equal(*overlays)
    words = dict(desk.show(shown)["word"]["choices"])
    sizes = [size for _, size in desk.show(shown)["layers"]["choices"] if size]
    pictures = [
        desk.map(shown, "text", words["bear"], 0, 0, ""),
        desk.map(shown, "text", words["forest"], 0, 0, ""),
        desk.map(shown, "text", words["bear"], 0, 2, ""),
        desk.map(shown, "visual", 0, 0, 0, ""),
        desk.map(shown, "visual", 0, 1, 0, ""),
        desk.map(shown, "text", words["bear"], 0, 0, sizes[0]),
        desk.map(shown, "visual", 0, 1, 0, sizes[-1]),
    ]
    arrays = [np.asarray(changes["map"]).tobytes() for changes in pictures]
    assert len(set(arrays)) == len(arrays)
    assert pictures[3]["who"]["visible"] and not pictures[3]["word"]["visible"]


def test_a_click_shows_what_was_looked_at(desk: Desk, shown: Shown):
    """Of the subject's picture, by the place that is clicked; a mean over all places before; nothing for words."""
    assert not desk.show(shown)["looked"]["visible"] and not desk.show(shown)["looked_note"]["visible"]
    mean = desk.map(shown, "visual", 0, 1, 0, "")
    assert mean["looked_note"]["visible"] and not desk.map(shown, "text", 0, 0, 0, "")["looked"]["visible"]
    wide, high = mean["map"].size
    pictures = [mean, *(desk.look(at, shown, "visual", 1) for at in ((5, 5), (wide - 1, high - 1), (wide // 2, 5)))]
    arrays = [np.asarray(changes["looked"]["value"]).tobytes() for changes in pictures]
    assert len(set(arrays)) == len(arrays)
    assert desk.look((5, 5), shown, "text", 0) == {} == desk.look((5, 5), None, "visual", 0)


def test_another_picture_of_the_run_is_picked(desk: Desk, shown: Shown):
    changes = desk.pick(1, shown)
    second = changes["shown"]
    assert changes["strip"]["value"] and changes["grid"] and desk.pick(1, second) == {}
    assert second.index == 1 and second.result is shown.result
    assert desk.pick(9, shown) == {} and desk.pick(0, None) == {}


def test_maps_by_name(desk: Desk, shown: Shown):
    picture, facts = desk.named_map(shown, "Bear", 0, 0)
    assert picture.width >= 384 and np.asarray(facts["map"]).ndim == 2 and "S1*" in facts["words"]
    assert facts["map"] != desk.named_map(shown, "visual:2", 1, 1)[1]["map"]
    for word, index in (("zebra", 0), ("visual:9", 0), ("bear", 7)):
        with pytest.raises(ValueError, match="There is no|not in the prompt"):
            desk.named_map(shown, word, 0, index)
    with pytest.raises(RequestError, match="Generate a picture first"):
        desk.named_map(None, "bear", 0, 0)
