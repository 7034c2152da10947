"""Previews without the autoencoder: colours are nearly linear in the latents of a picture autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from customcontrast.base_model import BaseModel

FIELDS = 8  # synthetic pictures that the map is fitted on
CELLS = 16  # their side, in latent cells


@dataclass(frozen=True, eq=False)
class LatentRGB:
    """Colour of a latent cell: z·weight + bias. For previews, never for a final picture."""

    weight: Tensor  # (C, 3)
    bias: Tensor  # (3,)

    def pixels(self, z: Tensor, factor: int) -> Tensor:
        """Scaled latents (N, C, h, w) -> pixels (N, 3, h·factor, w·factor), about [−1, 1], smooth between cells."""
        colours = torch.einsum("nchw,cd->ndhw", z.float(), self.weight) + self.bias[:, None, None]
        return F.interpolate(colours, scale_factor=factor, mode="bicubic")


@torch.no_grad()
def fit_latent_rgb(base: BaseModel, pictures: Tensor | None = None) -> LatentRGB:
    """Fit the linear map from a base's latents to colours, by least squares through its own autoencoder.

    pictures: what it is fitted on, pixels (B, 3, H, W) in [−1, 1]; None = random fields of colour, which needs no
    data and fits any finetuned autoencoder. A cell's colour is the mean of its pixels.
    """
    f = base.scale_factor
    pictures = colour_fields(FIELDS, CELLS * f) if pictures is None else pictures
    z = torch.cat([base.encode(picture) for picture in pictures.split(1)])
    colours = F.avg_pool2d(pictures.to(z), f)
    samples = z.movedim(1, -1).flatten(0, -2)
    samples = torch.cat([samples, torch.ones_like(samples[:, :1])], dim=1).double().cpu()
    solved = torch.linalg.lstsq(samples, colours.movedim(1, -1).flatten(0, -2).double().cpu(), driver="gelsd").solution
    solved = solved.float().to(z.device)
    return LatentRGB(solved[:-1], solved[-1])


def colour_fields(count: int, side: int, seed: int = 0) -> Tensor:
    """Random colours over a picture, from wide patches to small ones, (count, 3, side, side) in [−1, 1]."""
    generator, fields = torch.Generator().manual_seed(seed), []
    for i in range(count):
        field = torch.zeros(1, 3, side, side)
        for cells in (1, 2, 4, 8):
            noise = torch.randn(1, 3, cells, cells, generator=generator)
            field += F.interpolate(noise, (side, side), mode="nearest" if i % 2 else "bilinear")
        fields.append(field)
    return torch.cat(fields).mul(0.5).tanh()
