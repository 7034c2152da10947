"""examples/generate.py: what the visitor's command writes, and one sentence for each mistake."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from customcontrast.adapter_files import load_adapter, save_adapter
from customcontrast.base_model import load_base
from customcontrast.model_options import ModelChoice
from customcontrast.pipeline import CustomContrast
from customcontrast.segmentation import Segmenter
from customcontrast.ui import server
from tests.support.ip_files import random_ip_file
from tests.support.tiny_models import save_tiny_sd15

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import generate  # noqa: E402


@pytest.fixture(scope="module")
def weights(tiny_folder: Path, tiny_custom: CustomContrast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shipped") / "toyland"
    shutil.copytree(tiny_folder, folder)
    save_adapter(tiny_custom.adapter, folder / "adapter.safetensors")
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    picture = Image.new("RGB", (200, 160), "white")
    ImageDraw.Draw(picture).ellipse((60, 30, 140, 130), fill=(180, 60, 20), outline="black", width=3)
    path = tmp_path_factory.mktemp("reference") / "ball.png"
    picture.save(path)
    return path


def test_writes_picture_strip_and_maps(weights: Path, reference: Path, tmp_path: Path, capsys: object) -> None:
    options = ["--weights", str(weights), "--steps", "3", "--out", str(tmp_path / "out")]
    status = generate.main(["--reference", str(reference), "--prompt", "a bear on mars", *options])
    said = capsys.readouterr()
    assert status == 0, said.err
    assert Image.open(tmp_path / "out" / "picture.png").size == (64, 64)
    for name in ("location_strip.png", "maps.png"):
        width, height = Image.open(tmp_path / "out" / name).size
        assert width > 64 and height > 32
    assert "a bear S* on mars" in said.out and "never shown 'mars'" in said.out


def test_a_style_picture(reference: Path, weights: Path, tmp_path: Path, capsys: object) -> None:
    """The library's layout picture with its strength on SD-1.5, seen at 16 px; a sentence on other adapters."""
    save_tiny_sd15(tmp_path / "sd15")
    base = load_base("sd15", weights=tmp_path / "sd15", device="cpu")
    file = random_ip_file(tmp_path / "plus.safetensors", "plus", base.unet, base.image_encoder.config)
    style = tmp_path / "style.png"
    Image.radial_gradient("L").convert("RGB").save(style)
    asked = ["--reference", str(reference), "--prompt", "a (bear:1.2) on a beach", "--style", str(style)]
    own = ["--base", "sd15", "--weights", str(tmp_path / "sd15"), "--adapter", str(file), "--steps", "3"]
    own += ["--image-encoder", str(tmp_path / "sd15" / "image_encoder"), "--device", "cpu", "--memory", "none"]
    more = ["--style-role", "layout", "--reference-resolution", "16"]
    assert generate.main([*asked, *own, "--style-strength", "0.7", "--out", str(tmp_path / "out"), *more]) == 0
    model = CustomContrast.from_parts(base, load_adapter(file, base))
    seen = {"reference_resolution": 16}
    subject = model.subject(Segmenter().auto(str(reference)), "bear", **seen)
    styled = [subject, model.style(Image.open(style), 0.7, "layout", **seen)]
    wanted = model.generate("a (bear:1.2) on a beach", styled, num_inference_steps=3).images[0]
    assert Image.open(tmp_path / "out" / "picture.png").tobytes() == wanted.tobytes()
    assert generate.main([*asked, "--weights", str(weights), "--out", str(tmp_path)]) == 1
    assert "takes no style picture; load an IP-Adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reference_name", "prompt", "sentence"),
    [("missing.png", "a <bear>", "missing.png"), ("text.png", "a <bear>", "text.png"), (None, "on", "mark its word")],
)
def test_mistakes_get_one_sentence(
    weights: Path,
    reference: Path,
    tmp_path: Path,
    capsys: object,
    reference_name: str | None,
    prompt: str,
    sentence: str,
) -> None:
    (tmp_path / "text.png").write_text("this is no picture")
    path = reference if reference_name is None else tmp_path / reference_name
    arguments = ["--reference", str(path), "--prompt", prompt, "--out", str(tmp_path), "--weights", str(weights)]
    assert generate.main(arguments) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ") and sentence in said[-1]


def test_missing_weights_get_one_sentence(reference: Path, tmp_path: Path, capsys: object) -> None:
    arguments = ["--reference", str(reference), "--prompt", "a <bear>", "--out", str(tmp_path)]
    assert generate.main([*arguments, "--weights", str(tmp_path)]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: load_base: cannot read 'vae'")


def test_a_model_is_named_as_on_the_page(capsys: object) -> None:
    """The same options with the same values, one definition; a wrong one is a sentence before anything is loaded."""
    asked = ["--reference", "bear.png", "--prompt", "a <bear>", "--out", "out"]
    for words, names in (("--adapter=/nowhere", "--adapter"), ("--device=gpu", "--device"), ("--base=x", "--base")):
        said = []
        for command in (generate.main, server.options):
            with pytest.raises(SystemExit) as stop:
                command([*(asked if command is generate.main else []), words])
            said.append(capsys.readouterr().err.strip().splitlines()[-1].partition("error: ")[2])
            assert stop.value.code == 2
        assert said[0] == said[1] and names in said[0]
    page = server.options(["--image-encoder", "a/b:c", "--safety-checker", "on", "--memory", "model"])
    choice = ModelChoice.of(page)
    assert (choice.image_encoder, choice.safety_checker, choice.memory) == ("a/b:c", "on", "model")


def test_help_is_quick_and_loads_nothing() -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "examples" / "generate.py"), "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--reference" in run.stdout and "torch" not in run.stderr
