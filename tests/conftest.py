"""Fixtures that the tests share.

What takes long to import is imported where it is used: the process that only hands out tests (pytest-xdist) reads this
file too, before the others start.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from customcontrast.base_model import BaseModel
    from customcontrast.pipeline import CustomContrast

os.environ.setdefault("MKL_CBWR", "AUTO")  # else a product's last bits depend on where in memory its factors lie

gc.disable()  # until all is imported: a tenth of the time of torch's and gradio's imports

# httpx reads all the world's certificates anew for each client, and gradio's makes several for one request.
ssl.create_default_context = functools.cache(ssl.create_default_context)


@dataclass(frozen=True)
class Cutout:
    """The least a segmentation must be able to do: show its subject on white."""

    picture: Image.Image

    def on_plain(self) -> Image.Image:
        return self.picture


LONG = {"slow", "browser", "distributed"}  # markers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that two processes end together (with xdist's own order off).

    The browser tests are one piece; then files with long tests.
    """
    marks = {item: {mark.name for mark in item.iter_markers()} for item in items}
    long = {item.path for item in items if LONG & marks[item]}
    items.sort(key=lambda item: ("browser" not in marks[item], item.path not in long))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process takes the tests of a file, and one all that need a browser: they share a server and a Chromium."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "browser" if file.startswith("tests/ui/test_page") else file

    return Files(config, log)


def pytest_collection_finish() -> None:
    """Set aside what the imports made: among it a garbage collection takes half a second."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cutout() -> Callable[[int], Cutout]:
    """cutout(seed): a segmented subject, a random blob of colours on white."""

    def make(seed: int = 0) -> Cutout:
        rng = np.random.default_rng(seed)
        pixels = np.full((48, 48, 3), 255, np.uint8)
        pixels[8:40, 8:40] = rng.integers(0, 255, (32, 32, 3))
        return Cutout(Image.fromarray(pixels))

    return make


def written(save: Callable[[Path], None], folder: Path) -> Path:
    """The folder, with the model that `save` writes."""
    save(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.tiny_models import save_tiny_toyland

    return written(save_tiny_toyland, tmp_path_factory.mktemp("toyland"))


@pytest.fixture(scope="session")
def headed_folder(tiny_folder: Path, tiny_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_folder with the CLIP head that compares text and pictures, as an export has it."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("headed") / "toyland"
    shutil.copytree(tiny_folder, folder)
    width, out = tiny_base.text_encoders[0].config.hidden_size, tiny_base.image_encoder.config.projection_dim
    save_file({"text_projection.weight": torch.randn(out, width)}, folder / "clip_head.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny_xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.tiny_models import save_tiny_xl

    return written(save_tiny_xl, tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="session")
def tiny_base(tiny_folder: Path) -> BaseModel:
    """Toyland's classes at toy width: 64 px pictures, 8×8 latents, 4 cross-attention layers, v-prediction."""
    from customcontrast.base_model import load_base

    return load_base("toyland", weights=tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """The tiny Toyland with layout channels at its UNet's input, a prior, and no padding in its texts."""
    from customcontrast.base_model import load_base
    from tests.support.tiny_models import save_tiny_layouts

    return load_base("toyland", weights=written(save_tiny_layouts, tmp_path_factory.mktemp("layout")), device="cpu")


@pytest.fixture(scope="session")
def tiny_xl_base(tiny_xl_folder: Path) -> BaseModel:
    """SDXL's classes at toy width: two text encoders, ε-prediction, f = 4."""
    from customcontrast.base_model import load_base

    return load_base("sdxl", weights=tiny_xl_folder, device="cpu")


@pytest.fixture(scope="session", params=["toyland", "sdxl"])
def any_base(request: pytest.FixtureRequest, tiny_base: BaseModel, tiny_xl_base: BaseModel) -> BaseModel:
    """Each tiny base in turn."""
    return tiny_base if request.param == "toyland" else tiny_xl_base


def with_random_adapter(base: BaseModel) -> CustomContrast:
    from customcontrast.pipeline import CustomContrast
    from tests.support.tiny_models import random_adapter

    return CustomContrast.from_parts(base, random_adapter(base))


@pytest.fixture(scope="session")
def tiny_custom(tiny_base: BaseModel) -> CustomContrast:
    """CustomContrast on the tiny base, with a random adapter."""
    return with_random_adapter(tiny_base)


@pytest.fixture(scope="session")
def any_custom(any_base: BaseModel) -> CustomContrast:
    return with_random_adapter(any_base)


@pytest.fixture(scope="session")
def exported_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported base of the second Toyland's kind at toy width: 32 px, layout channels, no padding."""
    from train.base import pretrain

    run = tmp_path_factory.mktemp("demo")
    for stage in (["pool", "--count", "4"], ["clip"], ["vae"], ["unet"], ["export", "--out", str(run / "weights")]):
        pretrain.main([*stage, "--preset", "tiny-demo", "--run", str(run)])
    return run / "weights"
