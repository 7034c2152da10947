"""A layout as extra input channels of a denoiser. Channels that are all 0 mean “unknown”."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from customcontrast.layout import MAX_SUBJECTS, NUMBERS, POSES, Layout


def layout_channels(layouts: Sequence[Layout | None], height: int, width: int) -> Tensor:
    """Paint layouts on a grid of latents: channels (B, LAYOUT_CHANNELS, height, width); None gives zeros."""
    rows = torch.stack([torch.zeros(NUMBERS) if x is None else torch.tensor(x.numbers()) for x in layouts])
    return channels(rows, height, width)


def channels(rows: Tensor, height: int, width: int) -> Tensor:
    """Paint rows of `Layout.numbers` (B, NUMBERS): channels (B, LAYOUT_CHANNELS, height, width) on their device.

    A cell holds the share of it that a box covers. A row without any box is unknown: all zeros.
    """
    elevation, light_azimuth, light_elevation = rows[:, 0], rows[:, 1] * (math.pi / 180), rows[:, 2]
    light = torch.stack((elevation / 20 - 0.85, light_azimuth.sin(), light_azimuth.cos(), light_elevation / 25 - 2), 1)
    subjects = rows[:, 3:].unflatten(1, (MAX_SUBJECTS, 6))
    box, azimuth = subjects[..., :4], subjects[..., 4] * (math.pi / 180)
    pose = (subjects[..., 5:] == torch.arange(len(POSES), device=rows.device)).to(rows.dtype)
    across = covered(box[..., 0], box[..., 2], width)
    down = covered(box[..., 1], box[..., 3], height)
    boxes = down[..., :, None] * across[..., None, :]  # (B, K, h, w)
    view = torch.cat((torch.stack((azimuth.sin(), azimuth.cos(), (2 * azimuth).sin()), -1), pose), -1)
    painted = torch.einsum("bkc,bkhw->bchw", view, boxes)
    known = ((box[..., 2] > box[..., 0]).any(1)).to(rows.dtype)
    everywhere = (light * known[:, None])[..., None, None].expand(-1, -1, height, width)
    return torch.cat((everywhere, boxes, painted), 1)


def mirrored_rows(rows: Tensor) -> Tensor:
    """Rows of `Layout.numbers` (B, NUMBERS) of the mirrored pictures."""
    out = rows.clone()
    out[:, 1] *= -1
    subjects = out[:, 3:].unflatten(1, (MAX_SUBJECTS, 6))
    there = subjects[..., 2] > subjects[..., 0]
    left, right = subjects[..., 0].clone(), subjects[..., 2].clone()
    subjects[..., 0], subjects[..., 2] = (1 - right) * there, (1 - left) * there
    subjects[..., 4] *= -1
    return out


def covered(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """(..., cells): which share of each of `cells` equal cells of 0..1 lies between low and high."""
    edge = torch.arange(cells, device=low.device, dtype=low.dtype) / cells
    return ((torch.minimum(high[..., None], edge + 1 / cells) - torch.maximum(low[..., None], edge)) * cells).clamp(
        0, 1
    )
