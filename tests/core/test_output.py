"""What a generation keeps on request: chosen steps, layers and tokens, and where each place looked."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from customcontrast.base_model import BaseModel, load_base
from customcontrast.config import LocationConfig, RecordConfig
from customcontrast.encoder import token_sources
from customcontrast.encoder.perceiver import PerceiverBlock
from customcontrast.pipeline import CustomContrast, Subject
from tests.conftest import Cutout
from tests.support.tiny_models import random_adapter

PROMPT = "a bear on the beach"
FAST = {"num_inference_steps": 2, "guidance_scale": 4.0, "seed": 2}


@pytest.fixture(scope="module")
def bear(any_custom: CustomContrast, cutout: Callable[[int], Cutout]) -> Subject:
    return any_custom.subject([cutout(1), cutout(4)], "bear")


def pixels(result: object) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in result.images])


# ---- chosen layers and tokens ------------------------------------------------------------------------


def test_layers_one_by_one_average_to_all_of_them(any_custom: CustomContrast, bear: Subject) -> None:
    full = any_custom.generate(PROMPT, bear, **FAST)
    layers = range(len(any_custom.base.cross_attention_layers))
    each = [any_custom.generate(PROMPT, bear, record=RecordConfig(layers=(layer,)), **FAST) for layer in layers]
    assert full.map_layers == list(layers) and each[2].map_layers == [2]
    for kind in ("text_maps", "visual_maps", "subject_maps"):
        mean = np.mean([getattr(one, kind).astype(np.float32) for one in each], axis=0)
        assert np.allclose(mean, getattr(full, kind), atol=2e-3)
        assert not np.allclose(getattr(each[0], kind), getattr(full, kind), atol=2e-3)
    for one in each:
        assert np.abs(pixels(one) - pixels(full)).max() == 0, "recording never changes the picture"
        assert np.array_equal(one.location_masks, full.location_masks), "the location mask still sees every layer"
        assert len(one.by_resolution) == 1


def test_tokens_by_place_and_by_word(any_custom: CustomContrast, bear: Subject) -> None:
    full = any_custom.generate(PROMPT, bear, **FAST)
    some = any_custom.generate(PROMPT, bear, record=RecordConfig(tokens=("beach", 0, "S*"), steps=(2,)), **FAST)
    words = dict(full.words)
    assert some.map_tokens == sorted([0, *words["beach"], *words["S*"]])
    assert some.map_steps == [2] and full.map_tokens == list(range(len(full.tokens)))
    assert np.array_equal(some.text_maps, full.text_maps[:, 1:][:, :, some.map_tokens])
    assert np.array_equal(some.visual_maps, full.visual_maps[:, 1:])


@pytest.mark.parametrize("tokens", [("moon",), (99,), ("bear on",)])
def test_tokens_the_prompt_does_not_have(tiny_custom: CustomContrast, tokens: tuple) -> None:
    with pytest.raises(ValueError, match=f"tokens has {tokens[0]!r}"):
        tiny_custom.generate(PROMPT, record=RecordConfig(tokens=tokens), **FAST)


def test_wrong_records_get_a_sentence(tiny_custom: CustomContrast) -> None:
    with pytest.raises(ValueError, match="layers are 0 to 3"):
        tiny_custom.stream(PROMPT, record=RecordConfig(layers=(4,)))
    for layers in ((), (-1,), (0.5,), 3, (True,), ("a",)):
        with pytest.raises(ValueError, match="counted from 0"):
            RecordConfig(layers=layers)
    for tokens in ((), "bear", (1.5,), (None,)):
        with pytest.raises(ValueError, match="places from 0 or words"):
            RecordConfig(tokens=tokens)
    with pytest.raises(ValueError, match="looked_at='yes'"):
        RecordConfig(looked_at="yes")
    with pytest.raises(ValueError, match="record=7 must be a RecordConfig"):
        tiny_custom.stream(PROMPT, record=7)
    with pytest.raises(ValueError, match="needs maps=True"):
        RecordConfig(maps=False, looked_at=True)


class Largest(TorchDispatchMode):
    """Shapes of all tensors that operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.shapes.add(tuple(x.shape))
        return out


