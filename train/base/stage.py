"""What every stage of the base's training shares: one optimisation loop that stops and resumes exactly."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from train.base.base_config import StageConfig
from train.common.checkpoint import read_checkpoint, read_metadata, restore, run_tensors, write_checkpoint
from train.common.ema import EMA
from train.common.log import append_line
from train.common.schedule import Schedule
from train.common.signals import StopSignal

Model = TypeVar("Model", bound=nn.Module)


class Stage(Generic[Model]):
    """One model being trained: `run(loss_at)` steps it to `config.steps`, saving as it goes.

    Checkpoints are one safetensors file: weights, EMA, both AdamW moments, and the step in its metadata. All
    randomness of a step comes from `generator(step)`, so a resumed run sees the same data and noise as an
    unbroken one.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        config: StageConfig,
        folder: Path,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.name, self.model, self.config, self.seed = name, model, config, seed
        self.path = folder / f"{name}.safetensors"
        self.log_path = folder / f"{name}.jsonl"
        self.device = torch.device(device)
        self.parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        self.ema = EMA(model, config.ema)
        self.schedule = Schedule(config.lr, config.steps, config.warmup, "linear", decay=config.decay)
        self.step, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._load()

    def generator(self, step: int) -> torch.Generator:
        """CPU generator of this step's data, noise and drops."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)

    def run(
        self,
        loss_at: Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]],
        minutes: float | None = None,
        save_every: float = 120.0,
        on_save: Callable[[], None] | None = None,
    ) -> bool:
        """Train until `config.steps`, or for `minutes`, or until SIGTERM; returns whether the stage is finished.

        Raises:
            FloatingPointError: the loss is not finite; the message names the stage, the step and the terms.
        """
        stop = StopSignal()
        start = saved = time.monotonic()
        mean: dict[str, float] = {}
        while self.step < self.config.steps and not stop.requested:
            began = time.monotonic()
            if minutes is not None and began - start > 60 * minutes:
                break
            terms = self._update(loss_at)
            self.seconds += time.monotonic() - began
            for k, v in terms.items():
                mean[k] = 0.98 * mean.get(k, v) + 0.02 * v
            if self.step % 50 == 0:
                self._log(mean)
            if time.monotonic() - saved > save_every:
                self.save()
                saved = time.monotonic()
                if on_save:
                    on_save()
        self._log(mean)
        self.save()
        stop.restore()
        return self.step >= self.config.steps

    def _update(self, loss_at: Callable) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.step)
        loss, terms = loss_at(self.step, self.generator(self.step))
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{self.name}: loss is {loss.item()} at step {self.step} (terms {terms}); "
                f"resume from {self.path.name} with a lower lr"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm)
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.model, self.step)
        return {"loss": loss.item(), "grad": norm.item(), **terms}

    def _log(self, mean: dict[str, float]) -> None:
        line = {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "lr": self.schedule.rate(self.step),
        }
        line |= {k: round(v, 5) for k, v in mean.items()}
        append_line(self.log_path, line)
        print(self.name, line, flush=True)

    def save(self) -> None:
        """Write the checkpoint beside itself, then rename: a kill leaves the last good one."""
        tensors = run_tensors(self.model, self.ema.weights, self.optimizer, self.parameters.items())
        write_checkpoint(self.path, tensors, {"step": self.step, "seconds": self.seconds})

    def _load(self) -> None:
        _, tensors = read_checkpoint(self.path)
        self.step, self.seconds = checkpoint_step(self.path)
        restore(tensors, self.model, self.ema.weights, self.optimizer, self.parameters.items(), self.step)

    def load_ema(self) -> Model:
        """Put the averaged weights into the model (for export) and return it."""
        self.model.load_state_dict(self.ema.weights, strict=False)
        return self.model


def checkpoint_step(path: Path) -> tuple[int, float]:
    """(step, training seconds) of a checkpoint without reading its tensors."""
    about = read_metadata(path)
    return int(about["step"]), float(about["seconds"])


def start_from(model: nn.Module, checkpoint: Path) -> int:
    """Copy the averaged weights of an earlier checkpoint wherever name and shape agree.

    For a denoiser on new latents these are all but its first and last layer; for a CLIP all but new heads. Returns
    the number of tensors copied.
    """
    own, taken = model.state_dict(), 0
    for name, value in load_file(checkpoint).items():
        name = name.removeprefix("ema.") if name.startswith("ema.") else ""
        if name in own and own[name].shape == value.shape:
            own[name].copy_(value)
            taken += 1
    return taken
