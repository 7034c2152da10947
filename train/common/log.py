"""The log and the clock of a training run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import is_wandb_available
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from customcontrast.errors import ConfigError
from customcontrast.folders import make_folder


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append one JSON object to a log, as a line."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


class Timer:
    """Training time over all sessions, the limit of this one, and how long the loop waited for data."""

    def __init__(self, before: float = 0.0, minutes: float | None = None) -> None:
        self.before, self.minutes = before, minutes
        self.start = time.monotonic()
        self.waited = 0.0
        self.out = 0.0

    @property
    def here(self) -> float:
        """Seconds of this session, without pauses."""
        return time.monotonic() - self.start - self.out

    @property
    def total(self) -> float:
        """Seconds of all sessions."""
        return self.before + self.here

    @property
    def up(self) -> bool:
        """Whether this session's minutes are used up; pauses count."""
        return self.minutes is not None and time.monotonic() - self.start > 60 * self.minutes

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of this block as waiting for data."""
        begun = time.monotonic()
        yield
        self.waited += time.monotonic() - begun

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count the time of this block as a pause, not as training."""
        begun = time.monotonic()
        yield
        self.out += time.monotonic() - begun


class WandB:
    """Weights & Biases through accelerate's tracker; a resumed run has the same id."""

    def __init__(self, accelerator: Accelerator, output: Path, config: dict[str, object]) -> None:
        """Raises ConfigError where wandb is not installed. The accelerator must be made with log_with="wandb"."""
        if not is_wandb_available():
            raise ConfigError("log.wandb is on, but wandb is not installed; pip install wandb, or set log.wandb=false")
        output.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:12]
        about = {"dir": str(output), "name": output.name, "id": key, "resume": "allow"}
        accelerator.init_trackers("customcontrast", config, {"wandb": about})
        self.tracker = accelerator.get_tracker("wandb")  # does nothing on other processes than the main one

    def values(self, line: dict[str, float], step: int) -> None:
        """Log the numbers of one step."""
        self.tracker.log(line, step=step)

    def picture(self, image: Image.Image, step: int) -> None:
        """Log a validation strip."""
        self.tracker.log_images({"validation": [np.asarray(image)]}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self.tracker.finish()


class Log:
    """Writes log.jsonl, TensorBoard and one line on the terminal every `every` steps.

    active: whether this process writes (the main one alone). wandb: another place for numbers and strips, or None.
    """

    def __init__(self, output: Path, every: int, active: bool, wandb: WandB | None = None) -> None:
        self.output, self.every, self.active, self.wandb = output, every, active, wandb
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.mark: tuple[float, float] = (0.0, 0.0)
        self.board: SummaryWriter | None = None
        if active:
            make_folder(output, "--output")
            self.board = SummaryWriter(str(output / "tensorboard"))

    def add(
        self, step: int, losses: Mapping[str, Tensor], norm: Tensor | float, rate: float, timer: Timer, samples: int
    ) -> None:
        """Add one optimiser step of `samples` samples; norm is the gradient's before clipping."""
        if not self.active:
            return
        values = {name: value.detach() for name, value in losses.items()}
        values["gradient"] = torch.as_tensor(norm, dtype=torch.float32).detach()
        for name, value in values.items():  # as tensors: no wait for a GPU between lines
            self.sums[name] = self.sums.get(name, 0.0) + value.float()
        self.count += 1
        if step % self.every == 0:
            self.write(step, rate, timer, samples)

    def write(self, step: int, rate: float, timer: Timer, samples: int) -> None:
        """Write one line: means over the steps since the last one."""
        if self.board is None or not self.count:
            return
        seconds, waited = timer.here - self.mark[0], timer.waited - self.mark[1]
        self.mark = (timer.here, timer.waited)
        line = {name: float(total) / self.count for name, total in self.sums.items()}
        line |= {
            "learning_rate": rate,
            "samples_per_second": self.count * samples / max(seconds, 1e-9),
            "data_wait": waited / max(seconds, 1e-9),
        }
        for name, value in line.items():
            self.board.add_scalar(f"train/{name}", value, step)
        if self.wandb is not None:
            self.wandb.values({f"train/{name}": value for name, value in line.items()}, step)
        line = {"step": step, "seconds": round(timer.total, 1)} | {name: float(f"{v:.5g}") for name, v in line.items()}
        append_line(self.output / "log.jsonl", line)
        print(" ".join(f"{name} {value}" for name, value in line.items()), flush=True)
        self.sums, self.count = {}, 0

    def picture(self, step: int, image: Image.Image) -> None:
        """Write a validation strip: validation/step-N.png, and to TensorBoard."""
        if self.board is None:
            return
        path = self.output / "validation" / f"step-{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
        self.board.add_image("validation", np.asarray(image), step, dataformats="HWC")
        if self.wandb is not None:
            self.wandb.picture(image, step)

    def close(self) -> None:
        """Flush TensorBoard and finish the run of Weights & Biases."""
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.close()
