"""Everything a visitor can do, without a browser: what each action changes on the page."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from itertools import count as counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import EXAMPLES, tiny_model

from customcontrast import recipe
from customcontrast.desk import CONTROLS, OUR_FAULT, SLOTS, Changes, Desk, Set, Shown
from customcontrast.request import ADD, REMOVE, Cut, StudioError
from customcontrast.studio import PACKAGED, Studio, StudioConfig

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


def values(subjects: Sequence[tuple[Cut | None, str]] = (), **changed: object) -> list[object]:
    """The values of all controls, in the page's order."""
    rows = [*subjects, *[(None, "")] * (len(SLOTS) - len(subjects))]
    controls = DEFAULTS | changed
    return [
        *(controls[n] for n in CONTROLS),
        *(cut for cut, _ in rows),
        *(noun for _, noun in rows),
        *[1.0] * len(SLOTS),
    ]


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
    assert set(changes) == {"cut2", "cutout2", "note2"} and changes["note2"]["visible"] is False
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


def test_slots_are_added_and_removed_in_place(desk: Desk, bear: Cut, cat: Cut):
    assert desk.add(1)["count"] == 2 and desk.add(1)["slot2"]["visible"] and not desk.add(1)["slot3"]["visible"]
    assert desk.add(4)["count"] == 4 and desk.add(3)["add"]["visible"] is False
    rows = ["b.png", bear, "bear", 0.5, "c.png", cat, "cat", 2.0, None, None, "", 1.0, None, None, "", 1.0]
    changes = desk.remove(1, 2, *rows)
    assert (changes["upload1"], changes["cut1"], changes["noun1"], changes["strength1"]) == ("c.png", cat, "cat", 2.0)
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
    with pytest.raises(StudioError, match="without a subject"):
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
    again = list(desk.generate(*values(rows, **{n: changes[n] for n in CONTROLS})))[-1]
    for before, after in zip(run[-1]["gallery"]["value"], again["gallery"]["value"], strict=True):
        assert np.array_equal(np.asarray(Image.open(before)), np.asarray(Image.open(after)))


def test_a_recipe_for_a_model_that_is_not_here_says_so(desk: Desk, tmp_path: Path):
    settings = {"prompt": "a bear", "base": "sdxl", "subjects": []}
    (tmp_path / "x.png").write_bytes(recipe.png_bytes(Image.new("RGB", (8, 8)), settings))
    if desk.studio.offers("sdxl"):
        pytest.skip("sdxl is on this machine")
    changes = desk.load(str(tmp_path / "x.png"))
    assert "base" not in changes and "not on this machine" in changes["status"]


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
        Image.open(more["film"]["value"]).n_frames >= 2 and more["grid"].width > 0 and more["plot"]["value"].width > 0
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
    with pytest.raises(StudioError, match="Generate a picture first"):
        desk.named_map(None, "bear", 0, 0)
