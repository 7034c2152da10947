"""Where in the diffusion an adapter helps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from customcontrast.adapter import Adapter
from customcontrast.adapter_files import save_adapter
from customcontrast.base_model import BaseModel
from tests.robustness.runs import ENCODER
from tests.support.tiny_models import random_adapter
from train.adapter.adapter_config import LossConfig
from train.adapter.step import AdapterLoss, Noise
from train.data.frozen_features import with_features
from train.data.samples import collate
from train.evaluation import timesteps
from train.evaluation.evaluate import main


@pytest.fixture(scope="module")
def samples(tiny_base: BaseModel) -> list:
    config = timesteps.TimestepsConfig(base="toyland", world="small", count=3)
    return timesteps.held_out(config, tiny_base)


def test_a_silent_visual_branch_changes_nothing_and_a_loud_one_does(tiny_base: BaseModel, samples: list) -> None:
    """With W'_v = 0, λ = 0 is λ = 1; the noun alone does not depend on the adapter at all."""
    silent = Adapter.create(tiny_base, **ENCODER)
    for weight in silent.attention.to_v.parameters():
        torch.nn.init.zeros_(weight)
    fresh = timesteps.measure(tiny_base, silent, samples, (200, 900))
    loud = timesteps.measure(tiny_base, random_adapter(tiny_base), samples, (200, 900))
    for t in (200, 900):
        assert len(fresh["own"][t]) == 3 and all(torch.isfinite(torch.tensor(fresh["own"][t])))
        assert fresh["own"][t] == pytest.approx(fresh["λ = 0"][t], rel=1e-3)
        assert fresh["no S*"][t] == pytest.approx(fresh["noun alone"][t], rel=1e-3)
        assert loud["own"][t] != pytest.approx(loud["λ = 0"][t], rel=1e-3)
        assert loud["own"][t] != pytest.approx(loud["another's"][t], rel=1e-4)
        assert loud["noun alone"][t] == pytest.approx(fresh["noun alone"][t], rel=1e-3)


def test_the_error_is_of_the_mask_alone(tiny_base: BaseModel, samples: list) -> None:
    model = AdapterLoss(tiny_base, random_adapter(tiny_base), LossConfig(lambda_2=0.0))
    batch = with_features(tiny_base, collate(samples))
    noise = Noise.draw(batch.latents.shape, 1000, (0,), tiny_base.device)
    with torch.no_grad():
        made = model.denoise(batch, noise)
    whole = (made.prediction - made.target).square().mean((1, 2, 3))
    everything = replace(batch, masks=torch.ones_like(batch.masks))
    torch.testing.assert_close(timesteps.masked_errors(model, everything, noise), whole)
    assert not torch.allclose(timesteps.masked_errors(model, batch, noise), whole)


def test_the_command_writes_a_table(tiny_folder: Path, tiny_base: BaseModel, tmp_path: Path, capsys) -> None:
    save_adapter(random_adapter(tiny_base), tmp_path / "adapter.safetensors")
    told = f"--base toyland --weights {tiny_folder} --adapter {tmp_path}/adapter.safetensors --world small --count 2"
    assert main(["timesteps", *told.split(), "--timesteps", "500", "--out", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    assert table.strip() == (tmp_path / "out" / "table.md").read_text().strip()
    assert "| 500 |" in table and "gain over another's" in table
    for wrong, named in (("--count 1", "--count 1"), ("--timesteps 1000", "--timesteps 1000")):
        assert main(["timesteps", *wrong.split()]) == 2
        assert named in capsys.readouterr().err
