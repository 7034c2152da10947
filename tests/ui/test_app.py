"""app.py: its command line, its wiring, and its API as a program calls it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from gradio.route_utils import delete_files_created_by_app
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from customcontrast.specs import BASES
from customcontrast.ui import server as app
from customcontrast.ui.handlers.forms import GenerationForm
from customcontrast.ui.handlers.messages import Set
from customcontrast.ui.service.recipe import read_png
from customcontrast.ui.service.service import Service
from customcontrast.ui.theme import STATIC
from customcontrast.ui.wiring import Wire, components, read, updates
from tests.support import documented
from tests.support.serving import EXAMPLES, ROOT, free_port, tiny_model

BEAR, CAT = str(EXAMPLES / "bear.png"), str(EXAMPLES / "cat.png")
SETTINGS = {
    "negative_prompt": "",
    "steps": 3,
    "guidance": 4,
    "subject_scale": 1,
    "seed": 3,
    "pictures": 1,
    "location_masks": True,
}


DEMO: list[gr.Blocks] = []  # the running app, to look into it


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("cache"))
    weights = tiny_model(tmp_path_factory.mktemp("tiny"))
    demo, url = app.launch(
        app.options(["--base", "toyland", "--weights", str(weights), "--port", str(free_port()), "--device", "cpu"]),
        block=False,
    )
    DEMO.append(demo)
    yield Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
    demo.close()


def generate(client: Client, references: list[str], nouns: str, prompt: str, **changed: object) -> tuple:
    files = [handle_file(path) for path in references]
    return client.predict(references=files, nouns=nouns, prompt=prompt, **(SETTINGS | changed), api_name="/generate")


def test_every_part_of_every_section_is_on_the_page():
    page = app.Page(Service())
    demo = page.build()
    parts = components(page.sections)
    assert len(parts) > 100 and all(demo.blocks[part._id] is part for part in parts)


def test_every_control_of_a_run_is_read_by_name():
    page = app.Page(Service())
    page.build()
    form = page.sections.form
    values = {part: f"value of {part._id}" for part in components(form)}
    read_form = read(form, values)
    assert isinstance(read_form, GenerationForm) and read_form.prompt == values[page.sections.prompt.prompt]
    assert read_form.subjects[1].noun == values[page.sections.subjects.slots[2].noun]
    assert set(form.parts) == {field.name for field in dataclasses.fields(GenerationForm)}


def test_every_handler_takes_what_the_page_hands_over(monkeypatch: pytest.MonkeyPatch):
    """Names of inputs are those of the handler's arguments; what an event itself tells comes first."""
    wired: list[str] = []
    real_on, real_run = Wire.on, Wire.run_button

    def fits(handler: Callable, inputs: dict, first: bool) -> None:
        inspect.signature(handler).bind(*[None] * first, **(inputs or {}))
        wired.append(getattr(handler, "__name__", "partial"))

    def on(self, event, handler, inputs=None, outputs=None, errors_to="", chosen=False, drawn=False, **options):
        fits(handler, inputs, chosen or drawn)
        return real_on(self, event, handler, inputs, outputs, errors_to, chosen, drawn, **options)

    def run_button(self, button, stop, status, handler, inputs, outputs, over):
        fits(handler, inputs, False)
        return real_run(self, button, stop, status, handler, inputs, outputs, over)

    monkeypatch.setattr(Wire, "on", on)
    monkeypatch.setattr(Wire, "run_button", run_button)
    app.Page(Service()).build()
    assert len(wired) > 80 and {"generate", "compare", "grid", "turn", "after_run", "back"} <= set(wired)


def test_a_change_of_an_unknown_name_is_no_change():
    page = app.Page(Service())
    page.build()
    slots = {"slots": page.sections.subjects.slots}
    found = updates(slots, {"slots": {2: {"noun": "cat", "box": Set(visible=True)}}})
    slot = page.sections.subjects.slots[2]
    assert set(found) == {slot.noun, slot.box} and found[slot.noun] == "cat"
    with pytest.raises(KeyError, match="nose"):
        updates(slots, {"slots": {2: {"nose": "cat"}}})


