"""What every stage of `train.base.pretrain` shares: EMA, learning rate, checkpoints that resume exactly, a log."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from customcontrast.tensor_files import write_tensors
from train.base.base_config import StageConfig


def learning_rate(step: int, stage: StageConfig) -> float:
    """Warm-up, plateau, then linearly to 0 over the last `stage.decay` share of the steps."""
    rise = min(1.0, (step + 1) / max(1, stage.warmup))
    fall = min(1.0, (stage.steps - step) / max(1.0, stage.decay * stage.steps))
    return stage.lr * rise * max(0.0, fall)


class Stage:
    """One model being trained: `run(loss_at)` steps it to `config.steps`, saving as it goes.

    Checkpoints are one safetensors file: weights, EMA, both AdamW moments, and the step in its metadata. All
    randomness of a step comes from `generator(step)`, so a resumed run sees the same data and noise as an
    unbroken one.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
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
        self.ema = {k: p.detach().clone() for k, p in self.parameters.items()}
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
        stop = _StopOnSigterm()
        start = saved = time.monotonic()
        mean: dict[str, float] = {}
        while self.step < self.config.steps and not stop.asked:
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
        return self.step >= self.config.steps

    def _update(self, loss_at: Callable) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config)
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
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), 1 - decay)
        return {"loss": loss.item(), "grad": norm.item(), **terms}

    def _log(self, mean: dict[str, float]) -> None:
        line = {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "lr": learning_rate(self.step, self.config),
        }
        line |= {k: round(v, 5) for k, v in mean.items()}
        with self.log_path.open("a") as f:
            f.write(json.dumps(line) + "\n")
        print(self.name, line, flush=True)

    def save(self) -> None:
        """Write the checkpoint beside itself, then rename: a kill leaves the last good one."""
        tensors = {f"weights.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.items()}
        for k, p in self.parameters.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                if p in self.optimizer.state:
                    tensors[f"{moment}.{k}"] = self.optimizer.state[p][moment]
        tensors = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
        # safetensors refuses to share storage; `clone` above also unties tied weights
        write_tensors(tensors, self.path, {"step": str(self.step), "seconds": str(self.seconds)})

    def _load(self) -> None:
        tensors = load_file(self.path)
        self.model.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("weights.")})
        self.step, self.seconds = checkpoint_step(self.path)
        for k, p in self.parameters.items():
            averaged = tensors.get(f"ema.{k}", tensors[f"weights.{k}"])  # a part that was locked has no average
            self.ema[k] = averaged.to(p.device)
            if f"exp_avg.{k}" in tensors:
                self.optimizer.state[p] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": tensors[f"exp_avg.{k}"].to(p.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{k}"].to(p.device),
                }

    def load_ema(self) -> nn.Module:
        """Put the averaged weights into the model (for export) and return it."""
        self.model.load_state_dict(self.ema, strict=False)
        return self.model


def checkpoint_step(path: Path) -> tuple[int, float]:
    """(step, training seconds) of a checkpoint without reading its tensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        meta = f.metadata()
    return int(meta["step"]), float(meta["seconds"])


class _StopOnSigterm:
    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True
