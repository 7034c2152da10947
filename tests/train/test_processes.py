"""Two gloo processes are one with the double batch: losses and gradients, sources, contrastive batch, validation."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from customcontrast.adapter import Adapter
from customcontrast.base_model import BaseModel
from tests.robustness.runs import ENCODER, mixed_run
from tests.support.processes import together
from train.adapter import losses
from train.adapter.adapter_config import AdapterTrainConfig
from train.adapter.losses import Losses
from train.adapter.step import AdapterLoss, Noise
from train.adapter.train import batches_from, train
from train.data.frozen_features import with_features
from train.data.sources import make_source

pytestmark = pytest.mark.distributed
BATCH, PAIRS = 4, 6  # of all processes together


@pytest.fixture(scope="module")
def settings(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AdapterTrainConfig:
    """Two weighted sets and a contrastive batch; nothing is dropped, since L_loc is a mean over what is not."""
    config = mixed_run(tiny_folder, tmp_path_factory.mktemp("sets"), steps=2, save_every=1)
    config = replace(config, data=replace(config.data, drop=0.0, holdout=0.3))
    return shared_out(config, 1)


def shared_out(config: AdapterTrainConfig, world: int) -> AdapterTrainConfig:
    """The same batch in all, as one of `world` processes is told it."""
    optim, loss = replace(config.optim, batch=BATCH // world), replace(config.loss, contrast_batch=PAIRS // world)
    return replace(config, optim=optim, loss=loss)


def mean(x: torch.Tensor) -> torch.Tensor:
    """Over the processes."""
    if dist.is_initialized():
        dist.all_reduce(x)
        x /= dist.get_world_size()
    return x


def one_step(settings: AdapterTrainConfig, base: BaseModel, out: Path) -> None:
    """Eq. 9 and its gradient of step 3 of a run, on however many processes there are."""
    accelerator = Accelerator(cpu=True)
    world, rank = accelerator.num_processes, accelerator.process_index
    config = shared_out(settings, world)
    config = replace(config, optim=replace(config.optim, steps=4))
    batch = with_features(base, next(batches_from(config, make_source(config.data, base, False), 3, accelerator)))
    assert (len(batch), len(batch.contrast)) == (BATCH // world, PAIRS // world)
    whole = Noise.draw((BATCH, *batch.latents.shape[1:]), 1000, (0, 0), base.device, PAIRS)
    rows, pairs = (slice(rank * n // world, (rank + 1) * n // world) for n in (BATCH, PAIRS))
    torch.manual_seed(0)
    model = accelerator.prepare(AdapterLoss(base, Adapter.create(base, **ENCODER), config.loss))
    found = model(batch, Noise(whole.t[rows], whole.epsilon[rows], whole.t_pairs[pairs]))
    accelerator.backward(found.total)
    tensors = {name: mean(getattr(found, name).detach().clone()) for name in Losses.__dataclass_fields__}
    tensors |= {f"gradient {name}": p.grad for name, p in accelerator.unwrap_model(model).named_parameters()}
    if rank == 0:
        save_file({name: x.contiguous() for name, x in tensors.items()}, out)
    accelerator.end_training()


def test_two_processes_have_the_losses_and_the_gradient_of_one(
    settings: AdapterTrainConfig, tiny_base: BaseModel, tmp_path: Path
) -> None:
    """Each draws its part of both sets and of the pairs; Eq. 4 and 7 see the negatives of both."""
    one_step(settings, tiny_base, tmp_path / "one.safetensors")
    together(one_step, settings, tiny_base, tmp_path / "two.safetensors", folder=tmp_path)
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(one[name] != 0 for name in ("diffusion", "cscl", "macl", "location"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5)
    assert two["macl"] == pytest.approx(float(one["macl"]), rel=1e-5)


def contrastive(out: Path) -> None:
    """Eq. 4 and 7 of eight samples, of which two subjects occur twice."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if world > 1 else 0
    g = torch.Generator().manual_seed(0)
    x, y, w = (torch.randn(8, 6, generator=g) for _ in range(3))
    e, ids = torch.randn(8, 5, generator=g) + 0.7, torch.tensor([0, 1, 2, 3, 1, 4, 5, 0])
    weight = torch.randn(6, 12, generator=g).requires_grad_()  # the shared parameters
    rows = slice(rank * 8 // world, (rank + 1) * 8 // world)
    s, p = ((z[rows] @ weight).view(-1, 2, 2, 3) for z in (x, y))
    S = losses.appearance_similarity(e[rows])
    loss = losses.macl_loss(s, p, S, ids[rows], 0.2) + losses.cscl_loss(w[rows] @ weight, s.flatten(1), ids[rows], 0.2)
    loss.backward()
    value, grad = mean(loss.detach().clone()), mean(weight.grad.clone())  # what DistributedDataParallel does
    if rank == 0:
        save_file({"loss": value, "gradient": grad}, out)


def over_gloo(out: Path) -> None:
    dist.init_process_group("gloo")
    contrastive(out)
    dist.destroy_process_group()


def test_subjects_that_two_processes_share_are_no_negatives(tmp_path: Path) -> None:
    contrastive(tmp_path / "one.safetensors")
    together(over_gloo, tmp_path / "two.safetensors", folder=tmp_path)
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two["loss"], one["loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(two["gradient"], one["gradient"], rtol=1e-4, atol=1e-6)


# ---- whole runs


def history(output: Path) -> dict[int, dict[str, float]]:
    return {line["step"]: line for line in map(json.loads, (output / "log.jsonl").read_text().splitlines())}


def run(config: AdapterTrainConfig, output: Path) -> None:
    train(config, output, cpu=True)


@pytest.fixture(scope="module")
def whole(settings: AdapterTrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes for two steps, each with the whole adapter."""
    output = tmp_path_factory.mktemp("ddp")
    together(run, shared_out(settings, 2), output, folder=output)
    return output


def test_two_processes_train_one_adapter(settings: AdapterTrainConfig, whole: Path) -> None:
    lines = history(whole)
    assert set(lines) == {1, 2} and (whole / "adapter.safetensors").is_file()
    # 6 subjects in one batch of all processes: MACL sees 5 negatives, not 2; at the start all cosines are alike
    assert lines[1]["cscl"] > 1.5


def test_slices_train_as_the_whole(settings: AdapterTrainConfig, whole: Path, tmp_path: Path) -> None:
    """FSDP2 against DDP: the same losses and weights; and it goes on from DDP's checkpoint."""
    config = shared_out(settings, 2)
    sliced = replace(config, optim=replace(config.optim, sharding="full"))
    together(run, sliced, tmp_path / "sliced", folder=tmp_path)
    expected, lines = history(whole), history(tmp_path / "sliced")
    assert [lines[i]["total"] for i in (1, 2)] == pytest.approx([expected[i]["total"] for i in (1, 2)], rel=1e-5)
    assert lines[2]["gradient"] == pytest.approx(expected[2]["gradient"], rel=1e-4)
    a, b = (load_file(place / "checkpoints" / "step-0000002.safetensors") for place in (whole, tmp_path / "sliced"))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(b[name], a[name], atol=1e-5, rtol=1e-3)
    again = shutil.copytree(whole, tmp_path / "again")
    together(run, replace(sliced, optim=replace(sliced.optim, steps=3)), again, folder=tmp_path)
    assert set(history(again)) == {1, 2, 3}


def test_validation_of_two_processes_is_that_of_one(settings: AdapterTrainConfig, tmp_path: Path) -> None:
    """Weights that do not move are the same in both, so the held-out subjects' numbers must be; the other waits."""
    log = replace(settings.log, validate_every=1, validate_subjects=1, validate_steps=1, validate_samples=2)
    optim = replace(settings.optim, steps=1, learning_rate=0.0)
    config = replace(settings, log=log, optim=optim)
    run(config, tmp_path / "one")
    together(run, shared_out(config, 2), tmp_path / "two", folder=tmp_path)
    one, two = (
        json.loads((tmp_path / name / "validation" / "metrics.jsonl").read_text().splitlines()[0])
        for name in ("one", "two")
    )
    # the samples' losses are of batches of another size, and so of other noise
    assert {k: one[k] for k in ("step", "R-CI", "E-CI")} == {k: two[k] for k in ("step", "R-CI", "E-CI")}
    assert two.keys() == one.keys() and two["diffusion"] > 0
