"""Everything a visitor can do, without a browser: what each action changes on the page."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from customcontrast.adapter_files import save_adapter
from customcontrast.errors import RecipeError, RequestError
from customcontrast.specs import WEIGHTS
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.handlers.forms import AREA, SETTINGS, GenerationForm, SubjectForm
from customcontrast.ui.handlers.generation_run import NOT_BEGUN, STOPPING, ended
from customcontrast.ui.handlers.messages import OUR_FAULT, Changes, Set, note
from customcontrast.ui.handlers.subject_panel import SLOTS
from customcontrast.ui.handlers.viewers import RunView
from customcontrast.ui.service import recipe
from customcontrast.ui.service.cutouts import ADD, BOX, REMOVE, CutOut
from customcontrast.ui.service.models import PLAIN, ServiceConfig
from customcontrast.ui.service.request import ANYWHERE
from customcontrast.ui.service.service import Service
from tests.support.serving import EXAMPLES, tiny_model
from tests.support.tiny_models import random_adapter

EMPTY = SubjectForm()
DEFAULTS = GenerationForm(
    prompt="a bear on the beach", steps=4, guidance=4.0, seed=5, base="toyland", apart=False,
    subjects=(EMPTY,) * len(SLOTS),
)  # fmt: skip


@pytest.fixture(scope="module")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> Handlers:
    service = Service(ServiceConfig("toyland", weights=str(tiny_model(tmp_path_factory.mktemp("tiny"))), device="cpu"))
    return Handlers(service, EXAMPLES, lambda: tmp_path_factory.mktemp("answer"))


@pytest.fixture(scope="module")
def cat(handlers: Handlers) -> CutOut:
    return handlers.subjects.upload(str(EXAMPLES / "cat.png"))["cut"]


def form(
    subjects: Sequence[tuple[CutOut | None, str]] = (),
    rests: Sequence[Sequence[CutOut]] = (),
    places: Sequence[tuple[str, str]] = (),
    **changed: object,
) -> GenerationForm:
    """What all controls hold. places: for each subject the choice and its box's numbers."""
    slots = []
    for k in range(len(SLOTS)):
        cut, noun = subjects[k] if k < len(subjects) else (None, "")
        place, area = places[k] if k < len(places) else ("", "")
        slots.append(SubjectForm(cut, tuple(rests[k]) if rests else (), noun, 1.0, place, area))
    return dataclasses.replace(DEFAULTS, subjects=tuple(slots), **changed)


@pytest.fixture(scope="module")
def run(handlers: Handlers, bear: CutOut, cat: CutOut) -> list[Changes]:
    prompt = "a bear and a cat in the forest"
    return list(handlers.generation.generate(form([(bear, "bear"), (cat, "cat")], prompt=prompt, pictures=2)))


@pytest.fixture(scope="module")
def shown(run: list[Changes]) -> RunView:
    return run[-1]["run"]