def test_options_from_the_command_line_and_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CUSTOMCONTRAST_PORT", "7999")
    monkeypatch.setenv("CUSTOMCONTRAST_SHARE", "1")
    monkeypatch.setenv("CUSTOMCONTRAST_WEIGHTS", str(tmp_path))
    chosen = app.options(["--queue-size", "5"])
    assert (chosen.port, chosen.share, chosen.weights, chosen.queue_size) == (7999, True, str(tmp_path), 5)
    assert app.options(["--port", "1234"]).port == 1234


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sam-checkpoint", "/no/such.pth"],
        ["--weights", "./nowhere"],
        ["--base", "sd99"],
        ["--port", "99999"],
    ],
)
def test_wrong_options_end_with_a_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        app.options(arguments)
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("BASE", "sd99"), ("QUEUE_SIZE", "many"), ("PORT", "-1"), ("WEIGHTS", "./no")]
)
def test_wrong_values_of_the_environment_end_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
):
    monkeypatch.setenv(f"CUSTOMCONTRAST_{name}", value)
    with pytest.raises(SystemExit):
        app.options([])
    said = capsys.readouterr().err
    assert f"--{name.lower().replace('_', '-')}" in said and "Traceback" not in said


def test_mcp_is_served_or_its_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        app.options(["--mcp"])
    assert "gradio[mcp]" in capsys.readouterr().err
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: object())
    assert app.options(["--mcp"]).mcp and not app.options([]).mcp


def test_gradios_own_variables_are_honoured_after_ours(monkeypatch: pytest.MonkeyPatch):
    """A container or Space sets GRADIO_SERVER_NAME; CUSTOMCONTRAST_HOST and the command line come first."""
    for name, value in {"SERVER_NAME": "0.0.0.0", "SERVER_PORT": "7951", "SHARE": "true"}.items():
        monkeypatch.setenv(f"GRADIO_{name}", value)
    chosen = app.options([])
    assert (chosen.host, chosen.port, chosen.share) == ("0.0.0.0", 7951, True)
    monkeypatch.setenv("CUSTOMCONTRAST_HOST", "127.0.0.2")
    assert app.options([]).host == "127.0.0.2" and app.options(["--host", "::1"]).host == "::1"
    monkeypatch.setenv("GRADIO_SERVER_PORT", "x")
    with pytest.raises(SystemExit):
        app.options([])


