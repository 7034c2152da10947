"""memory, offload: what is chosen by what is free, in numbers; every plan gives the same picture; what is said."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from customcontrast import offload
from customcontrast import pipeline as pipeline_module
from customcontrast.adapter_files import save_adapter
from customcontrast.base_model import load_base
from customcontrast.errors import BaseModelError, ConfigError
from customcontrast.memory import (
    GB,
    OFFLOADS,
    RESERVE,
    TILE,
    MemoryPlan,
    ModelSize,
    choose_memory,
    free_main_memory,
    needed_bytes,
)
from customcontrast.pipeline import CustomContrast
from customcontrast.sampling import on_device
from tests.support.tiny_models import random_adapter, save_tiny_sd15

ROOT = Path(__file__).parents[2]
# As `test_true_size` counts them; with OpenCLIP ViT-H and ip-adapter-plus.
SD15 = ModelSize(859_520_964, 83_653_863, 123_060_480, 630_766_080, 49_087_488)
SDXL = ModelSize(2_567_463_684, 83_653_863, 817_720_320, 630_766_080, 423_748_864, wide_vae=True)
SIZES = {"SD-1.5": (SD15, 512), "SDXL": (SDXL, 1024)}


# ---- what is chosen


def test_the_fastest_way_that_fits_is_taken_and_less_memory_never_gives_a_faster_one() -> None:
    order = [(offload, tiling) for offload in OFFLOADS for tiling in (False, True)]
    for model, side in SIZES.values():
        before = len(order)
        for free in range(0, 24_000, 100):
            plan = choose_memory(free * 10**6, model, size=(side, side))
            place = order.index((plan.offload, plan.vae_tiling))
            assert place <= before or not plan.enough
            before = place if plan.enough else before
            assert plan.dtype == "float16" and plan.free == free * 10**6
            assert plan.needed == RESERVE + needed_bytes(plan, model, (side, side))
        assert place == 0 and plan.enough, "24 GB are enough for all of it"
        least = choose_memory(0, model, size=(side, side))
        assert least.offload == "sequential" and not least.enough and least.vae_tiling == (model is SDXL)
        assert "a run may fail" in least.sentence and least.sentence.count("\n") == 0


def test_more_pictures_and_pixels_need_more_and_slices_and_tiles_less() -> None:
    plan = MemoryPlan("float16", device="cuda")
    one = needed_bytes(plan, SDXL, (1024, 1024))
    assert needed_bytes(plan, SDXL, (1024, 1024), 4) > one > needed_bytes(plan, SDXL, (512, 512))
    four = needed_bytes(plan, SDXL, (1024, 1024), 4)
    sliced = needed_bytes(replace(plan, vae_slicing=True), SDXL, (1024, 1024), 4)
    tiled = needed_bytes(replace(plan, vae_slicing=True, vae_tiling=True), SDXL, (1024, 1024), 4)
    assert tiled <= sliced < four
    enough = choose_memory(RESERVE + sliced, SDXL, size=(1024, 1024), images=4)
    assert enough.vae_slicing and not enough.vae_tiling and enough.offload == "none"
    assert needed_bytes(plan, replace(SDXL, checker=10**9)) - needed_bytes(plan, SDXL) == 2 * 10**9


def test_on_a_cpu_the_number_type_alone_is_chosen() -> None:
    plenty = choose_memory(64 * GB, SDXL, device="cpu", size=(1024, 1024), native_bf16=True)
    assert (plenty.dtype, plenty.offload, plenty.vae_tiling) == ("float32", "none", False)
    narrow = choose_memory(15 * GB, SDXL, device="cpu", size=(1024, 1024), native_bf16=True)
    assert narrow.dtype == "bfloat16" and narrow.enough and narrow.offload == "none"
    emulated = choose_memory(15 * GB, SDXL, device="cpu", size=(1024, 1024))
    assert emulated.dtype == "float32" and not emulated.enough and "in main memory" in emulated.sentence
    assert choose_memory(None, SDXL).offload == "none" and "is not known; float16" in choose_memory(None, SDXL).sentence
    assert choose_memory(2 * GB, SD15, offload="none").offload == "none", "as it was asked for"
    assert choose_memory(64 * GB, SD15, dtype="bfloat16").dtype == "bfloat16"
    for wrong in ({"dtype": "int8"}, {"offload": "some"}):
        with pytest.raises(ConfigError, match="must be one of"):
            choose_memory(GB, SD15, **wrong)


def test_the_documented_thresholds_are_those_of_the_code() -> None:
    """The table of docs/sd15-sdxl.md: least free memory for each plan."""
    text = (ROOT / "docs" / "sd15-sdxl.md").read_text(encoding="utf-8")
    for offload_, tiling, row in (
        ("none", False, "all on the GPU"),
        ("none", True, "all on the GPU, decoded in tiles"),
        ("model", False, "parts in turn"),
        ("sequential", True, "layer by layer, decoded in tiles"),
    ):
        plan = MemoryPlan("float16", offload_, tiling, tiling)
        least = [(RESERVE + needed_bytes(plan, model, (side, side))) / GB for model, side in SIZES.values()]
        assert f"| {row} | {least[0]:.1f} GB | {least[1]:.1f} GB |" in text, row


def test_free_main_memory_is_the_containers_where_it_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    assert free_main_memory(tmp_path) is None
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    5000 kB\n")
    assert free_main_memory(tmp_path) == 5000 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    for name, text in {"max": "max", "current": "3000000", "stat": "anon 1\ninactive_file 500000\n"}.items():
        (group / f"memory.{name}").write_text(text)
    assert free_main_memory(tmp_path) == 5000 * 1024
    (group / "memory.max").write_text("4000000\n")
    assert free_main_memory(tmp_path) == 1_500_000
    assert (free_main_memory() or 1) > 0


# ---- what is done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd15")
    save_tiny_sd15(folder)
    save_adapter(random_adapter(load_base("sd15", folder, "cpu")), folder / "adapter.safetensors")
    return folder


def picture(model: CustomContrast, cutout: Callable) -> np.ndarray:
    subject = model.subject(cutout(0), "bear")
    return model.generate(
        "a bear on the beach", subject, num_inference_steps=2, output_type="np", preview_every=1
    ).images


def on_plain_cpu(unet: nn.Module) -> None:
    """diffusers writes "cpu:0"; accelerate's hooks do not see that it is where the weights lie."""
    for hook in (hook for m in unet.modules() if (hook := getattr(m, "_hf_hook", None)) is not None):
        for each in getattr(hook, "hooks", [hook]):
            each.execution_device = torch.device("cpu")