def test_no_map_of_pixels_by_pixels(any_custom: CustomContrast, bear: Subject) -> None:
    """All maps recorded, and no operator ever returned (…, h·w, h·w)."""
    f = any_custom.base.scale_factor
    h, w = 14, 22
    with Largest() as seen:
        any_custom.generate(PROMPT, bear, height=h * f, width=w * f, num_inference_steps=1, guidance_scale=1.0)
    pixels_of = {-(-h >> level) * -(-w >> level) for level in (0, 1, 2)} - {28}
    assert any(len(shape) == 4 and shape[-2] in pixels_of and shape[-1] == 32 for shape in seen.shapes), "text maps"
    assert not [shape for shape in seen.shapes if len(shape) > 2 and shape[-1] in pixels_of and shape[-2] in pixels_of]


# ---- where each place looked -------------------------------------------------------------------------


def plain_rollout(
    blocks: list[PerceiverBlock], f: torch.Tensor, q: torch.Tensor, of_f: torch.Tensor, S: torch.Tensor
) -> torch.Tensor:
    """One row of queries (n, d) over features f (N, d), by the formula; of_f (N, P), S (n, P)."""
    for block in blocks:
        pa, weights = block.attention, 0
        c = q.shape[-1] // pa.heads
        both = torch.cat([pa.norm_f(f), pa.norm_q(q)])
        Q, K = pa.to_q(pa.norm_q(q)), pa.to_k(both)
        for head in range(pa.heads):
            part = slice(head * c, (head + 1) * c)
            weights = weights + torch.softmax(Q[:, part] @ K[:, part].T / math.sqrt(c), dim=-1) / pa.heads
        S = 0.5 * S + 0.5 * (weights[:, : len(f)] @ of_f + weights[:, len(f) :] @ S)
        q = block(f[None], q[None, None])[0, 0]
    return S


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["block", "pa"])
def test_sources_against_a_plain_loop(tiny_base: BaseModel, fusion: str) -> None:
    encoder, references = random_adapter(tiny_base, fusion=fusion).encoder, 2
    torch.manual_seed(1)
    f_I, t = torch.randn(1, references * 3 * 10, 32), torch.tensor([30, 700])
    found = token_sources(encoder, f_I, t, references)
    assert found.shape == (2, 4, 3, references, 9)
    assert torch.allclose(found.sum(dim=(-2, -1)), torch.ones(2, 4, 3), atol=1e-5)

    def on_patches(S: torch.Tensor) -> torch.Tensor:
        S = S.view(-1, references, 3, 10).sum(dim=2)[:, :, 1:].flatten(1)
        return S / S.sum(dim=1, keepdim=True)

    f, own = f_I[0], torch.eye(60)
    q_v = encoder.visual_queries(1)[0, 0]
    S_v = on_patches(plain_rollout(encoder.visual_qformer.blocks, f, q_v, own, torch.zeros(6, 60))[:-1])
    f_v = encoder.visual(f_I)[0][0]
    for b, layer in ((0, 0), (1, 3)):
        q_t = encoder.text_queries(t)[b, layer]
        S_t = on_patches(plain_rollout(encoder.text_qformer.blocks, f, q_t, own, torch.zeros(4, 60))[:-1])
        f_t = encoder.text_qformer(f_I, q_t[None, None])[0, 0, :-1]
        if fusion == "block":
            S = plain_rollout([encoder.tv_fusion], f_v, f_t, S_v, S_t)
        else:
            on_v, on_t = (weights[0, :, 0].mean(0) for weights in encoder.tv_fusion.weights(f_v[None], f_t[None, None]))
            S = on_v @ S_v + on_t @ S_t
        assert torch.allclose(found[b, layer].flatten(1), S, atol=1e-5)


