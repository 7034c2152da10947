"""SD-1.5 with a published IP-Adapter on the page, by the API and from recipes: its ways, its λ, the style picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from customcontrast.base_model import load_base
from customcontrast.errors import RequestError
from customcontrast.ui.api import Endpoints
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.handlers.comparison import ways
from customcontrast.ui.handlers.forms import SETTINGS, GenerationForm, StyleForm, SubjectForm
from customcontrast.ui.handlers.messages import Set
from customcontrast.ui.handlers.style_panel import LEFT_OUT
from customcontrast.ui.handlers.subject_panel import SLOTS
from customcontrast.ui.page import Page
from customcontrast.ui.service.cutouts import CutOut
from customcontrast.ui.service.models import Models, ServiceConfig
from customcontrast.ui.service.recipe import png_bytes, read_png
from customcontrast.ui.service.request import LAYOUT, STYLE, StyleRequest, request_from
from customcontrast.ui.service.service import Service
from tests.support.ip_files import random_ip_file
from tests.support.serving import EXAMPLES
from tests.support.tiny_models import save_tiny_sd15

PAINTING = Image.fromarray(np.random.default_rng(4).integers(0, 255, (60, 90, 3), np.uint8))


@pytest.fixture(scope="module")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> Handlers:
    """SD-1.5 at toy width with a file in the published layout."""
    folder = tmp_path_factory.mktemp("sd15")
    save_tiny_sd15(folder)
    base = load_base("sd15", weights=folder, device="cpu")
    file = random_ip_file(folder / "plus.safetensors", "plus", base.unet, base.image_encoder.config)
    service = Service(ServiceConfig("sd15", weights=str(folder), adapter=str(file), device="cpu"))
    return Handlers(service, EXAMPLES, lambda: tmp_path_factory.mktemp("answer"))


@pytest.fixture(scope="module")
def painting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("style") / "painting.png"
    PAINTING.save(path)
    return path


def form(cut: CutOut | None = None, style: StyleForm | None = None, **changed: object) -> GenerationForm:
    first = SubjectForm(cut, (), "bear") if cut else SubjectForm()
    slots = (first, *(SubjectForm() for _ in SLOTS[1:]))
    given = {"prompt": "a bear on the beach", "steps": 3, "guidance": 4.0, "seed": 5, "base": "sd15", "size": "64x64"}
    return GenerationForm(subjects=slots, style=style or StyleForm(), **(given | changed))


def pixels(image: Image.Image) -> bytes:
    return np.asarray(image.convert("RGB")).tobytes()


def test_pictures_a_place_and_ways_of_its_own(handlers: Handlers, bear: CutOut) -> None:
    """The noun's map is the location; there is no map of the visual branch; compare knows no S*."""
    control = form(bear)
    run = list(handlers.generation.generate(control))[-1]["run"]
    assert run.result.recipe["subject_scale"] == 0.6, "the adapter's own"
    shown = handlers.viewers.show(run)
    assert shown["branch"]["visible"] is False and shown["strip"]["visible"] and run.result.location_masks.any()
    with pytest.raises(RequestError, match="leaves no map: look at the map of the subject's word"):
        handlers.viewers.map(run, "visual", 0, 0, 0, "")
    assert "no features of the kind" in handlers.viewers.features(run)["around_note"]["value"]
    last = list(handlers.comparison.compare(control))[-1]
    pictures = last["compared"].pictures
    assert [label for label, _ in pictures.values()] == ["Text only", "IP-Adapter", "IP-Adapter, located"]
    assert len({pixels(image) for _, image in pictures.values()}) == 3 and last["left"]["value"] == "unmasked"
    assert ("IP-Adapter, located", "full") in last["right"]["choices"] and len(last["left"]["choices"]) == 3


