"""The queries of the two Q-Formers: plain visual ones, and spatiotemporal textual ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def fourier(x: Tensor, bands: int) -> Tensor:
    """Fourier mapping of values in [0, 1], of frequencies π, 2π, 4π …: (..., c) -> (..., 2·c·bands)."""
    frequencies = math.pi * 2.0 ** torch.arange(bands, device=x.device, dtype=x.dtype)
    angles = (x[..., None] * frequencies).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class VisualQueries(nn.Module):
    """The visual queries q_v: m + 1 learnable vectors; the last is the visual CLS of Eq. 4."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.randn(count + 1, width) * width**-0.5)

    def forward(self, batch: int) -> Tensor:
        """The same queries for each of `batch` subjects, (B, 1, m+1, d)."""
        return self.base.expand(batch, 1, -1, -1)


class SpatiotemporalQueries(nn.Module):
    """The textual queries of each (t, l): n + 1 vectors, the last is the textual CLS.

    q_t(t, l) = q_base + MLP(Fourier(t/T, l/L)) + E_layer[l] (section 3.2).
    """

    def __init__(self, count: int, width: int, num_layers: int, num_train_timesteps: int, bands: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.num_train_timesteps = num_train_timesteps
        self.bands = bands
        self.base = nn.Parameter(torch.randn(count + 1, width) * width**-0.5)
        self.layer_embedding = nn.Embedding(num_layers, width)
        nn.init.normal_(self.layer_embedding.weight, std=width**-0.5)
        self.mlp = nn.Sequential(nn.Linear(4 * bands, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor, layers: Tensor | None = None) -> Tensor:
        """The queries of every (t, l), (B, R, n+1, d).

        t: timesteps (B,) in [0, T). layers: indices l (R,); None = all L.
        """
        if layers is None:
            layers = torch.arange(self.num_layers, device=self.base.device)
        time = (t.to(self.base.device, torch.float32) / self.num_train_timesteps)[:, None].expand(-1, len(layers))
        depth = (layers.to(torch.float32) / self.num_layers)[None].expand(len(t), -1)
        place = fourier(torch.stack([time, depth], dim=-1), self.bands)  # in float32: the bands reach 2^7 π
        place = self.mlp(place.to(self.base.dtype)) + self.layer_embedding(layers)
        return self.base + place[:, :, None]
