"""What the tests of training share: the options of a small run of several methods."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

from train.adapter.adapter_config import AdapterTrainConfig, DataConfig, LogConfig, OptimConfig
from train.evaluation import evaluate, readers

ENCODER = {"width": 32, "heads": 2, "depth": 1, "visual_queries": 5, "text_queries": 3, "fourier_bands": 3}


@pytest.fixture
def small_run(headed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a small run of the ablation or the baselines on the tiny base; its output lies in tmp_path."""
    monkeypatch.setattr(evaluate, "DISTRACTORS", 2)
    AcceleratorState._reset_state(reset_partial_state=True)
    judge = readers.Readers().eval()
    judge.quality = {"mask_iou": 0.0}
    readers.save_readers(judge, tmp_path / "readers.safetensors", "small")
    data = DataConfig(path=str(tmp_path / "pool"), size=64, reference_size=48, subjects=3, targets=1, references=2)
    config = AdapterTrainConfig(
        weights=str(headed_folder),
        encoder=ENCODER,
        data=data,
        optim=OptimConfig(steps=9, batch=2),
        log=LogConfig(every=1),
    )
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.to_dict()))
    files = ["--config", "c.yaml", "--readers", "readers.safetensors", "--out", "out"]
    named = [part if part.startswith("--") else str(tmp_path / part) for part in files]
    return [*named, "--steps", "1", "--limit", "1", "--cpu", "--denoising", "2"]