def test_a_style_picture_is_the_librarys_and_comes_back(handlers: Handlers, bear: CutOut, painting: Path) -> None:
    given = handlers.style.upload(str(painting))
    assert pixels(given["picture"]) == pixels(PAINTING) and given["note"]["visible"] is False
    last = list(handlers.generation.generate(form(bear, StyleForm(given["picture"], 0.8))))[-1]
    request, result = last["run"].request, last["run"].result
    model = handlers.service.models.model()
    subject = model.subject(bear.current, "bear")
    options = {"num_inference_steps": 3, "guidance_scale": 4.0, "seed": 5, "width": 64, "height": 64}
    location = request.to_config().location
    wanted = model.generate(request.prompt, [subject, model.style(PAINTING, 0.8)], location=location, **options)
    plain = model.generate(request.prompt, [subject], location=location, **options)
    assert pixels(result.images[0]) == pixels(wanted.images[0]) != pixels(plain.images[0])
    assert result.recipe["pictures"] == wanted.recipe["pictures"] and result.recipe["pictures"][0]["strength"] == 0.8

    file = last["gallery"]["value"][0]
    settings, references = read_png(file)
    assert [(row["role"], row["strength"]) for row in settings["subjects"]] == [("subject", 1.0), (STYLE, 0.8)]
    again = request_from(settings, references)
    assert len(again.subjects) == 1 and again.style is not None and again.style.strength == 0.8
    assert pixels(again.style.picture) == pixels(PAINTING)

    back = handlers.replay.load(file)
    assert back["style"]["box"]["visible"] and back["style"]["strength"] == 0.8 and LEFT_OUT not in back["status"]
    controls = {n: back[n]["value"] if isinstance(back[n], Set) else back[n] for n in SETTINGS if n in back}
    style = StyleForm(back["style"]["picture"], back["style"]["strength"])
    repeated = list(handlers.generation.generate(form(back["slots"][1]["cut"], style, **controls)))[-1]
    assert pixels(Image.open(repeated["gallery"]["value"][0])) == pixels(Image.open(file))


def test_a_style_picture_by_the_api(handlers: Handlers, painting: Path) -> None:
    """Without any subject too; the recipe says 0.6 where no λ was sent."""
    asked = {"prompt": "a bear", "steps": 2, "guidance": 4.0, "base": "sd15", "size": "64x64"}
    files, _, settings, run = Endpoints(handlers).generate(style=str(painting), style_strength=0.7, **asked)
    assert pixels(run.request.style.picture) == pixels(PAINTING) and settings["run"]["pictures"][0]["role"] == STYLE
    kept = read_png(files[0])[0]
    assert kept["subjects"] == [{"role": STYLE, "strength": 0.7}] and kept["subject_scale"] == 0.6
    without = Endpoints(handlers).generate(**asked)[-1]
    assert pixels(without.result.images[0]) != pixels(run.result.images[0])


def test_a_layout_picture_and_the_reference_resolution(handlers: Handlers, bear: CutOut, painting: Path) -> None:
    """The role of the picture beside the subjects: by the page, by the API, in the recipe, and back from it."""
    asked = form(bear, StyleForm(PAINTING, 0.9, LAYOUT), resolution="16 px")
    last = list(handlers.generation.generate(asked))[-1]
    model = handlers.service.models.model()
    subject = model.subject(bear.current, "bear", reference_resolution=16)
    layout = model.style(PAINTING, 0.9, role=LAYOUT, reference_resolution=16)
    options = {"num_inference_steps": 3, "guidance_scale": 4.0, "seed": 5, "width": 64, "height": 64}
    location = last["run"].request.to_config().location
    wanted = model.generate("a bear on the beach", [subject, layout], location=location, **options)
    assert pixels(last["run"].result.images[0]) == pixels(wanted.images[0])
    assert [row["role"] for row in wanted.recipe["pictures"]] == [LAYOUT]

    settings, references = read_png(last["gallery"]["value"][0])
    assert settings["subjects"][1]["role"] == LAYOUT and settings["reference_resolution"] == 16
    assert dataclasses.replace(request_from(settings, references), subjects=()).style.role == LAYOUT
    back = handlers.replay.load(last["gallery"]["value"][0])
    assert back["style"]["role"] == LAYOUT and back["resolution"]["value"] == "16"
    assert [value for _, value in back["resolution"]["choices"]] == ["", "36", "48"], "of an encoder that reads 24 px"

    sent = {"prompt": "a bear", "steps": 2, "guidance": 4.0, "base": "sd15", "size": "64x64", "style": str(painting)}
    made = [
        Endpoints(handlers).generate(**sent, style_role=role, reference_resolution=side)
        for role, side in ((STYLE, None), (LAYOUT, None), (LAYOUT, 48))
    ]
    assert len({pixels(run.result.images[0]) for *_, run in made}) == 3
    kept = read_png(made[2][0][0])[0]
    assert kept["subjects"] == [{"role": LAYOUT, "strength": 1.0}] and kept["reference_resolution"] == 48
    with pytest.raises(RequestError, match="There is no role “manner”; choose one of style, layout"):
        form(style=StyleForm(PAINTING, 1, "manner")).request()
    with pytest.raises(RequestError, match="reference resolution must be a whole number from 16 to 448"):
        form(resolution="large").request()
    with pytest.raises(RequestError, match="16 to 48 px for base 'sd15', whose image encoder reads 24 px"):
        list(handlers.service.stream(form(bear, resolution="100").request()))