@pytest.fixture(scope="module")
def plain(folder: Path, cutout: Callable) -> np.ndarray:
    return picture(CustomContrast.load("sd15", folder, device="cpu"), cutout)


@pytest.mark.parametrize("choice", OFFLOADS)
def test_every_plan_gives_the_same_picture(folder: Path, cutout: Callable, plain: np.ndarray, choice: str) -> None:
    model = CustomContrast.load("sd15", folder, device="cpu", memory=MemoryPlan(offload=choice, vae_slicing=True))
    assert model.memory.offload == choice and model.base.vae.use_slicing and not model.base.vae.use_tiling
    assert hasattr(model.base.unet, "_hf_hook") == (choice != "none")
    if choice == "sequential":
        on_plain_cpu(model.base.unet)
        assert {p.device.type for p in model.base.unet.parameters()} == {"meta"}
    assert np.array_equal(picture(model, cutout), plain)
    other = model.with_adapter(model.adapter)
    assert other.memory is model.memory and other._offloaded is model._offloaded


def test_parts_go_home_however_a_run_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CustomContrast.load("sd15", folder, device="cpu", memory=MemoryPlan(offload="model"))
    sent: list[str] = []
    for hook in model._offloaded._all_hooks:
        monkeypatch.setattr(hook, "offload", lambda hook=hook: sent.append(type(hook.model).__name__))
    stream = model.stream("a bear", num_inference_steps=3)
    next(stream)
    stream.close()
    assert sent == ["UNet2DConditionModel", "AutoencoderKL"]


