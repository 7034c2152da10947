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
    recorder, _plain = record()
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


def test_resize_takes_bf16_on_a_cpu() -> None:
    maps = torch.rand(1, 2, 4, 6)
    assert torch.allclose(resize(maps.bfloat16(), (3, 4)), resize(maps, (3, 4)), atol=1e-2)


def test_sums_are_float32_whatever_comes_in() -> None:
    recorder = MapRecorder()
    for layer in range(300):
        recorder.add_visual(layer, (1, 1), torch.full((1, 1, 1), 0.5, dtype=torch.bfloat16))
    assert recorder.mean("visual").item() == 0.5, "300 times 0.5 is beyond bf16's 8 bits"


# ---- chosen layers and tokens ----------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(0,), (1, 4), (3, 1)])
@pytest.mark.parametrize("everywhere", [True, False])
def test_chosen_layers_and_tokens_are_the_plain_average_of_these(layers: tuple[int, ...], everywhere: bool) -> None:
    _, plain = record(tokens=6)
    recorder = MapRecorder([0, 3, 2], layers, everywhere)
    for layer, size in enumerate(SIZES):
        text, subject, visual = (plain[kind][layer].flatten(2).mT for kind in ("text", "subject", "visual"))
        assert recorder.takes(layer) == (everywhere or layer in layers)
        recorder.add_text(layer, size, text, subject)
        recorder.add_visual(layer, size, visual)
    for kind, maps in plain.items():
        chosen = [maps[layer][:, [0, 3, 2]] if kind == "text" else maps[layer] for layer in layers]
        expected = torch.stack([up(m, (8, 12)) for m in chosen]).mean(dim=0)
        assert torch.allclose(recorder.mean(kind, (8, 12)), expected, atol=1e-6)
    every = plain["visual"] + plain["subject"] if everywhere else None
    if every:
        expected = torch.stack([up(m, (8, 12)) for m in every]).mean(dim=0)
        assert torch.allclose(aggregate(recorder), expected, atol=1e-6), "the location mask sees every layer"
    assert set(recorder.by_resolution()) == {SIZES[layer] for layer in layers}


def test_looked_against_a_plain_sum() -> None:
    torch.manual_seed(0)
    sources = [torch.rand(5, 3, 2, 4).flatten(2).softmax(-1).unflatten(-1, (2, 4)) for _ in range(2)]
    recorder = MapRecorder(sources=sources)
    weights = [[torch.rand(2, h * w, 3) for h, w in SIZES] for _ in range(2)]
    for k in range(2):
        for layer, size in enumerate(SIZES):
            recorder.add_looked(layer, size, k, weights[k][layer])
            recorder.add_visual(layer, size, weights[0][layer].sum(dim=-1, keepdim=True))
        recorder.add_looked(0, SIZES[0], k, weights[k][0])  # a second time changes nothing
    for k in range(2):
        maps = []
        for layer, (h, w) in enumerate(SIZES):
            each = torch.einsum("rxn,nij->rijx", weights[k][layer], sources[k][layer])
            maps.append(up(each.reshape(2, 8, h, w), (8, 12)).reshape(2, 2, 4, 8, 12))
        expected = torch.stack(maps).mean(dim=0).permute(0, 3, 4, 1, 2)
        assert torch.allclose(recorder.looked(k), expected, atol=1e-6)
    assert torch.allclose(recorder.looked(0).sum(dim=(-2, -1)), recorder.mean("visual")[:, 0], atol=1e-5)
    assert MapRecorder().looked(0) is None
