"""Renders on their way to photographs."""

from __future__ import annotations

import pytest
import torch

from train.data.augment import SHARE, jpeg, photographic, with_rim


def pictures(count: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    smooth = torch.rand(count, 3, 4, 4, generator=g)
    return (torch.nn.functional.interpolate(smooth, size=32, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def test_a_share_stays_as_rendered_and_the_seed_decides() -> None:
    x = pictures(200)
    y = photographic(x, torch.Generator().manual_seed(1))
    assert y.dtype == torch.uint8 and y.shape == x.shape
    same = (y == x).flatten(1).all(1).float().mean().item()
    assert same == pytest.approx(1 - SHARE, abs=0.1)
    assert torch.equal(y, photographic(x, torch.Generator().manual_seed(1)))
    assert not torch.equal(y, photographic(x, torch.Generator().manual_seed(2)))
    assert (y.float() - x.float()).abs().mean() < 40  # still the same pictures


def test_jpeg_is_the_identity_at_no_strength_and_keeps_the_mean_of_a_block() -> None:
    x = pictures(4).float() / 255
    assert torch.allclose(jpeg(x, torch.full((4, 1, 1, 1), 1e-4)), x, atol=1e-3)
    flat = torch.full((1, 3, 8, 8), 128 / 255)
    assert torch.allclose(jpeg(flat, torch.full((1, 1, 1, 1), 3.0)), flat, atol=1e-6)
    error = [(jpeg(x, torch.full((4, 1, 1, 1), s)) - x).pow(2).mean() for s in (0.2, 1.0, 4.0)]
    assert error[0] < error[1] < error[2]


def test_a_rim_only_adds_to_a_mask_and_to_some_alone() -> None:
    masks = torch.zeros(60, 2, 24, 24, dtype=torch.bool)
    masks[:, 0, 8:16, 8:16] = True
    grown = with_rim(masks, torch.Generator().manual_seed(0))
    assert (grown | ~masks).all() and not grown[:, 1].any()
    more = (grown.sum((1, 2, 3)) > 64).float().mean().item()
    assert 0.2 < more < 0.6 and int(grown.sum((1, 2, 3)).max()) <= 16 * 16
