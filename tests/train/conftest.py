"""Fixtures of the training's tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState
from PIL import Image

from customcontrast.segmentation import Segmentation
from tests.robustness.runs import ENCODER
from train.adapter.adapter_config import AdapterTrainConfig, DataConfig, LogConfig, OptimConfig
from train.evaluation import evaluate, readers


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """accelerate keeps one state per process; each run of a test gets its own."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def reference() -> Segmentation:
    """A square subject of noise in a picture of it."""
    rng = np.random.default_rng(0)
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    picture = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    return Segmentation(image=picture, mask=mask, score=1.0, method="exact")


@pytest.fixture
def experiment(
    headed_folder: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Options that `ablation` and `baselines` share, for the least of both: encoders of one step on a pool of three
    subjects, one subject of the benchmark among two others, pictures of two steps, all under tmp_path / "out"."""
    monkeypatch.setattr(evaluate, "DISTRACTORS", 2)
    folder = tmp_path_factory.getbasetemp() / "experiment"  # whoever comes second finds the pool
    folder.mkdir(exist_ok=True)
    config = AdapterTrainConfig(
        weights=str(headed_folder),
        encoder=ENCODER,
        data=DataConfig(path=str(folder / "pool"), size=64, reference_size=48, subjects=3, targets=1, references=2),
        optim=OptimConfig(batch=2),
        log=LogConfig(every=1),
    )
    judge = readers.Readers().eval()
    judge.quality = {"mask_iou": 0.0}
    readers.save_readers(judge, folder / "readers.safetensors", "small")
    (folder / "c.yaml").write_text(yaml.safe_dump(config.to_dict()))
    told = f"--config {folder}/c.yaml --steps 1 --limit 1 --cpu --denoising 2 --readers {folder}/readers.safetensors"
    return [*told.split(), "--out", str(tmp_path / "out")]
