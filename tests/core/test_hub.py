"""hub: names become files, from a cache or a server; what is fetched, what is refused, and what is said without it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import constants
from PIL import Image

from customcontrast import hub
from customcontrast.adapter_files import save_adapter
from customcontrast.base_model import BaseModel, load_base
from customcontrast.errors import BaseModelError, CheckpointError, HubError
from customcontrast.hub import ADAPTERS, NAMES, Published, adapter_file, encoder_folder, pipeline_folder
from customcontrast.integrations.diffusers_pipeline import CustomContrastPipeline
from customcontrast.pipeline import CustomContrast
from customcontrast.specs import BASES
from tests.conftest import Cutout
from tests.support.hub_server import COMMIT, Hub, served
from tests.support.ip_files import random_ip_file
from tests.support.ldm_layout import save_checkpoint
from tests.support.tiny_models import random_adapter, save_tiny_sd15

FAST = {"num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with served(tmp_path / "hub", tmp_path / "cache", monkeypatch) as running:
        yield running


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub of three repositories: SD-1.5 in both precisions with files nobody reads, IP-Adapter, an image encoder."""
    root = tmp_path_factory.mktemp("hub")
    folder = root / "tiny" / "sd15"
    save_tiny_sd15(folder)
    encoder = root / "h94" / "IP-Adapter" / "models" / "image_encoder"
    encoder.parent.mkdir(parents=True)
    shutil.move(folder / "image_encoder", encoder)
    shutil.rmtree(folder / "feature_extractor")
    for name in ("unet", "vae"):
        model = (UNet2DConditionModel if name == "unet" else AutoencoderKL).from_pretrained(folder, subfolder=name)
        model.half().save_pretrained(folder / name, variant="fp16")
        (folder / name / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
        (folder / name / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"another")
    (folder / "v1-5-pruned.safetensors").write_bytes(b"all in one")
    base = load_base("sd15", folder, "cpu", image_encoder=encoder)
    file = root / "h94" / "IP-Adapter" / "models" / "ip-adapter-plus_sd15.safetensors"
    random_ip_file(file, "plus", base.unet, base.image_encoder.config)
    save_adapter(random_adapter(base), root / "mine" / "trained" / "adapter.safetensors")
    return root


@pytest.fixture
def known(published: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """The small file as it is known in ADAPTERS."""
    path = "models/ip-adapter-plus_sd15.safetensors"
    content = (published / "h94" / "IP-Adapter" / path).read_bytes()
    one = Published("h94/IP-Adapter", path, len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(ADAPTERS, ("ip-adapter-plus", "sd15"), one)
    return one


# ---- from an empty cache, over the network, to pictures -----------------------------------------------------


def test_from_names_alone_to_a_picture(
    published: Path, known: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloads exactly what is read; afterwards the cache alone gives the same picture without a network."""
    reference = Cutout(Image.new("RGB", (30, 30), "teal"))

    def draw() -> torch.Tensor:
        model = CustomContrast.load("sd15", "tiny/sd15", "ip-adapter-plus", "cpu")
        assert model.base.encoder_name == "h94/IP-Adapter:models/image_encoder"
        assert model.base.image_processor.crop_size["height"] == 24, "CLIP's statistics at the encoder's size"
        return model.generate("a bear on the beach", model.subject(reference, "bear"), **FAST).images

    with served(published, tmp_path / "cache", monkeypatch) as server:
        first = draw()
        weights = sorted(name for name in server.fetched if not name.endswith((".json", ".txt", ".model")))
        assert weights == [
            "h94/IP-Adapter/models/image_encoder/model.safetensors",
            "h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors",
            "tiny/sd15/text_encoder/model.safetensors",
            "tiny/sd15/unet/diffusion_pytorch_model.safetensors",
            "tiny/sd15/vae/diffusion_pytorch_model.safetensors",
        ]
        before = server.requests
        assert torch.equal(draw(), first) and server.requests == before, "the second time from the cache"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(draw(), first)
    pipe = CustomContrastPipeline.from_pretrained(
        "tiny/sd15", base="sd15", adapter="h94/IP-Adapter:models/ip-adapter-plus_sd15.safetensors", device="cpu"
    )
    assert pipe.model.adapter.config.kind == "plus"
    pipe.save_pretrained(tmp_path / "saved")
    again = CustomContrastPipeline.from_pretrained(tmp_path / "saved", base="sd15", device="cpu")
    assert torch.equal(again.model.generate("a bear", **FAST).images, pipe.model.generate("a bear", **FAST).images)
    assert torch.equal(again.adapter.image_proj.latents, pipe.adapter.image_proj.latents)


def test_in_half_precision_half_the_bytes(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(published, tmp_path / "cache", monkeypatch) as server:
        folder = pipeline_folder("tiny/sd15", ["unet", "vae", "text_encoder"], ["tokenizer", "scheduler"], half=True)
        heavy = {name.removeprefix("tiny/sd15/") for name in server.fetched if name.endswith(".safetensors")}
        assert heavy == {
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "text_encoder/model.safetensors",
        }, "where there is no half-precision file, the other"
        base = load_base("sd15", "tiny/sd15", "cpu", torch.float16, published / "h94/IP-Adapter/models/image_encoder")
        assert base.unet.dtype == torch.float16 and len({*server.fetched}) == len(server.fetched)
        full = load_base("sd15", folder, "cpu", image_encoder=published / "h94/IP-Adapter/models/image_encoder")
        assert full.unet.dtype == torch.float32, "half-precision files serve full precision where nothing else is there"


def test_our_own_adapter_from_the_hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(published, tmp_path / "cache", monkeypatch):
        encoder = published / "h94/IP-Adapter/models/image_encoder"
        model = CustomContrast.load(
            "sd15", published / "tiny/sd15", "mine/trained:adapter.safetensors", "cpu", image_encoder=encoder
        )
    assert model.adapter.kind == "customcontrast"


def test_another_content_is_not_taken(
    published: Path, known: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the right size with another digest, and of another size: removed, and said so."""
    root = tmp_path / "other"
    wrong = Hub(root)
    for content in (b"x" * known.size, b"short"):
        wrong.add(f"h94/IP-Adapter/{known.path}", content)
        refused = pytest.raises(HubError, match="not the published file")
        with served(root, tmp_path / "cache", monkeypatch), refused as caught:
            adapter_file("ip-adapter-plus", "sd15")
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "cache").rglob("*.safetensors"))
    with served(published, tmp_path / "cache", monkeypatch):
        assert adapter_file("ip-adapter-plus", "sd15").stat().st_size == known.size


# ---- a cache as huggingface_hub lays it out ---------------------------------------------------------------------


def test_a_cache_that_was_filled_elsewhere(published: Path, known: Published, offline: Path) -> None:
    for repo in ("tiny/sd15", "h94/IP-Adapter"):
        place = offline / f"models--{repo.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(COMMIT)
        shutil.copytree(published / repo, place / "snapshots" / COMMIT)
    model = CustomContrast.load("sd15", "tiny/sd15", "ip-adapter-plus", "cpu")
    assert model.adapter.metadata["kind"] == "plus"
    shutil.rmtree(offline / "models--tiny--sd15" / "snapshots" / COMMIT / "vae")
    with pytest.raises(BaseModelError, match="vae/"):
        load_base("sd15", "tiny/sd15", "cpu")


# ---- what is said where nothing can be had ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_without_network_it_says_which_file_to_get(name: str, offline: Path) -> None:
    published = ADAPTERS[name, "sd15"]
    with pytest.raises(HubError) as caught:
        adapter_file(name, "sd15")
    sentence = str(caught.value)
    assert published.path in sentence and f"{published.size:,} bytes" in sentence and "adapter=FILE" in sentence
    assert "\n" not in sentence


def test_without_network_of_bases_and_image_encoders(offline: Path, tiny_folder: Path) -> None:
    with pytest.raises(BaseModelError, match=r"could not be fetched.*unet/.*text_encoder/.*pass the folder"):
        load_base("sd15")
    with pytest.raises(BaseModelError, match=r"models/image_encoder/ of https://huggingface.co/h94/IP-Adapter"):
        load_base("toyland", tiny_folder, "cpu", image_encoder="h94/IP-Adapter:models/image_encoder")
    with pytest.raises(BaseModelError, match="is no folder here"):
        load_base("toyland", tiny_folder, "cpu", image_encoder="./nowhere")


def test_names_that_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.bin").write_bytes(b"")
    for name in ("h94/IP-Adapter:models/ip-adapter_sd15.bin", tmp_path / "own.bin"):
        with pytest.raises(CheckpointError, match="is a pickle"):
            CustomContrast.load("toyland", tiny_folder, name, "cpu")
    with pytest.raises(CheckpointError, match="published for sd15 and sdxl, not for 'toyland'"):
        CustomContrast.load("toyland", tiny_folder, "ip-adapter-plus", "cpu")
    with pytest.raises(CheckpointError, match="published for sd15, not for 'sdxl'"):
        CustomContrast.load("sdxl", tiny_folder, "ip-adapter-full-face", "cpu")
    with pytest.raises(CheckpointError, match="there is no file"):
        CustomContrast.load("toyland", tiny_folder, "nowhere.safetensors", "cpu")
    with pytest.raises(HubError, match=r"names no .safetensors file"):
        adapter_file("owner/name:folder", "sd15")


def test_what_the_hub_does_not_have(server: Hub) -> None:
    server.add("owner/name/unet/config.json", b"{}")
    with pytest.raises(HubError, match=r"has no missing.safetensors; check the spelling"):
        adapter_file("owner/name:missing.safetensors", "sd15")
    with pytest.raises(HubError, match="lacks safetensors weights or settings in one of: unet"):
        pipeline_folder("owner/name", ["unet"], [])
    with pytest.raises(HubError, match="could not be fetched"):
        encoder_folder("owner/other")


# ---- which files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "half", "chosen"),
    [
        (["model.safetensors", "model.fp16.safetensors"], True, ["model.fp16.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], False, ["model.safetensors"]),
        (["model.fp16.safetensors"], False, ["model.fp16.safetensors"]),
        (["model.safetensors", "pytorch_model.bin", "model.non_ema.safetensors"], True, ["model.safetensors"]),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            False,
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (["model-00001-of-00002.safetensors"], False, []),
        (["model.fp16-00001-of-00002.safetensors", "model.safetensors"], True, ["model.safetensors"]),
    ],
)
def test_which_weights_are_read(names: list[str], half: bool, chosen: list[str]) -> None:
    assert hub._chosen_weights(names, half) == chosen


def test_every_published_file_is_of_its_base() -> None:
    for (name, base), published in ADAPTERS.items():
        assert base in published.path and published.path.endswith(".safetensors")
        assert len(published.sha256) == 64 and published.size > 40e6 and name in NAMES


# ---- one checkpoint file ---------------------------------------------------------------------------------------------


def test_one_checkpoint_file_is_the_folder_it_was_made_of(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings and tokenizer come from the base's own repository; no weights are fetched from there."""
    file = save_checkpoint(published / "tiny/sd15", tmp_path / "finetuned.safetensors")
    encoder = published / "h94/IP-Adapter/models/image_encoder"
    spec = replace(BASES["sd15"], weights="tiny/sd15")
    monkeypatch.setitem(BASES, "sd15", spec)
    folder = load_base("sd15", published / "tiny/sd15", "cpu", image_encoder=encoder)
    with served(published, tmp_path / "cache", monkeypatch) as server:
        single = load_base("sd15", file, "cpu", image_encoder=encoder)
        assert not [name for name in server.fetched if name.endswith((".safetensors", ".bin"))]
    options = FAST | {"seed": 3}
    wanted = CustomContrast(folder).generate("a bear on the beach", **options).images
    assert torch.equal(CustomContrast(single).generate("a bear on the beach", **options).images, wanted)
    assert torch.equal(single.decode(wanted), folder.decode(wanted))


def test_a_checkpoint_file_that_is_none(published: Path, offline: Path, tiny_base: BaseModel) -> None:
    file = published / "tiny/sd15/v1-5-pruned.safetensors"
    with pytest.raises(BaseModelError, match="could not be fetched"):
        load_base("sd15", file, "cpu")
