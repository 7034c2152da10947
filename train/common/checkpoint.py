"""Checkpoints of a training run, base or adapter: weights, their average, both AdamW moments, the step.

Nothing else is needed to resume: the data, the noise and the learning rate are functions of (seed, step). One
safetensors file with the tensors `weights.*`, `ema.*`, `exp_avg.*`, `exp_avg_sq.*` and JSON metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from customcontrast.tensor_files import remove_parts, write_tensors
from train.common.sharding import like, whole

MOMENTS = ("exp_avg", "exp_avg_sq")


def run_tensors(
    model: nn.Module, ema: Mapping[str, Tensor], optimizer: Optimizer, trained: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    """All tensors of a checkpoint, on the CPU. Where parameters are sliced, every process must call this at once."""
    tensors = {f"weights.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in ema.items()}
    for name, p in trained:
        state = optimizer.state.get(p, {})
        tensors |= {f"{moment}.{name}": state[moment] for moment in MOMENTS if moment in state}
    # `clone` also unties weights that share storage, which safetensors refuses
    return {name: whole(tensor.detach()).cpu().clone().contiguous() for name, tensor in tensors.items()}


def write_checkpoint(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a checkpoint beside `path`, then rename: after a kill the previous one is whole. Raises OSError.

    A run has one writer, so what another process left half-written of this checkpoint is of one that was killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_parts(path.parent, stem=path.stem)
    write_tensors(tensors, path, {key: json.dumps(value) for key, value in metadata.items()})


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a checkpoint, without its tensors."""
    with safe_open(path, "pt") as file:
        return {key: json.loads(value) for key, value in (file.metadata() or {}).items()}


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint: (metadata, tensors on the CPU)."""
    with safe_open(path, "pt") as file:
        about = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
        return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


@torch.no_grad()
def restore(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    ema: dict[str, Tensor],
    optimizer: Optimizer,
    trained: Iterable[tuple[str, nn.Parameter]],
    step: int,
) -> None:
    """Load the tensors of a checkpoint into model, averages and optimiser, in place.

    trained: the optimiser's parameters by name. step: number of optimiser steps so far. A parameter without an average
    in the file takes its weight for it.
    """
    for name, value in model.state_dict().items():
        value.copy_(like(tensors[f"weights.{name}"], value))
    for name, p in trained:
        ema[name].copy_(like(tensors.get(f"ema.{name}", tensors[f"weights.{name}"]), p))
        if f"{MOMENTS[0]}.{name}" in tensors:
            moments = {moment: like(tensors[f"{moment}.{name}"], p) for moment in MOMENTS}
            optimizer.state[p] = {"step": torch.tensor(float(step)), **moments}