def test_a_port_that_is_taken_ends_with_a_sentence(capsys: pytest.CaptureFixture[str]):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert app.main(["--port", port]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"127.0.0.1:{port}" in said and "--port" in said


@pytest.fixture(scope="module")
def started() -> tuple[str, bool]:
    """Gradio's folder, and whether torch is there, in a new process that has read the page's options."""
    code = "import os, sys, app; app.options([]); print(os.environ['GRADIO_TEMP_DIR'], 'torch' in sys.modules)"
    clean = {k: v for k, v in os.environ.items() if k != "GRADIO_TEMP_DIR"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True, cwd=ROOT)
    folder, torch = run.stdout.rsplit(maxsplit=1)
    return folder, {"True": True, "False": False}[torch]


def test_the_cache_folder_is_ones_own(started: tuple[str, bool]):
    assert started[0].endswith(f"gradio-{os.getuid()}")


def test_the_page_does_not_wait_for_torch(started: tuple[str, bool]):
    assert not started[1]


def test_styles_and_scripts_ask_nothing_of_other_machines():
    files = sorted(STATIC.iterdir())
    assert len(files) >= 5
    for file in files:
        assert not re.search(r"https?://|@import|url\(", file.read_text("utf-8")), file.name


def test_only_the_named_endpoints_are_public(client: Client):
    named = client.view_api(return_format="dict")
    assert set(named["named_endpoints"]) == {"/segment", "/generate", "/maps"} and not named["unnamed_endpoints"]
    for endpoint, about in named["named_endpoints"].items():  # as docs/api.md has them, in the same order
        assert [p["parameter_name"] for p in about["parameters"]] == list(documented.inputs(endpoint))
    plain = {"none": None, "true": True}
    for given in named["named_endpoints"]["/generate"]["parameters"]:
        shown = documented.inputs("/generate")[given["parameter_name"]]
        if shown != "the server's":
            default = plain[shown] if shown in plain else json.loads(shown)  # a number, or a text in quotes
            assert given["parameter_default"] == default, given["parameter_name"]


def test_segment(client: Client):
    cutout, mask, facts = client.predict(handle_file(BEAR), None, api_name="/segment")
    alpha = np.asarray(Image.open(cutout))[..., 3]
    marked = np.asarray(Image.open(mask).convert("L")) > 127
    assert alpha.shape == marked.shape and 0.02 < marked.mean() < 0.8 and (alpha[~marked] == 0).all()
    y, x = (int(v) for v in np.argwhere(~marked)[0])
    _, mask, again = client.predict(handle_file(BEAR), [[x, y, 1]], api_name="/segment")
    assert np.asarray(Image.open(mask).convert("L"))[y, x] > 127 and again["method"] != facts["method"]


@pytest.mark.parametrize(
    ("points", "data", "said"),
    [(None, b"no picture at all", "picture"), ([[1, 2]], None, "points"), ([[10_000, 5, 1]], None, "outside")],
)
def test_segment_refuses_with_a_sentence(client: Client, tmp_path: Path, points: object, data: bytes | None, said: str):
    file = tmp_path / "file.png"
    file.write_bytes(data if data is not None else Path(BEAR).read_bytes())
    with pytest.raises(AppError, match=said) as caught:
        client.predict(handle_file(str(file)), points, api_name="/segment")
    assert "Traceback" not in str(caught.value)


def test_generate_two_subjects_then_maps_in_the_same_session(client: Client):
    files, strip, recipe = generate(client, [BEAR, CAT], "bear, cat", "a bear and a cat in the city", pictures=2)
    assert len(files) == 2 and Image.open(strip).height > 0
    settings, references = read_png(files[1])
    assert settings["picture"] == 2 and [word["noun"] for word in settings["subjects"]] == ["bear", "cat"]
    assert len(references) == 2 and recipe["run"]["seed"] == 3
    map_, facts = client.predict("bear", 0, 1, api_name="/maps")
    assert Image.open(map_).width >= 384 and "S2*" in facts["words"]
    assert facts["map"] != client.predict("visual:2", 1, 1, api_name="/maps")[1]["map"]
    with pytest.raises(AppError, match="not in the prompt"):
        client.predict("zebra", 0, 0, api_name="/maps")


def test_the_same_call_gives_the_same_picture(client: Client):
    first, second = (generate(client, [BEAR], "bear", "a bear on the beach")[0][0] for _ in range(2))
    other = generate(client, [BEAR], "bear", "a bear on the beach", seed=4)[0][0]
    pixels = [np.asarray(Image.open(path)) for path in (first, second, other)]
    assert np.array_equal(pixels[0], pixels[1]) and not np.array_equal(pixels[0], pixels[2])


def test_several_references_of_one_subject_a_size_and_a_scheduler(client: Client):
    changed = {"per_subject": "2, 1", "size": "32x64", "scheduler": "dpm"}
    files, _, recipe = generate(client, [BEAR, BEAR, CAT], "bear, cat", "a bear and a cat", **changed)
    assert Image.open(files[0]).size == (32, 64) and recipe["run"]["scheduler"] == "DPMSolverMultistepScheduler"
    assert [len(pictures) for pictures in read_png(files[0])[1]] == [2, 1]


def test_places_of_two_subjects(client: Client):
    files, _, recipe = generate(client, [BEAR, CAT], "bear, cat", "a bear and a cat", places="left; 50, 20, 90, 100")
    assert [row["place"] for row in read_png(files[0])[0]["subjects"]] == ["left", "50, 20, 90, 100"]
    assert recipe["run"]["subjects"][0]["placement"]["box"] == [0, 0, 0.5, 1]


def test_one_file_does_where_a_list_is_wanted(client: Client):
    settings = SETTINGS | {"steps": 2}
    files, *_ = client.predict(
        references=handle_file(BEAR), nouns="bear", prompt="a bear", **settings, api_name="/generate"
    )
    assert len(read_png(files[0])[1]) == 1


def test_without_settings_the_base_has_its_own(client: Client):
    """Steps and guidance of whatever base it is, not of one of them."""
    *_, recipe = client.predict(prompt="a red car", api_name="/generate")
    spec = BASES["toyland"]
    assert (recipe["run"]["num_inference_steps"], recipe["run"]["guidance_scale"]) == (spec.steps, spec.guidance)
    assert recipe["steps"] is None and recipe["guidance"] is None


def test_each_subjects_strength_and_passes_of_their_own(client: Client):
    pair = ([BEAR, CAT], "bear, cat", "a bear and a cat")
    _files, _, recipe = generate(client, *pair, strengths="1; 0.25", apart=True)
    assert [row["strength"] for row in recipe["subjects"]] == [1, 0.25] and recipe["apart"] is True
    together = generate(client, *pair, strengths="1, 0.25", apart=False)
    assert together[2]["apart"] is False and together[2]["subjects"][1]["strength"] == 0.25
    with pytest.raises(AppError, match="Strengths must be one for each of the 2"):
        generate(client, *pair, strengths="1")
    with pytest.raises(AppError, match="strength must be a number"):
        generate(client, *pair, strengths="1; much")
    with pytest.raises(AppError, match="not told how subjects are turned"):
        generate(client, *pair, turns="left; any")


def test_maps_takes_every_word_that_it_lists(client: Client):
    generate(client, [BEAR], "bear", "a bear, a blue bear on the beach.")
    _, facts = client.predict("bear", 0, 0, api_name="/maps")
    assert {"a", "a #2", "S*", "beach."} <= set(facts["words"]) and len(set(facts["words"])) == len(facts["words"])
    maps = {word: client.predict(word, 0, 0, api_name="/maps")[1]["map"] for word in facts["words"]}
    assert maps["a"] != maps["a #2"] and maps["beach."] == client.predict("Beach", 0, 0, api_name="/maps")[1]["map"]
    for step in (99, -1):
        with pytest.raises(AppError, match=f"There is no step {step}; this picture has 1 to 3"):
            client.predict("bear", step, 0, api_name="/maps")


def test_help_can_be_written_to_any_terminal():
    """`--help > file` under an old code page: what every command says of itself is in letters that each can show."""
    commands = [f for name in ("customcontrast", "train", "examples") for f in (ROOT / name).rglob("*.py")]
    commands = [file for file in commands if "import argparse" in file.read_text("utf-8")]
    assert len(commands) > 15
    for file in commands:
        tree = ast.parse(file.read_text("utf-8"))
        texts = [(ast.get_docstring(tree) or "").split("\n\n")[0]]
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            told = [word.value for word in call.keywords if word.arg in ("help", "description", "epilog", "metavar")]
            parts = [node for value in told for node in ast.walk(value) if isinstance(node, ast.Constant)]
            texts += [str(part.value) for part in parts]
        for text in texts:
            assert text.encode("cp1252", "replace").decode("cp1252") == text, f"{file.name}: {text}"


def test_text_alone(client: Client):
    files, strip, recipe = generate(client, [], "", "a red car in the city")
    assert len(files) == 1 and strip is None and recipe["subjects"] == []


@pytest.mark.parametrize(
    ("references", "nouns", "changed", "said"),
    [
        ([BEAR], "", {}, "0 words for 1 pictures"),
        ([BEAR], "bear", {"prompt": " "}, "prompt is empty"),
        ([BEAR], "bear", {"steps": 1000}, "number of steps is 1000"),
        ([BEAR], "bear", {"base": "sdxl"}, "not on this machine"),
        ([BEAR] * 5, "a,b,c,d,e", {}, "At most 4"),
        ([BEAR, CAT], "bear", {"per_subject": "3"}, "per_subject asks for 3"),
        ([BEAR], "bear", {"per_subject": "five"}, "number from 1 to 4"),
        ([], "", {"size": "huge"}, "width x height"),
        ([BEAR], "bear", {"places": "left; right"}, "one for each of the 1 subjects"),
        ([BEAR], "bear", {"places": "under the table"}, "left, middle, right"),
    ],
)
def test_generate_refuses_with_a_sentence(
    client: Client, references: list[str], nouns: str, changed: dict[str, object], said: str
):
    prompt = str(changed.pop("prompt", "a bear"))
    with pytest.raises(AppError, match=said) as caught:
        generate(client, references, nouns, prompt, **changed)
    assert "Traceback" not in str(caught.value)


def test_another_session_sees_nothing_of_this_one(client: Client):
    generate(client, [], "", "a red car")
    stranger = Client(client.src, verbose=False)
    with pytest.raises(AppError, match="in the same session"):
        stranger.predict("car", 0, 0, api_name="/maps")


def test_files_of_visitors_are_known_to_the_cleaner(client: Client, tmp_path: Path):
    """Every answer's files are among those that are deleted after an hour."""
    generate(client, [BEAR], "bear", "a bear")
    cache = Path(os.environ["GRADIO_TEMP_DIR"])
    made = list(cache.rglob("customcontrast-seed3-1.png"))
    assert made
    delete_files_created_by_app(DEMO[0], age=None)
    assert not any(path.exists() for path in made)