def test_looked_at_sums_to_the_visual_map(any_custom: CustomContrast, bear: Subject, cutout: Callable) -> None:
    cat, record = any_custom.subject(cutout(2), "cat"), RecordConfig(looked_at=True)
    options = FAST | {"num_images": 2, "width": 96, "height": 64}
    r = any_custom.generate("a bear and a cat", [bear, cat], record=record, **options)
    h, w = r.visual_maps.shape[-2:]
    assert [looked.shape for looked in r.looked_at] == [(2, h, w, 2, 3, 3), (2, h, w, 1, 3, 3)]
    for k, looked in enumerate(r.looked_at):
        assert looked.dtype == np.float16
        mass = looked.astype(np.float32).sum(axis=(-3, -2, -1))
        assert np.allclose(mass, r.visual_maps[:, :, k].astype(np.float32).mean(axis=1), atol=3e-3)
        assert looked.astype(np.float32).std(axis=(-2, -1)).max() > 1e-4, "it tells patches apart"
    plain = any_custom.generate("a bear and a cat", [bear, cat], **options)
    assert plain.looked_at == [] and np.array_equal(pixels(plain), pixels(r))
    off = any_custom.generate(PROMPT, bear, record=record, location=LocationConfig(enabled=False), **FAST)
    assert off.looked_at[0].shape[0] == 1


def test_looked_at_of_some_steps(any_custom: CustomContrast, bear: Subject) -> None:
    """Of steps 1 and 3 it is the mean of what each of the two alone says."""
    options = FAST | {"num_inference_steps": 4}
    some = any_custom.generate(PROMPT, bear, record=RecordConfig(looked_at=True, looked_at_every=2), **options)
    each = [
        any_custom.generate(PROMPT, bear, record=RecordConfig(steps=(s,), looked_at=True), **options) for s in (1, 3)
    ]
    wanted = sum(r.looked_at[0].astype(np.float32) for r in each) / 2
    np.testing.assert_allclose(some.looked_at[0].astype(np.float32), wanted, atol=2e-3)
    with pytest.raises(ValueError, match="looked_at_every=0 must be a whole number from 1"):
        RecordConfig(looked_at_every=0)


def test_looked_at_follows_the_references(any_custom: CustomContrast, cutout: Callable[[int], Cutout]) -> None:
    record = RecordConfig(looked_at=True)
    a, b = cutout(1), cutout(6)
    ab, ba, aa = (any_custom.subject(pair, "bear") for pair in ([a, b], [b, a], [a, a]))
    ab, ba, aa = (
        any_custom.generate(PROMPT, s, record=record, **FAST).looked_at[0].astype(float) for s in (ab, ba, aa)
    )
    assert np.allclose(ab, ba[:, :, :, ::-1], atol=1e-4), "references have no order"
    assert np.allclose(aa[:, :, :, 0], aa[:, :, :, 1], atol=1e-4)
    assert np.abs(ab[:, :, :, 0] - ab[:, :, :, 1]).max() > 3e-4


def test_ablations_look_too(tiny_base: BaseModel, cutout: Callable[[int], Cutout]) -> None:
    for flags in ({"textual": False, "tv_fusion": False}, {"tv_fusion": False, "sink": False}, {"sink": False}):
        custom = CustomContrast.from_parts(tiny_base, random_adapter(tiny_base, **flags))
        r = custom.generate(PROMPT, custom.subject(cutout(1), "bear"), record=RecordConfig(looked_at=True), **FAST)
        mass = r.looked_at[0].astype(np.float32).sum(axis=(-3, -2, -1))
        assert np.allclose(mass, r.visual_maps[:, :, 0].astype(np.float32).mean(axis=1), atol=3e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_records_what_float32_does(
    tiny_folder: Path, tiny_custom: CustomContrast, cutout: Callable[[int], Cutout], dtype: torch.dtype
) -> None:
    base = load_base("toyland", weights=tiny_folder, device="cpu", dtype=dtype)
    half = CustomContrast.from_parts(base, random_adapter(base).to(dtype))
    options = FAST | {"num_inference_steps": 1, "record": RecordConfig(looked_at=True, layers=(0, 2))}
    found, wanted = (
        custom.generate(
            "a bear and a cat",
            [custom.subject(cutout(1), "bear").placed(box=(0, 0, 0.5, 1)), custom.subject(cutout(2), "cat")],
            **options,
        )
        for custom in (half, tiny_custom)
    )
    for kind in ("text_maps", "visual_maps", "subject_maps"):
        assert np.abs(getattr(found, kind).astype(float) - getattr(wanted, kind).astype(float)).max() < 0.05
    for a, b in zip(found.looked_at, wanted.looked_at, strict=True):
        assert np.abs(a.astype(float) - b.astype(float)).max() < 0.02
    assert np.array_equal(found.location_masks[:, :, 0], wanted.location_masks[:, :, 0])