def test_wrong_style_pictures_get_a_sentence(handlers: Handlers, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("this is no picture")
    changes = handlers.style.upload(str(tmp_path / "text.png"))
    assert changes["picture"] is None and changes["upload"] is None and "cc-error" in changes["note"]["value"]
    assert handlers.style.upload(None)["picture"] is None
    with pytest.raises(RequestError, match="strength of the style is 9; it must be a number from 0 to 3"):
        form(style=StyleForm(PAINTING, 9)).request()
    row = {"role": STYLE, "strength": 1.0}
    for rows, references in (([row, row], 2), ([row | {"strength": "much"}], 1), ([row | {"strength": None}], 1)):
        pictures = [[StyleRequest(PAINTING).whole]] * references
        with pytest.raises(RequestError):
            request_from({"prompt": "a bear", "subjects": rows}, pictures)
    with pytest.raises(RequestError, match="damaged"):
        request_from({"prompt": "a bear", "subjects": [row]}, [[]])


def test_a_comparison_with_text_alone_has_no_style(bear: CutOut) -> None:
    for published in (False, True):
        found = ways(form(bear, StyleForm(PAINTING)).request(), published=published)
        assert found["text"].style is None and found["full"].style is not None


def test_the_slot_is_there_where_the_base_takes_it(
    handlers: Handlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without loading a model: by the adapter's name or file, for the server's own base alone."""
    folder = handlers.service.config.weights
    monkeypatch.setattr(Models, "start", lambda *_: None)  # a load in the background would meet the next test's models
    named = {
        ServiceConfig("sd15", adapter="ip-adapter-plus"): True,
        ServiceConfig("sdxl", adapter="somebody/weights:ip.safetensors"): True,
        ServiceConfig("sd15", weights=folder): False,
        handlers.service.config: True,
        ServiceConfig("toyland2"): False,
    }
    for config, takes in named.items():
        models = Models(config)
        assert models.has_ip_adapter() is takes and models.default_scale() == (0.6 if takes else 1.0)
        assert not models.has_ip_adapter("toyland") and not models.ready()
    sections = (page := Page(handlers.service)).build() and page.sections
    assert sections.style.box.visible and sections.settings.subject_scale.value == 0.6
    away = handlers.prompt.choose_base("toyland2")
    assert away["style"]["box"]["visible"] is False and away["style"]["picture"] is None
    assert away["subject_scale"] == 1.0
    other = Handlers(Service(ServiceConfig("toyland", device="cpu")), EXAMPLES, lambda: tmp_path)
    settings = dataclasses.replace(form(style=StyleForm(PAINTING)).request(), base="toyland")
    (tmp_path / "x.png").write_bytes(png_bytes(PAINTING, settings.settings(), settings.references))
    told = other.replay.load(tmp_path / "x.png")
    assert LEFT_OUT in told["status"] and told["style"]["picture"] is None and not told["style"]["box"]["visible"]