def png(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def test_upload_shows_the_cutout_at_once(bear: CutOut, handlers: Handlers):
    changes = handlers.subjects.upload(str(EXAMPLES / "bear.png"))
    assert set(changes) == {"cut", "cutout", "brush", "note"} and changes["note"]["visible"] is False
    assert changes["cutout"].size == bear.picture.size


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
def test_bad_uploads_get_a_sentence_and_leave(handlers: Handlers, tmp_path: Path, name: str, data: bytes):
    (tmp_path / name).write_bytes(data)
    changes = handlers.subjects.upload(str(tmp_path / name))
    assert changes["cut"] is None and changes["cutout"] is None and changes["upload"] is None
    message = changes["note"]["value"]
    assert "cc-error" in message and "Traceback" not in message and OUR_FAULT not in message


def test_what_browsers_do_not_show_is_shown_as_png(handlers: Handlers, tmp_path: Path):
    """Under its own name, so that the noun can be guessed; as it was loaded."""
    picture = Image.new("RGBA", (64, 48), (200, 30, 40, 0))
    picture.paste((200, 30, 40, 255), (8, 8, 40, 40))
    picture.save(tmp_path / "striped-cat.tif")
    changes = handlers.subjects.upload(str(tmp_path / "striped-cat.tif"))
    shown = Path(changes["upload"])
    assert shown.name == "striped-cat.png" and shown.parent != tmp_path
    with Image.open(shown) as saved:
        assert saved.format == "PNG" and saved.tobytes() == changes["cut"].picture.tobytes()
    style = handlers.style.upload(str(tmp_path / "striped-cat.tif"))
    assert style["upload"] is style["picture"]


def test_a_picture_without_a_subject_stays_to_be_clicked(handlers: Handlers, tmp_path: Path):
    Image.new("RGB", (100, 80), (120, 120, 120)).save(tmp_path / "grey.png")
    changes = handlers.subjects.upload(str(tmp_path / "grey.png"))
    assert changes["cut"].current is None and changes["cutout"] is not None and "upload" not in changes
    assert "click" in changes["note"]["value"]
    refused = list(handlers.generation.generate(form([(changes["cut"], "bear")])))
    assert len(refused) == 1 and "no subject yet" in refused[0]["status"]


def test_clicks_undo_and_reset(handlers: Handlers, bear: CutOut):
    y, x = np.argwhere(~bear.mask)[0]
    once = handlers.subjects.click((int(x), int(y)), bear, ADD)
    assert once["cut"].mask[y, x] and not np.array_equal(
        np.asarray(once["cutout"]), np.asarray(handlers.subjects.reset(bear)["cutout"])
    )
    twice = handlers.subjects.click((x, y), once["cut"], REMOVE)["cut"]
    assert [label for *_, label in twice.points] == [ADD, REMOVE]
    assert handlers.subjects.undo(twice)["cut"].points == once["cut"].points
    assert np.array_equal(handlers.subjects.reset(twice)["cut"].mask, bear.mask)
    assert handlers.subjects.undo(bear)["cut"].points == () and handlers.subjects.undo(None)["cut"] is None
    assert handlers.subjects.click((0, 0), None, ADD)["cut"] is None


def painted(handlers: Handlers, cut: CutOut, path: list[list[float]], radius: float, label: int) -> Changes:
    return handlers.subjects.stroke({"path": path, "radius": radius}, cut, label)


def test_strokes_of_the_brush_add_and_remove_and_are_taken_back(handlers: Handlers, bear: CutOut):
    y, x = (int(v) for v in np.argwhere(~bear.mask)[0])
    once = painted(handlers, bear, [[x, y], [x + 30, y]], 6, ADD)
    assert once["cut"].mask[y, x : x + 30].all() and bear.mask[~once["cut"].mask].sum() == 0
    assert not np.array_equal(np.asarray(once["cutout"]), np.asarray(handlers.subjects.undo(bear)["cutout"]))
    assert once["brush"].startswith("data:image/jpeg;base64,") and not once["note"]["visible"]
    inside = [int(v) for v in np.argwhere(bear.mask).mean(0)[::-1]]
    twice = painted(handlers, once["cut"], [inside], 9, REMOVE)["cut"]
    assert not twice.mask[inside[1], inside[0]] and twice.mask[y, x] and twice.current.method == "drawn"
    back = handlers.subjects.undo(twice)["cut"]
    assert np.array_equal(back.mask, once["cut"].mask)
    assert np.array_equal(handlers.subjects.undo(back)["cut"].mask, bear.mask)
    assert (
        np.array_equal(handlers.subjects.reset(twice)["cut"].mask, bear.mask)
        and handlers.subjects.reset(twice)["cut"].strokes == ()
    )


def test_strokes_and_clicks_are_taken_back_in_their_order(handlers: Handlers, bear: CutOut):
    y, x = (int(v) for v in np.argwhere(~bear.mask)[0])
    far = [int(v) for v in np.argwhere(~bear.mask)[-1][::-1]]
    first = handlers.subjects.click((x, y), bear, ADD)["cut"]
    second = painted(handlers, first, [far], 4, ADD)["cut"]
    third = handlers.subjects.click((x, y), second, REMOVE)["cut"]
    assert third.mask[far[1], far[0]]  # a click elsewhere leaves the stroke as it is
    refuted = handlers.subjects.click(far, third, REMOVE)["cut"]
    assert not refuted.mask[far[1], far[0]]  # one on it takes it back
    counts = []
    cut = refuted
    while cut.points or cut.strokes:
        cut = handlers.subjects.undo(cut)["cut"]
        counts.append((len(cut.points), len(cut.strokes)))
    assert counts == [(2, 1), (1, 1), (1, 0), (0, 0)] and np.array_equal(cut.mask, bear.mask)


def test_the_brush_finds_a_subject_where_nothing_stood_out(handlers: Handlers, tmp_path: Path):
    Image.new("RGB", (100, 80), (120, 120, 120)).save(tmp_path / "grey.png")
    grey = handlers.subjects.upload(str(tmp_path / "grey.png"))["cut"]
    refused = painted(handlers, grey, [[50, 40]], 10, REMOVE)
    assert refused["cut"].current is None and "paint over it" in refused["note"]["value"]
    drawn = painted(handlers, grey, [[50, 40]], 10, ADD)
    assert 250 < drawn["cut"].mask.sum() < 400 and drawn["note"]["visible"] is False
    empty = painted(handlers, drawn["cut"], [[0, 40], [99, 40]], 60, REMOVE)
    assert np.array_equal(empty["cut"].mask, drawn["cut"].mask) and "nothing is left" in empty["note"]["value"].lower()
    assert "no subject stands out" in handlers.subjects.undo(drawn["cut"])["note"]["value"].lower()


def test_a_picture_is_cropped_to_box_or_subject_and_back(handlers: Handlers, bear: CutOut):
    panel, x0, y0, x1, y1 = handlers.subjects, *bear.current.box
    changes = panel.crop(bear)
    cut = changes["cut"]
    assert changes["upload"] is cut.picture and cut.picture.size[0] < bear.picture.size[0]
    assert cut.mask.sum() == bear.mask.sum() and cut.current.image is cut.picture
    boxed = dataclasses.replace(bear, points=((x0, y0, BOX), ((x0 + x1) // 2, (y0 + y1) // 2, BOX)))
    part = panel.crop(boxed)["cut"]
    assert part.picture.size == ((x0 + x1) // 2 + 1 - x0, (y0 + y1) // 2 + 1 - y0)
    assert np.array_equal(part.mask, bear.mask[y0 : (y0 + y1) // 2 + 1, x0 : (x0 + x1) // 2 + 1])
    again = panel.crop(part)["cut"]
    painted_on = painted(handlers, again, [[2, 2]], 3, REMOVE)["cut"]
    assert panel.undo(painted_on)["cut"].whole is again.whole  # the stroke goes first, then the crop
    assert panel.undo(again)["cut"] is part and panel.undo(part)["upload"] is bear.picture
    assert panel.reset(painted_on)["cut"].picture is bear.picture
    assert form([(cut, "bear")]).request().subjects[0].segmentations[0].image.size == cut.picture.size


def test_crops_that_cannot_be_made_get_a_sentence(handlers: Handlers, bear: CutOut, monkeypatch: pytest.MonkeyPatch):
    panel = handlers.subjects
    for crop in (panel.crop, panel.crop_face):
        assert "Give a picture first" in crop(None)["note"]["value"]
    assert "No face was found" in panel.crop_face(bear)["note"]["value"]
    w, h = bear.picture.size
    whole = dataclasses.replace(bear, points=((0, 0, BOX), (w - 1, h - 1, BOX)))
    assert "nothing to crop" in panel.crop(whole)["note"]["value"]
    assert "“Box”" in panel.crop(CutOut(bear.picture))["note"]["value"]
    with pytest.raises(RequestError, match="too small"):
        panel.crop(dataclasses.replace(bear, points=((5, 5, BOX), (9, 9, BOX))))
    monkeypatch.setattr("customcontrast.ui.handlers.subject_panel.find_faces", lambda picture: [(100, 100, 140, 150)])
    face = panel.crop_face(bear)["cut"]
    assert face.picture.size == (76, 94) and face.whole is bear


def test_the_brush_needs_a_picture_and_a_label(handlers: Handlers, bear: CutOut):
    assert "picture first" in painted(handlers, None, [[1, 1]], 5, ADD)["note"]["value"]
    boxed = painted(handlers, bear, [[1, 1]], 5, BOX)
    assert boxed["cut"] is bear and "“Add” or “Remove”" in boxed["note"]["value"]


def test_a_painted_subject_is_what_the_recipe_keeps(handlers: Handlers, bear: CutOut):
    y, x = (int(v) for v in np.argwhere(~bear.mask)[0])
    cut = painted(handlers, bear, [[x, y]], 8, ADD)["cut"]
    last = list(handlers.generation.generate(form([(cut, "bear")], steps=2)))[-1]
    loaded = handlers.replay.load(last["gallery"]["value"][0])["slots"][1]
    assert np.array_equal(loaded["cut"].mask, cut.mask) and loaded["brush"]


def test_the_place_of_a_subject_is_chosen_typed_or_drawn(handlers: Handlers):
    left = handlers.subjects.choose_place("left", "")
    assert left["place"] == "left" and left["area"] == Set(visible=False) and 'width="50"' in left["frame"]
    assert left["placing"] == Set(label="Where in the picture: left")
    first = handlers.subjects.choose_place(AREA, "")
    assert first["place"] == AREA and first["area"]["visible"] and first["area"]["value"]
    typed = handlers.subjects.choose_place(AREA, " 10 20% 60,100 ")
    assert typed["area"] == Set(value="10, 20, 60, 100", visible=True) and "where the model" not in typed["frame"]
    drawn = handlers.subjects.draw_place({"box": [0, 10, 50, 90]})
    assert (drawn["place"], drawn["area"]["value"]) == (AREA, "0, 10, 50, 90")
    assert "without a mask" in handlers.subjects.choose_place(ANYWHERE, "1, 2")["frame"]
    for wrong in ("60, 0, 10, 100", "10, 20", "a, b, c, d", "0, 0, 1, 1", "0, 0, 50, 101", "nan, 0, 50, 50"):
        with pytest.raises(RequestError, match="place"):
            handlers.subjects.choose_place(AREA, wrong)
    with pytest.raises(RequestError, match="at least 5 percent"):
        handlers.subjects.draw_place({"box": [10, 10, 12, 12]})


def test_places_reach_the_picture_and_come_back_from_its_recipe(handlers: Handlers, bear: CutOut, cat: CutOut):
    subjects, prompt = [(bear, "bear"), (cat, "cat")], "a bear and a cat in the city"
    places = [("left", ""), (AREA, "50, 10, 100, 90")]
    last = list(handlers.generation.generate(form(subjects, (), places, prompt=prompt)))[-1]
    masks = np.asarray(last["run"].result.location_masks[0][-1], np.float32)  # of the last step (2, h, w)
    half = masks.shape[-1] // 2
    assert masks[0, :, half:].max() == 0 and masks[0, :, :half].min() == 1
    assert masks[1, :, :half].max() == 0 and masks[1, 0].max() < 1
    rows = last["run"].settings["subjects"]
    assert [row["place"] for row in rows] == ["left", "50, 10, 100, 90"]
    file = last["gallery"]["value"][0]
    slots = handlers.replay.load(file)["slots"]
    back = [(slots[k]["place"], slots[k]["area"].get("value", "")) for k in (1, 2)]
    assert back == places and slots[3]["place"] == "" and slots[2]["area"]["visible"]
    again = form([(slots[1]["cut"], "bear"), (slots[2]["cut"], "cat")], (), back, prompt=prompt)
    same = list(handlers.generation.generate(again))[-1]["gallery"]["value"][0]
    free = list(handlers.generation.generate(form(subjects, (), [(ANYWHERE, "")] * 2, prompt=prompt)))[-1]["gallery"][
        "value"
    ][0]
    pictures = [np.asarray(Image.open(path)) for path in (file, same, free)]
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])


def test_a_box_without_numbers_is_asked_for(handlers: Handlers, bear: CutOut):
    answer = list(handlers.generation.generate(form([(bear, "bear")], (), [(AREA, " ")])))
    assert len(answer) == 1 and "where subject 1 stands" in answer[0]["status"]
    answer = list(handlers.generation.generate(form([(bear, "bear")], (), [(AREA, "9, 9")])))
    assert len(answer) == 1 and "in percent" in answer[0]["status"]


def test_slots_are_added_and_removed_in_place(handlers: Handlers, bear: CutOut, cat: CutOut):
    panel = handlers.subjects
    two = panel.add(1)
    assert two["count"] == 2 and two["slots"][2]["box"]["visible"] and not two["slots"][3]["box"]["visible"]
    assert panel.add(4)["count"] == 4 and panel.add(3)["add"]["visible"] is False
    first = SubjectForm(bear, (), "bear", 0.5)
    second = SubjectForm(cat, (bear,), "cat", 2.0, "right", "", "left", "sitting")
    changes = panel.remove(1, 2, [first, second, EMPTY, EMPTY])
    slots = changes["slots"]
    assert (slots[1]["upload"], slots[1]["cut"], slots[1]["noun"]) == (cat.picture, cat, "cat")
    assert (slots[1]["place"], slots[2]["place"]) == ("right", "") and "50" in slots[1]["frame"]
    assert (slots[1]["turn"], slots[1]["pose"]) == ("left", "sitting") and slots[2]["turn"] == ""
    assert slots[1]["strength"] == 2.0 and slots[1]["others"] == (bear,) and slots[2]["others"] == ()
    assert slots[2]["cut"] is None and slots[2]["cutout"] is None and changes["count"] == 1
    assert slots[1]["box"]["visible"] and not slots[2]["box"]["visible"]


def test_examples_fill_the_first_empty_slot(handlers: Handlers, bear: CutOut):
    index = [path.stem for path in handlers.subjects.examples].index("cat")
    held = [SubjectForm(bear), EMPTY, EMPTY, EMPTY]
    changes = handlers.subjects.example(index, 2, held)["slots"]
    assert list(changes) == [2] and changes[2]["noun"] == "cat" and changes[2]["cut"].current is not None
    assert handlers.subjects.example(index, 1, held)["slots"][1]["noun"] == "cat"


def test_every_example_is_cut_out_with_a_word(handlers: Handlers):
    assert len(handlers.subjects.examples) >= 4
    for index, path in enumerate(handlers.subjects.examples):
        changes = handlers.subjects.example(index, 1, [EMPTY] * 4)["slots"][1]
        assert changes["noun"].isalpha() and changes["cut"].current is not None, path.name


def test_presets_speak_of_the_visitors_subjects(handlers: Handlers):
    for kind, presets in handlers.prompt.presets.items():
        for i in range(len(presets)):
            prompt = handlers.prompt.preset(kind, i, ["elephant", "", "robot", None])["prompt"]
            assert "elephant" in prompt and "a robot" in prompt and "{" not in prompt, (kind, i)


def test_presets_speak_words_that_the_packaged_model_knows(handlers: Handlers):
    known = set(json.loads((WEIGHTS / "toyland" / "vocabulary.json").read_text("utf-8")))
    for kind, presets in handlers.prompt.presets.items():
        for i in range(len(presets)):
            words = re.findall(r"[a-z]+", handlers.prompt.preset(kind, i, ["bear"])["prompt"].lower())
            assert set(words) <= known, (kind, i)


def test_notes_about_the_prompt(handlers: Handlers):
    handlers.service.models.model()
    assert handlers.prompt.notes("a bear on the beach", "toyland", ["bear", "", "", None])["notes"] == Set(
        value="", visible=False
    )
    assert "“cat”" in handlers.prompt.notes("a bear", "toyland", ["bear", "cat", "", ""])["notes"]["value"]
    assert "&lt;script&gt;" in handlers.prompt.notes("a bear", "toyland", ["<script>", "", "", ""])["notes"]["value"]
    assert handlers.prompt.notes("", "toyland", ["bear", "", "", ""])["notes"]["visible"] is False


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
def test_wrong_controls_get_a_sentence(handlers: Handlers, bear: CutOut, changed: dict[str, object], said: str):
    answer = list(handlers.generation.generate(form([(bear, "bear")], **changed)))
    assert len(answer) == 1 and said in answer[0]["status"] and "cc-error" in answer[0]["status"]
    assert answer[0]["stop"] == Set(interactive=False)


def test_a_subject_needs_its_word(handlers: Handlers, bear: CutOut):
    assert "Say what subject 1 is" in list(handlers.generation.generate(form([(bear, "")])))[-1]["status"]


@pytest.mark.parametrize(
    "prompt", ["a bear " + "red " * 2000, "ein Bär am Strand ☃", "zxqv", "S* <bear> S9*", "<|endoftext|>"]
)
def test_odd_prompts_simply_work(handlers: Handlers, bear: CutOut, prompt: str):
    last = list(handlers.generation.generate(form([(bear, "bear")], prompt=prompt, steps=2)))[-1]
    assert "gallery" in last, last["status"]


def test_text_alone_works_and_is_shown(handlers: Handlers):
    last = list(handlers.generation.generate(form(prompt="a red car in the city")))[-1]
    changes = handlers.viewers.show(last["run"])
    assert changes["strip"] == Set(value=None, visible=False) and changes["no_place"]["visible"]
    assert changes["map"] is not None and changes["viewers"]["visible"]
    assert changes["who"] == Set(choices=[], value=None, visible=False) and changes["word"]["value"] == 1  # "red"
    assert not changes["make_film"]["visible"] and not handlers.viewers.film(last["run"])["film"]["visible"]
    with pytest.raises(RequestError, match="without a subject"):
        handlers.viewers.map(last["run"], "visual", 0, 0, 0, "")


def test_closing_a_run_stops_it(handlers: Handlers, bear: CutOut):
    stream = handlers.generation.generate(form([(bear, "bear")], steps=50))
    next(stream), next(stream)
    stream.close()
    stopped = ended(note(STOPPING))
    assert stopped["stop"] == Set(interactive=False) and "Stopped." in stopped["status"]
    assert NOT_BEGUN in ended("")["status"] and NOT_BEGUN in ended(None)["status"]


def test_an_error_of_ours_never_shows_a_traceback(tmp_path: Path, bear: CutOut, handlers: Handlers):
    def broken(*_: object) -> None:
        raise RuntimeError("secret path /home/someone")

    mine = Handlers(handlers.service, EXAMPLES, lambda: tmp_path, broken)
    answer = list(mine.generation.generate(form([(bear, "bear")])))
    assert OUR_FAULT in answer[-1]["status"] and "secret" not in str(answer)


def test_a_recipe_restores_every_control_and_the_same_picture(handlers: Handlers, run: list[Changes]):
    file = run[-1]["gallery"]["value"][0]
    changes = handlers.replay.load(file)
    assert changes["prompt"] == "a bear and a cat in the forest" and changes["count"] == 2 and changes["seed"] == 5
    slots = changes["slots"]
    assert set(SETTINGS) <= set(changes) and slots[2]["noun"] == "cat" and slots[2]["box"]["visible"]
    rows = [(slots[k]["cut"], slots[k]["noun"]) for k in SLOTS]
    controls = {n: changes[n]["value"] if isinstance(changes[n], Set) else changes[n] for n in SETTINGS}
    again = list(handlers.generation.generate(form(rows, **controls)))[-1]
    for before, after in zip(run[-1]["gallery"]["value"], again["gallery"]["value"], strict=True):
        assert np.array_equal(np.asarray(Image.open(before)), np.asarray(Image.open(after)))


def test_a_recipe_for_a_model_that_is_not_here_says_so(handlers: Handlers, tmp_path: Path):
    settings = {"prompt": "a bear", "base": "sdxl", "subjects": []}
    (tmp_path / "x.png").write_bytes(recipe.png_bytes(Image.new("RGB", (8, 8)), settings))
    if handlers.service.models.offers("sdxl"):
        pytest.skip("sdxl is on this machine")
    changes = handlers.replay.load(str(tmp_path / "x.png"))
    assert "base" not in changes and "not on this machine" in changes["status"]


def test_several_pictures_of_one_subject_and_back(handlers: Handlers, bear: CutOut, cat: CutOut):
    aside = handlers.subjects.another(bear, ())
    assert aside["cut"] is None and aside["others"] == (bear,) and aside["album"]["visible"]
    back = handlers.subjects.swap(0, cat, (bear,))
    assert back["cut"] is bear and back["others"] == (cat,) and back["upload"] is bear.picture
    assert "at most 4" in handlers.subjects.another(bear, (cat, cat, cat))["note"]["value"]
    assert (
        "picture first" in handlers.subjects.another(None, ())["note"]["value"]
        and handlers.subjects.swap(5, cat, ()) == {}
    )
    album = [(cat,), (), (), ()]
    settings = {"steps": 2, "size": "32 x 64", "scheduler": "euler", "text_tokens": False, "apart": True}
    both = list(handlers.generation.generate(form([(bear, "bear")], album, **settings)))[-1]
    alone = list(handlers.generation.generate(form([(bear, "bear")], **settings)))[-1]
    file = both["gallery"]["value"][0]
    assert Image.open(file).size == (32, 64)
    assert not np.array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(alone["gallery"]["value"][0])))
    loaded = handlers.replay.load(file)
    assert loaded["size"]["value"] == "32x64" and loaded["scheduler"] == "euler" and loaded["text_tokens"] is False
    assert loaded["apart"] is True
    slot = loaded["slots"][1]
    assert len(slot["others"]) == 1 and np.array_equal(slot["others"][0].mask, cat.mask)
    again = form([(slot["cut"], "bear")], [slot["others"], (), (), ()], **settings)
    same = list(handlers.generation.generate(again))[-1]["gallery"]["value"][0]
    assert np.array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(same)))


def test_the_same_seed_several_ways(handlers: Handlers, bear: CutOut):
    *told, last = handlers.comparison.compare(form([(bear, "bear")], steps=4, subject_scale=2.0))
    assert all("status" in changes for changes in told)
    pictures = {key: np.asarray(image).tobytes() for key, (_, image) in last["compared"].pictures.items()}
    assert list(pictures) == ["text", "visual", "silent", "unmasked", "full"] and len(set(pictures.values())) == 5
    full = list(handlers.generation.generate(form([(bear, "bear")], steps=4, subject_scale=2.0)))[-1][
        "run"
    ].result.images[0]
    assert np.asarray(full).tobytes() == pictures["full"]
    plain = list(handlers.generation.generate(form(steps=4)))[-1]["run"].result.images[0]
    assert np.asarray(plain).tobytes() == pictures["text"]
    left, right = last["slider"]["value"]
    assert left.size == right.size and last["sheet"]["value"].width > 3 * 256
    other = handlers.comparison.side_by_side(last["compared"], "text", "full")["slider"]["value"]
    assert np.asarray(other[0]).tobytes() != np.asarray(left).tobytes()
    assert "no subject to compare" in list(handlers.comparison.compare(form()))[-1]["status"]


def test_an_adapter_without_the_contrastive_losses_stands_beside(
    tmp_path_factory: pytest.TempPathFactory, bear: CutOut, handlers: Handlers
):
    folder = tiny_model(tmp_path_factory.mktemp("tiny"))
    service = Service(ServiceConfig("toyland", weights=str(folder), device="cpu"))
    other = random_adapter(service.models.model().base, seed=5)
    save_adapter(other, folder / PLAIN)
    mine = Handlers(service, EXAMPLES, lambda: tmp_path_factory.mktemp("answer"))
    control = form([(bear, "bear")], steps=4, subject_scale=2.0)
    pictures = list(mine.comparison.compare(control))[-1]["compared"].pictures
    assert list(pictures) == ["text", "visual", "silent", "plain", "unmasked", "full"]
    made = {key: np.asarray(image).tobytes() for key, (_, image) in pictures.items()}
    assert len(set(made.values())) == 6
    before = list(handlers.comparison.compare(control))[-1]["compared"]
    assert np.asarray(before.pictures["full"][1]).tobytes() == made["full"]  # the other adapter left no trace
    with pytest.raises(RequestError, match=r"train.experiments.ablation --ids 2"):
        handlers.comparison.side_by_side(before, "plain", "full")
    request = dataclasses.replace(control.request(), contrast=False)
    with pytest.raises(RequestError, match=r"put it beside the adapter as adapter-plain.safetensors"):
        list(handlers.service.stream(request))


def test_a_grid_over_two_parameters(handlers: Handlers, bear: CutOut):
    made = list(
        handlers.comparison.grid("seed", "1, 2, 3", "prompt", "a bear\na red car", form([(bear, "bear")], steps=2))
    )[-1]
    sheet = made["made_grid"]["value"]
    assert sheet.width > 3 * 256 and sheet.height > 2 * 256
    one = list(handlers.generation.generate(form([(bear, "bear")], steps=2, seed=2)))
    assert one[-1]["run"].result is not None


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
def test_grids_that_cannot_be_made_get_a_sentence(handlers: Handlers, bear: CutOut, given: tuple[str, ...], said: str):
    last = list(handlers.comparison.grid(*given, form([(bear, "bear")])))[-1]
    assert said in last["status"] and "cc-error" in last["status"]


def test_the_steps_play_over_the_forming_picture(handlers: Handlers, shown: RunView):
    assert [step for step, _ in shown.previews] == [2, 4]
    assert shown.forming(2).size == shown.result.images[0].size and shown.forming(4) is shown.result.images[0]
    second = RunView(shown.request, shown.result, 1, shown.previews)
    assert not np.array_equal(np.asarray(shown.forming(2)), np.asarray(second.forming(2)))
    begun = handlers.viewers.play(shown, 4, False)
    assert begun["clock"] == Set(active=True) and begun["running"] and begun["step"]["value"] == 1
    assert handlers.viewers.tick(shown, 1, True)["step"]["value"] == 2 and handlers.viewers.tick(shown, 1, False) == {}
    end = handlers.viewers.tick(shown, 3, True)
    assert end["step"]["value"] == 4 and end["running"] is False and end["clock"] == Set(active=False)
    assert handlers.viewers.play(shown, 2, True)["running"] is False and handlers.viewers.play(None, 1, False) == {}


def test_features_say_how_to_make_the_atlas(handlers: Handlers, shown: RunView):
    changes = handlers.viewers.features(shown)
    assert "train.evaluation.atlas" in changes["around_note"]["value"] and changes["around"]["visible"] is False
    assert "no subject" in handlers.viewers.features(None)["around_note"]["value"]


def test_a_subject_is_placed_among_known_ones(handlers: Handlers, shown: RunView):
    from customcontrast.toyland.feature_atlas import FILE, Atlas, encoder_features

    model = handlers.service.models.model()
    subjects = [handlers.service.subject(model, subject) for subject in shown.request.subjects]
    rows = np.concatenate([encoder_features(model.adapter, subject.features).numpy() for subject in subjects])
    places = np.array([[0, 0], [10, 10]], np.float32)
    pictures = np.zeros((2, 16, 16, 3), np.uint8)
    file = Path(handlers.service.config.weights) / FILE
    Atlas(rows, places, np.arange(2), pictures, ("first", "second")).write(file)
    try:
        changes = handlers.viewers.features(shown)
        assert changes["around"]["visible"] and changes["alike_note"]["visible"] and changes["alike"]["value"].width > 0
    finally:
        file.unlink()
        handlers.service.models.forget_atlases()


def test_chips_put_a_subject_into_the_prompt(handlers: Handlers):
    chips = handlers.prompt.chips(["bear", "", None, "owl"])
    assert chips["chips"][1] == Set(value="+ bear", visible=True) and not chips["chips"][2]["visible"]
    assert (
        handlers.prompt.chip(4, "a bear", "owl")["prompt"] == "a bear and an owl"
        and handlers.prompt.chip(1, "", "bear")["prompt"] == "a bear"
    )
    assert "what subject 1 is" in handlers.prompt.chip(1, "", " ")["notes"]["value"]


def test_a_base_that_is_not_here_says_how_to_get_it(handlers: Handlers):
    if not handlers.service.models.offers("sdxl"):
        changes = handlers.prompt.choose_base("sdxl")
        assert changes["base"] == "toyland" and "hf download" in changes["base_note"]["value"]
    changes = handlers.prompt.choose_base("toyland")
    assert ("96 × 128", "96x128") in changes["size"]["choices"] and changes["size"]["value"] == ""


def test_the_seed_of_the_picture_on_view(handlers: Handlers, shown: RunView):
    assert (
        handlers.prompt.reuse_seed(shown) == {"seed": 5}
        and "picture first" in handlers.prompt.reuse_seed(None)["status"]
    )
    assert handlers.prompt.reuse_seed(RunView(shown.request, shown.result, 1)) == {"seed": 6}


def test_viewers(handlers: Handlers, shown: RunView):
    changes = handlers.viewers.show(shown)
    assert changes["step"] == Set(maximum=4, value=4, visible=True)
    words = dict(changes["word"]["choices"])
    assert {"bear", "cat", "S1* (bear)", "S2* (cat)", "forest"} <= set(words)
    assert [name for name, _ in changes["who"]["choices"]] == ["bear", "cat"]
    strip = changes["strip"]["value"]
    assert strip.height > strip.width / 8  # one row for each of the two subjects
    assert changes["overlay"]["value"].width >= 384
    assert changes["grid"].width > 0 and changes["plot"]["value"].width > 0
    assert changes["make_film"]["visible"] and not changes["film"]["visible"], "made when it is wanted"
    made = handlers.viewers.film(shown)
    assert Path(made["video"]["value"]).read_bytes()[4:8] == b"ftyp"
    assert Image.open(made["film"]["value"]).n_frames >= 2 and not made["make_film"]["visible"]


def test_other_steps_words_branches_and_layers_give_other_maps(handlers: Handlers, shown: RunView):
    overlays = [np.asarray(handlers.viewers.step(shown, step)["overlay"]) for step in (1, 4)]
    assert not np.array_equal(*overlays)
    words = dict(handlers.viewers.show(shown)["word"]["choices"])
    sizes = [size for _, size in handlers.viewers.show(shown)["layers"]["choices"] if size]
    pictures = [
        handlers.viewers.map(shown, "text", words["bear"], 0, 0, ""),
        handlers.viewers.map(shown, "text", words["forest"], 0, 0, ""),
        handlers.viewers.map(shown, "text", words["bear"], 0, 2, ""),
        handlers.viewers.map(shown, "visual", 0, 0, 0, ""),
        handlers.viewers.map(shown, "visual", 0, 1, 0, ""),
        handlers.viewers.map(shown, "text", words["bear"], 0, 0, sizes[0]),
        handlers.viewers.map(shown, "visual", 0, 1, 0, sizes[-1]),
    ]
    arrays = [np.asarray(changes["map"]).tobytes() for changes in pictures]
    assert len(set(arrays)) == len(arrays)
    assert pictures[3]["who"]["visible"] and not pictures[3]["word"]["visible"]


def test_a_click_shows_what_was_looked_at(handlers: Handlers, shown: RunView):
    """Of the subject's picture, by the place that is clicked; a mean over all places before; nothing for words."""
    assert (
        not handlers.viewers.show(shown)["looked"]["visible"]
        and not handlers.viewers.show(shown)["looked_note"]["visible"]
    )
    mean = handlers.viewers.map(shown, "visual", 0, 1, 0, "")
    assert mean["looked_note"]["visible"] and not handlers.viewers.map(shown, "text", 0, 0, 0, "")["looked"]["visible"]
    wide, high = mean["map"].size
    pictures = [
        mean,
        *(handlers.viewers.look(at, shown, "visual", 1) for at in ((5, 5), (wide - 1, high - 1), (wide // 2, 5))),
    ]
    arrays = [np.asarray(changes["looked"]["value"]).tobytes() for changes in pictures]
    assert len(set(arrays)) == len(arrays)
    assert handlers.viewers.look((5, 5), shown, "text", 0) == {} == handlers.viewers.look((5, 5), None, "visual", 0)


def test_another_picture_of_the_run_is_picked(handlers: Handlers, shown: RunView):
    changes = handlers.viewers.pick(1, shown)
    second = changes["run"]
    assert changes["strip"]["value"] and changes["grid"] and handlers.viewers.pick(1, second) == {}
    assert second.index == 1 and second.result is shown.result
    assert handlers.viewers.pick(9, shown) == {} and handlers.viewers.pick(0, None) == {}


def test_maps_by_name(handlers: Handlers, shown: RunView):
    picture, facts = handlers.viewers.named_map(shown, "Bear", 0, 0)
    assert picture.width >= 384 and np.asarray(facts["map"]).ndim == 2 and "S1*" in facts["words"]
    assert facts["map"] != handlers.viewers.named_map(shown, "visual:2", 1, 1)[1]["map"]
    for word, index in (("zebra", 0), ("visual:9", 0), ("bear", 7)):
        with pytest.raises(ValueError, match=r"There is no|not in the prompt"):
            handlers.viewers.named_map(shown, word, 0, index)
    with pytest.raises(RequestError, match="Generate a picture first"):
        handlers.viewers.named_map(None, "bear", 0, 0)


def test_the_history_keeps_each_run_once_and_goes_back(handlers: Handlers, run: list[Changes], tmp_path: Path):
    last = run[-1]["run"]
    once = handlers.replay.remember(last, ())
    assert len(once["past"]) == 1 and once["history_box"]["visible"] and "seed 5" in once["past"][0].caption
    assert handlers.replay.remember(last, once["past"]) == {} == handlers.replay.remember(None, ())
    other = dataclasses.replace(last, files=(str(tmp_path / "gone.png"),))
    twice = handlers.replay.remember(other, once["past"])["past"]
    back = handlers.replay.back(1, twice)
    assert back["prompt"] == last.request.prompt and back["gallery"]["value"] == [last.files[0]]
    assert back["run"] is None and back["slots"][2]["noun"] == "cat" and handlers.replay.back(9, twice) == {}
    with pytest.raises(RecipeError, match="deleted from the server"):
        handlers.replay.back(0, twice)


def test_the_maps_of_a_picture_are_explained_with_its_numbers(handlers: Handlers, shown: RunView):
    changes = handlers.viewers.show(shown)
    text, hover = changes["explained"], changes["hover"]
    assert text.count("<figure>") == 3 and "the bear fills" in text and "the cat fills" in text and "%" in text
    assert hover.count("<button") == len(shown.result.words) and "S1*" in hover


def test_finished_examples_are_shown_with_their_settings(handlers: Handlers):
    assert len(handlers.replay.finished) == 6 == len(handlers.replay.cards())
    for index, path in enumerate(handlers.replay.finished):
        settings, _references = recipe.read_png(path)
        assert path.stat().st_size < 400_000 and settings["base"] in ("toyland", "toyland2")
        if index == 1:  # one is enough: it starts to load its base
            changes = handlers.replay.example(index)
            assert changes["prompt"] == settings["prompt"] and changes["gallery"]["value"] == [str(path)]
            assert changes["base"] == settings["base"] and changes["slots"][2]["cut"].current is not None
    assert handlers.replay.example(99) == {}


def test_a_surprise_is_a_whole_request(handlers: Handlers):
    changes = handlers.prompt.surprise()
    slot = changes["slots"][1]
    assert slot["noun"] in changes["prompt"] and slot["cut"].current is not None and "{" not in changes["prompt"]
    assert changes["slots"][2]["cut"] is None and 0 <= changes["seed"] < 2**31


def test_a_guessed_noun_never_overwrites_what_was_written(handlers: Handlers, bear: CutOut):
    guess = handlers.subjects.guess
    assert guess("/tmp/bear.png", bear, "", "toyland") == {"guessed": "bear"}
    assert guess("/tmp/bear.png", bear, "cat", "toyland") == {"guessed": ""} == guess(None, bear, "", "toyland")
    assert guess("/tmp/IMG_1.png", bear, "", "toyland") == {"guessed": ""}