def test_auto_plans_by_what_is_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CustomContrast.load("sd15", folder, device="cpu", memory="auto")
    assert model.memory.dtype == "float32" and not model.memory.vae_tiling and model.base.dtype == torch.float32
    size = offload.model_size(model.base, model.adapter)
    assert size.unet == sum(p.numel() for p in model.base.unet.parameters()) and size.text and size.vision
    assert size.adapter and size.contexts and not size.checker and not size.wide_vae
    monkeypatch.setattr(pipeline_module, "free_memory", lambda device: 10**6)
    monkeypatch.setattr(offload, "computes_bf16", lambda device: True)
    tight = CustomContrast.load("sd15", folder, device="cpu", memory="auto")
    assert tight.memory.dtype == "bfloat16" and tight.base.dtype == tight.base.unet.dtype == torch.bfloat16
    assert next(tight.adapter.parameters()).dtype == torch.bfloat16 and not tight.memory.enough
    kept = CustomContrast.load("sd15", folder, device="cpu", dtype=torch.float32, memory="auto")
    assert kept.base.dtype == torch.float32, "a type that was asked for stays"
    with pytest.raises(ConfigError, match="memory='much' must be one of auto, none, model, sequential"):
        CustomContrast.load("sd15", folder, device="cpu", memory="much")


def test_tiles_are_small_for_sdxl_too(tiny_xl_folder: Path) -> None:
    base = load_base("sdxl", tiny_xl_folder, "cpu")
    base.vae.tile_sample_min_size = 1024
    offload._set_decoder(base.vae, MemoryPlan(vae_tiling=True))
    assert base.vae.use_tiling and base.vae.tile_sample_min_size == TILE
    assert base.vae.tile_latent_min_size == TILE // base.scale_factor


def test_a_lent_gpu_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert offload.free_memory(torch.device("cuda")) is None and offload.free_memory(torch.device("meta")) is None


def test_threads_that_share_a_model_away_from_home_send_it_home_once() -> None:
    """Two users at once: it comes with the first and goes with the last."""

    class Travelling(nn.Linear):
        def to(self, device: torch.device) -> Travelling:
            went.append(device.type)
            return self

    went: list[str] = []
    model, inside, go = Travelling(2, 2), threading.Barrier(2, timeout=10), threading.Event()

    def use(last: bool) -> None:
        with on_device(torch.device("cuda"), model):
            inside.wait()
            if last:
                go.wait(10)

    threads = [threading.Thread(target=use, args=(last,)) for last in (False, True)]
    [thread.start() for thread in threads]
    threads[0].join(10)
    assert went == ["cuda"], "the other one still uses it"
    go.set()
    threads[1].join(10)
    assert went == ["cuda", "cpu"]


# ---- what is said where it does not fit


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError], ids=["MemoryError", "OutOfMemoryError"])
@pytest.mark.parametrize("where", ["UNet2DConditionModel.from_pretrained", "place"])
def test_a_model_that_does_not_fit_is_one_sentence(
    folder: Path, error: type, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its weights are read, and while it is moved: never “this file cannot be read”."""

    def full(*_: object, **__: object) -> None:
        raise error("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    if where == "place":
        monkeypatch.setattr(pipeline_module, "place", full)
    else:
        monkeypatch.setattr("customcontrast.base_model.UNet2DConditionModel.from_pretrained", full)
    with pytest.raises(BaseModelError) as caught:
        CustomContrast.load("sd15", folder, device="cpu", memory="auto")
    said = str(caught.value)
    assert "base 'sd15' does not fit into the memory of cpu (CUDA out of memory; " in said and "GB are free" in said
    assert "--memory auto" in said and "\n" not in said and "GPU 0" not in said
    assert caught.value.__context__ is None, "nothing keeps the half-loaded model"
