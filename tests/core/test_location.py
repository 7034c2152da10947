"""attention.location: soft masks by the formula, what happens to flat ones, and who owns a pixel."""

from __future__ import annotations

import torch

from customcontrast.attention.location import Masker, location_mask, minmax, ownership_weights, shared
from customcontrast.config import LocationConfig

CONFIG = LocationConfig()


def plain_mask(A: torch.Tensor, threshold: float) -> torch.Tensor:
    """One map (h, w), from the words of the method."""
    M = (A - A.min()) / (A.max() - A.min())
    M[M <= threshold] = 0  # noqa: SIM300 - M is the paper's mask, no constant
    return (M - M.min()) / (M.max() - M.min())


def test_mask_against_the_formula_on_any_shape() -> None:
    torch.manual_seed(0)
    A = torch.rand(3, 1, 8, 12) * 0.3 + 0.2
    M = location_mask(A, CONFIG)
    for i in range(3):
        assert torch.allclose(M[i, 0], plain_mask(A[i, 0].clone(), 0.2), atol=1e-5)
    assert ((M > 0) & (M < 1)).any(), "soft, not binary"
    assert (M == 0).any() and M.amax() == 1


def test_threshold_is_a_parameter() -> None:
    torch.manual_seed(0)
    A = torch.rand(1, 1, 8, 8)
    zeros = [(location_mask(A, LocationConfig(threshold=x)) == 0).sum() for x in (0.0, 0.2, 0.6)]
    assert zeros[0] < zeros[1] < zeros[2]


def test_scale_and_offset_of_the_map_do_not_matter() -> None:
    torch.manual_seed(0)
    A = torch.rand(1, 1, 6, 6)
    assert torch.allclose(location_mask(A, CONFIG), location_mask(A * 0.01 + 0.3, CONFIG), atol=1e-4)


def test_a_flat_map_keeps_the_previous_mask() -> None:
    torch.manual_seed(0)
    previous = torch.rand(2, 1, 4, 4)
    A = torch.rand(2, 1, 4, 4)
    A[0] = 0.37
    M = location_mask(A, CONFIG, previous)
    assert torch.equal(M[0], previous[0]) and not torch.equal(M[1], previous[1])
    assert torch.equal(location_mask(A, CONFIG)[0], torch.ones(1, 4, 4)), "at the start: nothing is masked"


def test_overlap_belongs_to_the_larger_map() -> None:
    A = torch.zeros(1, 2, 1, 4)
    A[0, 0, 0] = torch.tensor([0.9, 0.6, 0.3, 0.0])
    A[0, 1, 0] = torch.tensor([0.0, 0.3, 0.6, 0.9])
    M = location_mask(A, CONFIG)
    assert ((M[0, 0] > 0) & (M[0, 1] > 0)).sum() == 0
    assert (M[0, 0, 0] > 0).tolist() == [True, True, False, False]


def test_swapping_subjects_swaps_masks() -> None:
    torch.manual_seed(0)
    A = torch.rand(2, 3, 5, 7)
    order = [2, 0, 1]
    assert torch.equal(location_mask(A[:, order], CONFIG), location_mask(A, CONFIG)[:, order])
    maps = torch.rand(2, 35, 3)
    assert torch.allclose(ownership_weights(maps[..., order]), ownership_weights(maps)[..., order])


def test_ownership_weights_sum_to_one_and_follow_the_larger() -> None:
    torch.manual_seed(0)
    maps = torch.rand(1, 35, 2) * 0.01
    weights = ownership_weights(maps)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(1, 35))
    assert torch.equal(
        weights[..., 0] > weights[..., 1],
        minmax(maps.mT[..., None])[:, 0, :, 0] > minmax(maps.mT[..., None])[:, 1, :, 0],
    )


# ---- drawn layouts, subjects without a mask --------------------------------------------------------


def test_a_drawn_layout_is_the_mask_and_the_others_leave_it() -> None:
    torch.manual_seed(0)
    A, box = torch.rand(2, 3, 6, 8), torch.zeros(6, 8)
    box[2:5, 1:4] = 1
    M = location_mask(A, CONFIG, drawn={1: box})
    assert torch.equal(M[:, 1], box.expand(2, -1, -1))
    assert (M[:, [0, 2]] * box).abs().max() == 0
    outside = location_mask(A[:, [0, 2]], CONFIG)[..., box == 0]
    assert torch.equal(M[:, [0, 2]][..., box == 0], outside), "the drawn subject's own map takes no pixel"


def test_a_free_subject_takes_no_pixel_from_the_others() -> None:
    torch.manual_seed(0)
    A = torch.rand(1, 3, 6, 8)
    M = location_mask(A, CONFIG, free={2})
    assert torch.equal(M[:, :2], location_mask(A[:, :2], CONFIG))
    everyone = location_mask(A, CONFIG, free={0, 1, 2})
    assert torch.equal(everyone, location_mask(A, CONFIG)), "all free: masks for the eye, as without the switch"


def test_overlapping_layouts_share_evenly() -> None:
    left, right = torch.zeros(1, 4), torch.zeros(1, 4)
    left[0, :3], right[0, 2:] = 1, 0.5
    parts = shared({0: left, 2: right})
    assert torch.allclose(parts[0], torch.tensor([[1, 1, 1 / 1.5, 0]]))
    assert torch.allclose(parts[2], torch.tensor([[0, 0, 0.5 / 1.5, 0.5]]))


def test_masker_goes_by_step() -> None:
    torch.manual_seed(0)
    box = torch.zeros(4, 4)
    box[1:3] = 1
    masker = Masker(LocationConfig(start_step=3, freeze_step=2), [box, None, None], [True, True, False], images=2)
    assert masker.at(1)[1] == (True, False, False)
    assert torch.equal(masker.at(1)[0][:, 0], box.expand(2, -1, -1)), "drawn: from step 1 on"
    assert (masker.at(1)[0][:, 1:] == 1).all()
    masker.take(torch.rand(2, 3, 4, 4))
    assert masker.at(2)[1] == (True, False, False) and masker.at(3)[1] == (True, True, False)
    assert masker.needs_maps(2) and not masker.needs_maps(3)
    all_drawn = Masker(LocationConfig(enabled=False), [box], [True], 1)
    assert not all_drawn.needs_maps(1) and all_drawn.at(1)[1] == (True,), "a drawing holds with location masks off"
    none = Masker(LocationConfig(), [None], [True], 1)
    none.take(None)
    assert none.at(5) == (None, ())
