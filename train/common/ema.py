"""Exponential moving average of a model's trainable parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.common.sharding import own


class EMA:
    """Averaged weights w̄ ← d·w̄ + (1 − d)·w, with d = min(decay, (1 + step)/(10 + step)).

    model: its parameters that require gradients are averaged. `weights`: name → average, on the parameter's device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the averages after optimiser step `step` (from 1). With decay 0 they are the latest weights."""
        d = min(self.decay, (1 + step) / (10 + step))
        latest = (p.detach() for p in model.parameters() if p.requires_grad)
        torch._foreach_lerp_(own(self.weights.values()), own(latest), 1 - d)
