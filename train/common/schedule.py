"""Learning rates as functions of the step alone, so that a resumed run goes on exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up to `peak`, then one of three ways down.

    kind: "constant"; "cosine" to `final` × peak at `steps`; "linear": a plateau, then to 0 over the last `decay` share.
    """

    peak: float
    steps: int
    warmup: int = 0
    kind: str = "constant"
    final: float = 0.0
    decay: float = 0.0

    def rate(self, step: int) -> float:
        """Learning rate of optimiser step `step`, from 0."""
        if step < self.warmup and self.kind != "linear":
            return self.peak * (step + 1) / self.warmup
        if self.kind == "constant":
            return self.peak
        if self.kind == "cosine":
            done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
            return self.peak * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done)))
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        fall = min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))
        return self.peak * rise * max(0.0, fall)
