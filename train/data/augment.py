"""Rendered pictures on their way to photographs: light, colour cast, blur, noise, JPEG, texture, rim of background.

An image tower that has seen renders alone reads a photograph's grain as pattern and its colour cast as colour. Each
distortion is drawn anew for each picture; about a third of them stay as rendered.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHARE = 0.65  # of pictures that are distorted at all
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip  # quantisation table of ITU-T T.81, annex K.1


def photographic(images: Tensor, g: torch.Generator) -> Tensor:
    """uint8 (B, 3, H, W) to the same, SHARE of them as a camera might have seen them. H and W: multiples of 8.

    g: a CPU generator, which decides everything.
    """
    chosen = (torch.rand(len(images), generator=g) < SHARE).nonzero().flatten()
    out = images.clone()
    if len(chosen):
        out[chosen] = _distorted(images[chosen], g)
    return out


def _distorted(images: Tensor, g: torch.Generator) -> Tensor:
    b = len(images)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(b, *shape, generator=g)

    def chance(p: float) -> Tensor:
        return (torch.rand(b, 1, 1, 1, generator=g) < p).float()

    x = images.float() / 255
    light = 1 + chance(0.5) * draw(0.05, 0.3, 1, 1, 1) * _fields(b, x.shape[-1], 3, g)
    cloth = 1 + chance(0.4) * draw(0.02, 0.12, 1, 1, 1) * _fields(b, x.shape[-1], 48, g)
    gain = torch.exp(0.08 * torch.randn(b, 3, 1, 1, generator=g)) * torch.exp(
        0.12 * torch.randn(b, 1, 1, 1, generator=g)
    )
    y = (x * light * cloth * gain).clamp(0, 1) ** torch.exp(0.25 * torch.randn(b, 1, 1, 1, generator=g))
    soft = chance(0.5) * draw(0.2, 1.0, 1, 1, 1)
    y = torch.lerp(y, _blurred(y), soft)
    y = y + draw(0.0, 0.06, 1, 1, 1) * torch.randn(y.shape, generator=g)
    y = torch.lerp(y, jpeg(y, draw(0.3, 3.0, 1, 1, 1)), chance(0.5))
    return (y.clamp(0, 1) * 255).round().to(torch.uint8)


def with_rim(masks: Tensor, g: torch.Generator, most: int = 4) -> Tensor:
    """Masks bool (B, K, H, W), 40 % of them grown by 1 to `most` px: background that a segmenter leaves at the rim."""
    grown = (torch.rand(len(masks), generator=g) < 0.4).nonzero().flatten()
    out = masks.clone()
    for i in grown.tolist():
        px = int(torch.randint(1, most + 1, (1,), generator=g))
        out[i] = F.max_pool2d(masks[i].float()[None], 2 * px + 1, 1, px)[0] > 0
    return out


def jpeg(x: Tensor, strength: Tensor) -> Tensor:
    """Blocks of 8 × 8 px quantised as JPEG does, each colour alone. x (B, 3, H, W) in 0..1; strength (B, 1, 1, 1):
    factor on the standard's table, 1 = quality 50."""
    b, c, h, w = x.shape
    k = torch.arange(8.0)
    basis = (
        torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / 16) * torch.where(k == 0, math.sqrt(1 / 8), 0.5)[:, None]
    )
    blocks = (x * 255 - 128).view(b, c, h // 8, 8, w // 8, 8).transpose(3, 4)
    table = torch.tensor(_LUMINANCE, dtype=x.dtype) * strength.view(b, 1, 1, 1, 1, 1)
    quantised = ((basis @ blocks @ basis.T) / table).round() * table
    back = basis.T @ quantised @ basis
    return ((back + 128) / 255).transpose(3, 4).reshape(b, c, h, w).clamp(0, 1)


def _blurred(x: Tensor) -> Tensor:
    small = F.interpolate(x, scale_factor=0.4, mode="bilinear", antialias=True)
    return F.interpolate(small, size=x.shape[-2:], mode="bilinear")


def _fields(count: int, side: int, cells: int, g: torch.Generator) -> Tensor:
    """Smooth random fields (count, 1, side, side) in about -1..1."""
    return F.interpolate(2 * torch.rand(count, 1, cells, cells, generator=g) - 1, size=(side, side), mode="bicubic")
