"""safety: the files of the published checker, what it flags, and that a flagged picture leaves as a plain one."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

from customcontrast import hub
from customcontrast.base_model import BaseModel
from customcontrast.errors import ConfigError, HubError
from customcontrast.integrations.diffusers_pipeline import CustomContrastPipeline
from customcontrast.output import Step
from customcontrast.pipeline import CustomContrast
from customcontrast.safety import SafetyChecker, placeholder
from tests.support.hub_server import served
from tests.support.safety_files import ALWAYS, save_published, tiny_checker
from tests.support.tiny_models import save_tiny_sd15

ASK = {"num_inference_steps": 2, "num_images": 2, "seed": 4}
PROMPT = "a bear on the beach"


@pytest.fixture(scope="module")
def pictures(tiny_base: BaseModel) -> list[Image.Image]:
    """Two pictures of the tiny base, without a checker."""
    return CustomContrast(tiny_base).generate(PROMPT, **ASK).images


@pytest.fixture(scope="module")
def choosy(pictures: list[Image.Image]) -> SafetyChecker:
    """Flags the second of `pictures`, not the first."""
    return SafetyChecker(tiny_checker(pictures[1], [pictures[0], placeholder((64, 64))]))


# ---- files


def test_the_published_keys_are_read_whole(tmp_path: Path, pictures: list[Image.Image]) -> None:
    model = tiny_checker(pictures[1], pictures[:1])
    folder = save_published(model, tmp_path / "pipeline" / "safety_checker", "fp16")
    for source in (folder, folder.parent):  # a pipeline's folder does too
        loaded = SafetyChecker.load(source).model
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    weights = load_file(folder / "model.fp16.safetensors")
    del weights["vision_model.vision_model.embeddings.class_embedding"]
    save_file(weights, folder / "model.fp16.safetensors", {"format": "pt"})
    with pytest.raises(HubError, match=r"lacks 1 weights of the checker, the first is 'vision_model.embeddings.class"):
        SafetyChecker.load(folder)
    (folder / "model.fp16.safetensors").write_bytes(b"damaged")
    with pytest.raises(HubError, match="cannot be read"):
        SafetyChecker.load(folder)
    (folder / "model.fp16.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(HubError, match=r"lacks config.json or model.safetensors"):
        SafetyChecker.load(folder)


def test_on_is_the_weights_own_then_the_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = save_published(tiny_checker(), tmp_path / "weights" / "safety_checker")
    assert hub.safety_folder("on", tmp_path / "weights") == own
    folder = save_published(tiny_checker(), tmp_path / "hub" / "tiny" / "sd15" / "safety_checker")
    save_published(tiny_checker(), tmp_path / "fp16", "fp16")
    shutil.copy(tmp_path / "fp16" / "model.fp16.safetensors", folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    monkeypatch.setattr(hub, "SAFETY", ("tiny/sd15", "safety_checker"))
    with served(tmp_path / "hub", tmp_path / "cache", monkeypatch) as server:
        assert SafetyChecker.load("on", "tiny/sd15").flags([Image.new("RGB", (9, 9))]) == [False]
        where = "tiny/sd15/safety_checker/"
        assert sorted(server.fetched) == [f"{where}config.json", f"{where}model.fp16.safetensors"]
        assert hub.safety_folder("tiny/sd15:safety_checker").name == "safety_checker" and len(server.fetched) == 2


def test_without_network_it_says_which_files_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError) as caught:
        hub.safety_folder("on", "stable-diffusion-v1-5/stable-diffusion-v1-5")
    said = str(caught.value)
    assert "safety_checker/config.json, safety_checker/model.fp16.safetensors" in said and "\n" not in said
    assert "--safety-checker FOLDER" in said and "https://huggingface.co/stable-diffusion-v1-5/" in said
    with pytest.raises(HubError, match="is no folder here; give 'on', 'off'"):
        hub.safety_folder("./nowhere")


# ---- what it flags


def test_it_flags_what_diffusers_own_pipeline_flags(choosy: SafetyChecker, pictures: list[Image.Image]) -> None:
    every = [*pictures, placeholder((64, 64)), Image.new("L", (30, 50), 90)]
    stock = SimpleNamespace(
        safety_checker=choosy.model, feature_extractor=choosy.processor, image_processor=VaeImageProcessor()
    )
    wanted = []
    for picture in every:
        pixels = torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        check = StableDiffusionPipeline.run_safety_checker  # reads these three of its pipeline
        wanted += check(stock, pixels, torch.device("cpu"), torch.float32)[1]
    assert choosy.flags(every) == wanted and wanted[:2] == [False, True]
    assert choosy.flags([]) == []
    assert SafetyChecker(tiny_checker(threshold=ALWAYS)).flags(every) == [True] * len(every)


def test_a_flagged_picture_is_replaced_in_every_form(
    tiny_base: BaseModel, choosy: SafetyChecker, pictures: list[Image.Image]
) -> None:
    custom = CustomContrast.from_parts(tiny_base, safety_checker=choosy)
    *steps, result = custom.stream(PROMPT, preview_every=1, **ASK)
    assert all(isinstance(step, Step) and step.preview is None for step in steps), "previews would show it"
    assert result.flagged == [False, True]
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(pictures[0]))
    plain = np.asarray(placeholder(pictures[1].size))
    assert np.array_equal(np.asarray(result.images[1]), plain) and len(np.unique(plain)) > 2, "with its label"
    assert sum("withheld picture 2" in note for note in result.notes) == 1 == len(result.notes)
    arrays = custom.generate(PROMPT, output_type="np", **ASK).images
    assert np.abs(arrays[1] - plain / 255).max() < 1e-6
    tensors = custom.generate(PROMPT, output_type="pt", **ASK).images
    assert np.allclose(tensors[1].permute(1, 2, 0).numpy(), arrays[1], atol=1e-6)
    with pytest.raises(ConfigError, match="output_type='latent'"):
        custom.generate(PROMPT, output_type="latent", **ASK)
    assert custom.with_adapter(None).safety is choosy
    assert CustomContrast(tiny_base).generate(PROMPT, **ASK).flagged == []


def test_a_checker_that_fails_shows_nothing(
    tiny_base: BaseModel, choosy: SafetyChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(choosy.model, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        CustomContrast(tiny_base, safety=choosy).generate(PROMPT, **ASK)


# ---- by name, and in the manner of diffusers


def test_by_name_and_as_a_pipelines_own(tmp_path: Path) -> None:
    folder = tmp_path / "sd15"
    save_tiny_sd15(folder)
    save_published(tiny_checker(threshold=ALWAYS), folder / "safety_checker")
    ask = {"num_inference_steps": 1}
    assert CustomContrast.load("sd15", folder, device="cpu").generate(PROMPT, **ask).flagged == []
    model = CustomContrast.load("sd15", folder, device="cpu", safety_checker="on")
    assert model.generate(PROMPT, **ask).flagged == [True]
    pipe = CustomContrastPipeline.from_pretrained(folder, base="sd15", device="cpu", safety_checker="on")
    out = pipe([PROMPT, "a cat"], **ask)
    assert out.nsfw_content_detected == [True, True] and out.images[0].tobytes() == placeholder((64, 64)).tobytes()
    assert type(pipe)(**pipe.components).safety_checker is pipe.safety_checker
    stock = StableDiffusionPipeline.from_pretrained(folder, safety_checker=pipe.safety_checker.model)
    again = CustomContrastPipeline.from_pipe(stock)  # what it had is not lost on the way
    assert again(PROMPT, **ask).nsfw_content_detected == [True]
    again.safety_checker = None
    assert again(PROMPT, **ask).nsfw_content_detected is None
