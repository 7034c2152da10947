"""What a training run carries from step to step, and its checkpoints: weights, EMA, both AdamW moments, the step.

There is nothing else to carry: the data, the noise and the learning rate are functions of (seed, step). (With fp16 the
loss scale is found anew after a resume; bf16 and float32 go on exactly.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from customcontrast.adapter import Adapter
from customcontrast.errors import ResumeError
from train.adapter.adapter_config import AdapterTrainConfig, OptimConfig
from train.common.checkpoint import read_checkpoint, restore, run_tensors, write_checkpoint
from train.common.ema import EMA
from train.common.schedule import Schedule
from train.common.sharding import whole

NAME = re.compile(r"step-(\d+)\.safetensors")
MANY = 6  # changed settings that are named
FREE = {
    "log",
    "optim.steps",
    "optim.sharding",
    "optim.timeout_minutes",
    "data.workers",
    "data.cache",
    "data.path",
    "weights",
    "image_encoder",
}  # may change when a run goes on


def schedule(optim: OptimConfig) -> Schedule:
    """The learning rate of a run: a linear warm-up, then constant or a cosine."""
    return Schedule(optim.learning_rate, optim.steps, optim.warmup, optim.schedule, optim.final)


def make_optimizer(adapter: Adapter, optim: OptimConfig) -> AdamW:
    """AdamW over the adapter; weight decay on matrices only, not on norms, biases and null keys.

    On a CPU in its fused form: the same up to rounding in a third of the time.
    """
    decayed = [p for p in adapter.parameters() if p.ndim >= 2]
    plain = [p for p in adapter.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    fused = all(p.device.type == "cpu" and not isinstance(p, DTensor) for p in adapter.parameters()) or None
    return AdamW(groups, lr=optim.learning_rate, betas=(optim.beta_1, optim.beta_2), fused=fused)


def averaged(ema: EMA, adapter: Adapter) -> Adapter:
    """A frozen copy of `adapter` with the averaged weights: what is exported and validated.

    Where they are sliced, every process must call this at once.
    """
    weights = {name: whole(w) for name, w in ema.weights.items()}
    copy = adapter.alike()
    copy.load_state_dict(adapter.state_dict() | weights)
    copy.to(next(iter(weights.values())).device)
    return copy.requires_grad_(False).eval()


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    step: int = 0  # optimiser steps done
    seconds: float = 0.0  # training time so far, all sessions
    processes: int = 1  # how many trained together; another number would see another sequence of batches


def save(
    folder: Path,
    adapter: Adapter,
    ema: EMA,
    optimizer: AdamW,
    progress: Progress,
    config: AdapterTrainConfig,
    keep: int,
    main: bool = True,
) -> Path:
    """Write folder/step-N.safetensors beside itself, then rename; keep the newest `keep`.

    The main process writes. Where the adapter is sliced, the others must call this at once, to give their slices.
    """
    tensors = run_tensors(adapter, ema.weights, optimizer, adapter.named_parameters())
    metadata = asdict(progress) | {"config": config.to_dict()}
    path = folder / f"step-{progress.step:07d}.safetensors"
    if not main:
        return path
    try:
        write_checkpoint(path, tensors, metadata)
    except (SafetensorError, OSError) as error:
        raise OSError(
            f"checkpoint {path} could not be written ({error}); the one before it is whole: make room, "
            "then run the same command again"
        ) from error
    for old in checkpoints(folder)[: -max(1, keep)]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    named = ((NAME.fullmatch(path.name), path) for path in folder.glob("step-*.safetensors"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def find(folder: Path, resume: str) -> Path | None:
    """The checkpoint that `resume` names: "latest" (None if there is none), "none", or a file.

    Raises ResumeError for a missing file, or for "none" where a run already is.
    """
    present = checkpoints(folder)
    if resume == "latest":
        return present[-1] if present else None
    if resume == "none":
        if present:
            raise ResumeError(f"--resume none, but {folder} holds a run; choose another --output or --resume latest")
        return None
    if not Path(resume).is_file():
        raise ResumeError(f"--resume {resume!r} is not a file; use latest, none, or a step-*.safetensors file")
    return Path(resume)


def load(
    path: Path, adapter: Adapter, ema: EMA, optimizer: AdamW, config: AdapterTrainConfig, processes: int = 1
) -> Progress:
    """Put a checkpoint back. Raises ResumeError when it is damaged or belongs to a run with other settings."""
    try:
        about, tensors = read_checkpoint(path)
    except (SafetensorError, OSError, ValueError, AttributeError, RecursionError) as error:
        raise ResumeError(f"{path} cannot be read ({error}); delete it to go on from the one before") from error
    damage = next(_damaged(about, tensors, adapter), "")
    known = isinstance(about.get("config"), dict)
    changed = (
        []
        if not known
        else differences(
            _completed(about["config"]) | {"processes": about.get("processes")},
            config.to_dict() | {"processes": processes},
        )
    )
    if changed:
        more = f"; and {len(changed) - MANY} more" if len(changed) > MANY else ""
        named = "; ".join(changed[:MANY])
        raise ResumeError(f"{path} was trained with other settings ({named}{more}); choose another --output")
    if damage:
        raise ResumeError(f"{path} is damaged ({damage!r}); delete it to go on from the one before")
    restore(tensors, adapter, ema.weights, optimizer, adapter.named_parameters(), about["step"])
    return Progress(about["step"], about["seconds"], processes)


def _damaged(about: dict[str, Any], tensors: dict[str, Tensor], adapter: Adapter) -> Iterator[str]:
    """What is missing, or of another kind than `save` writes it for this adapter: the header's fields, then weights."""
    kinds = {"config": dict, "step": int, "seconds": int | float, "processes": int}
    yield from (name for name, kind in kinds.items() if not isinstance(about.get(name), kind))
    yield from (name for name in ("step", "seconds") if not about[name] >= 0)
    shapes = {f"weights.{name}": value.shape for name, value in adapter.state_dict().items()}
    shapes |= {f"ema.{name}": value.shape for name, value in adapter.named_parameters()}
    yield from (name for name, shape in shapes.items() if name not in tensors or tensors[name].shape != shape)
    yield from (name for name in tensors if name.startswith("weights.") and name not in shapes)


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with the defaults of settings that are younger than it."""
    whole = AdapterTrainConfig().to_dict()
    for name, value in config.items():
        both = isinstance(value, dict) and isinstance(whole.get(name), dict)
        whole[name] = whole[name] | value if both else value
    return whole


def differences(old: dict[str, Any], new: dict[str, Any], where: str = "") -> list[str]:
    """Settings that differ and may not: "optim.batch 4 → 8"."""
    found = []
    for key in sorted(set(old) | set(new)):
        name = f"{where}{key}"
        a, b = old.get(key), new.get(key)
        if name == "data.sources":  # another machine keeps the same sets elsewhere
            a, b = ([{k: v for k, v in part.items() if k != "path"} for part in parts or []] for parts in (a, b))
        if name == "init":  # another place of the file, which is not read again
            a, b = (a and "an IP-Adapter", b and "an IP-Adapter")
        if name in FREE or a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{name}.")
        else:
            found.append(f"{name} {a!r} → {b!r}")
    return found
