"""What only a GPU can show: Eq. 3 in 16 bits, whole pictures, training steps, models that rest on the CPU.

Skipped where there is no GPU; CUSTOMCONTRAST_TEST_DEVICE=cpu runs the same on a CPU, which shows that the tests work.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from customcontrast.adapter import Adapter
from customcontrast.adapter_files import load_adapter
from customcontrast.base_model import BaseModel, load_base
from customcontrast.integrations.diffusers_pipeline import CustomContrastPipeline
from customcontrast.pipeline import CustomContrast
from tests.gpu.first_run import random_batch
from tests.support.tiny_models import random_adapter
from train.adapter.adapter_config import AdapterTrainConfig, DataConfig, LogConfig, LossConfig, OptimConfig
from train.adapter.frozen_base import make_ready
from train.adapter.step import AdapterLoss, Noise
from train.adapter.train import train
from train.data.frozen_features import with_features

DEVICE = os.environ.get("CUSTOMCONTRAST_TEST_DEVICE", "cuda")
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
ENCODER = {"width": 32, "heads": 2, "depth": 1, "visual_queries": 5, "text_queries": 3, "fourier_bands": 3}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU here"),
]


def picture(base: BaseModel, cutout: object, steps: int = 3) -> torch.Tensor:
    """A generated picture of a random adapter, (H, W, 3) in 0 … 255, and its location masks' mean."""
    custom = CustomContrast.from_parts(base, random_adapter(base).to(base.device, base.dtype))
    subject = custom.subject(cutout, "bear")
    result = custom.generate("a <bear> on the beach", subject, seed=0, num_inference_steps=steps)
    assert result.location_masks.shape[1] == steps
    pixels = torch.tensor(list(result.images[0].convert("RGB").tobytes()), dtype=torch.float32)
    assert torch.isfinite(pixels).all() and pixels.std() > 0
    return pixels


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["toyland", "sdxl"])
def test_pictures_in_16_bits_are_those_of_float32(
    kind: str, name: str, tiny_folder: Path, tiny_xl_folder: Path, cutout
) -> None:
    """Attention, location masks and the whole loop: 16 bits on the device against float32 on the CPU."""
    folder = tiny_folder if name == "toyland" else tiny_xl_folder
    exact = picture(load_base(name, weights=folder, device="cpu"), cutout(0))
    fast = picture(load_base(name, weights=folder, device=DEVICE, dtype=TYPES[kind]), cutout(0))
    assert (exact - fast).abs().mean() < (4 if kind == "float16" else 16)  # grey levels of 255


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_training_steps_are_finite_and_move_the_adapter(precision: str, tiny_folder: Path, tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    config = AdapterTrainConfig(
        weights=str(tiny_folder),
        encoder=ENCODER,
        data=DataConfig(path=str(tmp_path / "pool"), size=64, reference_size=48, subjects=6, targets=2, references=2),
        loss=LossConfig(contrast_batch=4),
        optim=OptimConfig(
            steps=3, batch=2, learning_rate=1e-3, warmup=0, mixed_precision=precision, gradient_checkpointing=True
        ),
        log=LogConfig(every=1, validate_every=3, validate_subjects=1, validate_steps=2, save_every=100),
    )
    if DEVICE == "cpu" and precision == "fp16":
        config = replace(config, optim=replace(config.optim, mixed_precision="no"))  # accelerate refuses it there
    assert train(config, tmp_path / "run", cpu=DEVICE == "cpu").step == 3
    base = load_base("toyland", weights=tiny_folder, device=DEVICE)
    adapter = load_adapter(tmp_path / "run" / "adapter.safetensors", base)
    assert all(torch.isfinite(p).all() for p in adapter.parameters())
    assert any(linear.weight.abs().max() > 0 for linear in adapter.attention.to_v)


def test_nobody_waits_for_the_gpu_within_a_step(tiny_folder: Path) -> None:
    """From a pinned batch to the gradients, the second time: what is made once for a run may wait."""
    base = load_base("toyland", weights=tiny_folder, device=DEVICE)
    make_ready(base, gradient_checkpointing=False)
    config = AdapterTrainConfig(loss=LossConfig(contrast_batch=2), data=DataConfig(size=64), optim=OptimConfig(batch=2))
    model = AdapterLoss(base, Adapter.create(base, **ENCODER), config.loss)
    batch = random_batch(base, config)
    batch = batch.pin_memory() if DEVICE == "cuda" else batch
    for strict in (False, True):
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("error" if strict else "default")
        try:
            ready = with_features(base, batch)
            found = model(ready, Noise.draw(ready.latents.shape, 1000, (0, 0), base.device, pairs=2))
            found.total.backward()
        finally:
            if DEVICE == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(found.total)
    assert all(torch.isfinite(p.grad).all() for p in model.adapter.parameters() if p.grad is not None)


def test_models_that_rest_on_the_cpu_make_the_same_picture(tiny_folder: Path, cutout) -> None:
    """diffusers' model offload: the parts come to the device when they are needed."""
    base = load_base("toyland", weights=tiny_folder, device="cpu", dtype=torch.float32)

    def run(offload: bool) -> np.ndarray:
        pipe = CustomContrastPipeline.from_parts(base, random_adapter(base))
        pipe.set_progress_bar_config(disable=True)
        if offload:
            pipe.enable_model_cpu_offload(device=DEVICE)
        else:
            pipe.to(DEVICE)
        subject = pipe.subject(cutout(0), "bear")
        return pipe("a <bear> on the beach", subject, num_inference_steps=2, seed=0, output_type="np").images

    assert np.abs(run(True) - run(False)).max() < 2e-2
