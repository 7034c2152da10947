"""What watches the numbers and the wishes of a step without waiting for the GPU."""

from __future__ import annotations

from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from train.adapter.losses import Losses


class FiniteWatch:
    """Remembers on the device the first step at which a term of Eq. 9 was not finite; `check` reads it.

    A check waits for the GPU, so it is made where a line of the log is written and before a checkpoint is; on a CPU,
    where nothing has to be waited for, at every step.
    """

    def __init__(self, device: torch.device) -> None:
        self.names = tuple(Losses.__dataclass_fields__)
        self.first = torch.full((len(self.names),), -1, dtype=torch.long, device=device)
        self.values = torch.zeros(len(self.names), device=device)

    @torch.no_grad()
    def see(self, losses: Losses, step: int) -> None:
        """Take in the terms of one micro-step of `step`."""
        values = torch.stack([getattr(losses, name).detach().float() for name in self.names])
        new = ~values.isfinite() & (self.first < 0)
        self.first = torch.where(new, step, self.first)
        self.values = torch.where(new, values, self.values)
        if values.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Raises FloatingPointError that names the first bad term, and its step."""
        first = self.first.tolist()
        bad = [(step, i) for i, step in enumerate(first) if step >= 0]
        if bad:
            step, i = min(bad)
            raise FloatingPointError(
                f"loss '{self.names[i]}' is {float(self.values[i])} at step {step}; lower learning_rate, or set "
                "mixed_precision to 'no'"
            )


class Agreement:
    """True on every process as soon as one of them wishes it, so that none waits for another for ever.

    The processes talk over a group of their own, on the CPU: no kernel is waited for.
    """

    def __init__(self, processes: int, timeout: timedelta) -> None:
        made = dist.new_group(backend="gloo", timeout=timeout) if processes > 1 else None
        self.group = cast("dist.ProcessGroup | None", made)  # a number only where this process is not in the group

    def __call__(self, wish: bool) -> bool:
        if self.group is None:
            return wish
        votes = torch.tensor(float(wish))
        dist.all_reduce(votes, group=self.group)
        return bool(votes > 0)


def batch_times_similarity(batch: int, temperature: float, similarity: Tensor | float) -> float:
    """B · τ · S̄ of Eq. 7: above 1 its optimum orders the subjects as S does (`losses.macl_loss`). S̄: off-diagonal mean.

    similarity: S_ij (B, B'), whose ones for the same picture are left out, or S̄ itself.
    """
    if isinstance(similarity, Tensor):
        rows, columns = similarity.shape
        similarity = float((similarity.sum() - rows) / max(1, rows * columns - rows))
    return batch * temperature * similarity
