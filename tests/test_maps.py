"""attention.maps: sums kept on the fly equal the plain average, and nothing counts twice."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from customcontrast.attention.maps import MapRecorder, aggregate, resize

SIZES = [(8, 12), (4, 6), (2, 3), (4, 6), (8, 12)]  # of five layers


def record(tokens: int = 4, subjects: int = 2) -> tuple[MapRecorder, dict[str, list[torch.Tensor]]]:
    torch.manual_seed(0)
    recorder, plain = MapRecorder(tokens), {"text": [], "subject": [], "visual": []}
    for layer, (h, w) in enumerate(SIZES):
        text, subject, visual = torch.rand(2, h * w, 6), torch.rand(2, h * w, subjects), torch.rand(2, h * w, subjects)
        recorder.add_text(layer, (h, w), text, subject)
        recorder.add_visual(layer, (h, w), visual)
        for kind, maps in (("text", text[..., :tokens]), ("subject", subject), ("visual", visual)):
            plain[kind].append(maps.mT.reshape(2, -1, h, w))
    return recorder, plain


def up(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(maps, size, mode="bilinear", antialias=True)


def test_mean_over_layers_is_the_plain_average() -> None:
    recorder, plain = record()
    assert recorder.grid == (8, 12)
    for kind, maps in plain.items():
        expected = torch.stack([up(m, (8, 12)) for m in maps]).mean(dim=0)
        assert torch.allclose(recorder.mean(kind), expected, atol=1e-6)


@pytest.mark.parametrize("grid", [None, (8, 12), (5, 7), (2, 3)])
def test_the_map_averages_all_visual_and_all_text_maps(grid: tuple[int, int] | None) -> None:
    recorder, plain = record()
    size = grid or (8, 12)
    expected = torch.stack([up(m, size) for m in plain["visual"] + plain["subject"]]).mean(dim=0)
    assert torch.allclose(aggregate(recorder, grid), expected, atol=1e-6)


def test_what_is_missing_is_left_out() -> None:
    recorder = MapRecorder()
    text = torch.rand(1, 6, 3)
    recorder.add_text(0, (2, 3), text, None)
    assert aggregate(recorder) is None
    recorder.add_visual(0, (2, 3), torch.rand(1, 6, 1))
    assert aggregate(recorder).shape == (1, 1, 2, 3) and recorder.mean("subject") is None


def test_by_resolution() -> None:
    recorder, plain = record()
    found = recorder.by_resolution()
    assert set(found) == {(8, 12), (4, 6), (2, 3)}
    assert torch.allclose(found[(4, 6)]["visual"], (plain["visual"][1] + plain["visual"][3]) / 2)


def test_a_layer_that_runs_twice_counts_once() -> None:
    recorder, plain = record()
    before = aggregate(recorder)
    recorder.add_visual(1, (4, 6), torch.ones(2, 24, 2))
    recorder.add_text(1, (4, 6), torch.ones(2, 24, 6), torch.ones(2, 24, 2))
    assert torch.equal(aggregate(recorder), before)


def test_tokens_are_kept_only_where_asked() -> None:
    assert record(tokens=0)[0].mean("text") is None
    assert record(tokens=3)[0].mean("text").shape == (2, 3, 8, 12)


def test_gradients_flow_through() -> None:
    recorder, visual = MapRecorder(), torch.rand(1, 6, 1, requires_grad=True)
    recorder.add_visual(0, (2, 3), visual)
    aggregate(recorder, (4, 6)).sum().backward()
    assert (visual.grad > 0).all()


def test_empty_recorder_says_so() -> None:
    with pytest.raises(ValueError, match="nothing was recorded"):
        _ = MapRecorder().grid


def test_resize_keeps_what_fits() -> None:
    maps = torch.rand(1, 1, 4, 6)
    assert resize(maps, (4, 6)) is maps
    assert resize(maps, (2, 3)).shape == (1, 1, 2, 3)
