"""attention in one layer: Eq. 3 against a plain loop, the sink, masks, several subjects, kept keys, recording."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from customcontrast.attention import (
    MapRecorder,
    SubjectBranch,
    SubjectState,
    aggregate,
    install_processors,
)
from customcontrast.attention.state import level_size
from customcontrast.base_model import BaseModel
from customcontrast.config import LocationConfig

LAYER = 1  # of the tiny base: level 1, 32 channels, 2 heads
S, N_TOKENS = 6, 3


@pytest.fixture
def attn(tiny_base: BaseModel) -> torch.nn.Module:
    install_processors(tiny_base.unet)
    return tiny_base.unet.get_submodule(tiny_base.cross_attention_names[LAYER])


def branch(
    seed: int, rows: int, places: Sequence[int], strength: float | Tensor = 1.0, sink: bool = True
) -> SubjectBranch:
    """A subject with random K_v, V_v for layers 0 and LAYER, S* at `places`."""
    torch.manual_seed(seed)
    count = N_TOKENS + sink
    keys, values = torch.randn(2, rows, count, 32), torch.randn(2, rows, count, 32)
    if sink:
        values[:, :, 0] = 0
    positions = torch.zeros(rows, S)
    positions[:, list(places)] = 1
    return SubjectBranch(list(keys), list(values), positions, strength, sink)


def state_of(branches: Sequence[SubjectBranch], size: tuple[int, int] = (6, 8), **options: object) -> SubjectState:
    torch.manual_seed(9)
    return SubjectState((torch.randn(1, 2, S, 32), torch.randn(2, 2, S, 32)), size, tuple(branches), first=1, **options)


def hidden_for(state: SubjectState, rows: int = 3) -> Tensor:
    h, w = level_size(state.size, 1)
    torch.manual_seed(5)
    return torch.randn(rows, h * w, 32)


def plain_eq_3(attn: torch.nn.Module, Z: Tensor, state: SubjectState, where: Tensor | None) -> Tensor:
    """Eq. 3 for every row, head and pixel, from its formula. where: (R, K, pixels) or None."""
    heads, c = attn.heads, 32 // attn.heads
    out = torch.zeros_like(Z)
    context = torch.cat([group[:, LAYER] for group in state.text])
    for row in range(len(Z)):
        Q, K_t, V_t = attn.to_q(Z[row]), attn.to_k(context[row]), attn.to_v(context[row])
        R = row - state.first
        for head in range(heads):
            part = slice(head * c, (head + 1) * c)
            for pixel in range(len(Q)):
                probability = torch.softmax(K_t[:, part] @ Q[pixel, part] / math.sqrt(c), dim=0)
                if R >= 0 and where is not None and state.masks is not None and state.location.mask_text:
                    factor = torch.ones(S)
                    for k, subject in enumerate(state.branches):
                        if not subject.masked:
                            continue
                        factor = factor * torch.where(subject.positions[R] > 0, where[R, k, pixel], 1.0)
                    probability = probability * factor / (probability * factor).sum()
                total = probability @ V_t[:, part]
                for k, subject in enumerate(state.branches if R >= 0 else ()):
                    K_v, V_v = subject.keys[LAYER][R], subject.values[LAYER][R]
                    seen = torch.softmax(K_v[:, part] @ Q[pixel, part] / math.sqrt(c), dim=0) @ V_v[:, part]
                    scale = 1.0 if where is None else where[R, k, pixel]
                    lam = subject.strength[R] if isinstance(subject.strength, Tensor) else subject.strength
                    total = total + lam * scale * seen
                out[row, pixel, part] = total
    return attn.to_out[0](out)


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("lam", [1.0, 0.4, torch.tensor([0.0, 2.0])])
def test_eq_3_against_a_plain_loop(attn: torch.nn.Module, lam: float | Tensor, recording: bool) -> None:
    state = state_of([branch(1, 2, [2, 3], lam)], recorder=MapRecorder() if recording else None)
    Z = hidden_for(state)
    assert torch.allclose(attn(Z, encoder_hidden_states=state), plain_eq_3(attn, Z, state, None), atol=1e-5)


@pytest.mark.parametrize("recording", [False, True])
def test_masked_eq_3_with_two_subjects_against_a_plain_loop(attn: torch.nn.Module, recording: bool) -> None:
    """Multiply the S* columns and renormalise the row; multiply each visual branch by its own mask."""
    torch.manual_seed(0)
    masks = torch.rand(2, 2, 3, 4)
    masks[:, :, 1] = 0
    recorder = MapRecorder() if recording else None
    state = state_of([branch(1, 2, [2, 3]), branch(2, 2, [5], 0.5)], masks=masks, recorder=recorder)
    Z = hidden_for(state)
    assert torch.allclose(attn(Z, encoder_hidden_states=state), plain_eq_3(attn, Z, state, masks.flatten(2)), atol=1e-5)


def test_before_masks_subjects_share_pixels_by_their_text_maps(attn: torch.nn.Module) -> None:
    state = state_of([branch(1, 2, [2, 3]), branch(2, 2, [5])])
    Z, recorder = hidden_for(state), MapRecorder()
    attn(Z, encoder_hidden_states=replace(state, recorder=recorder))
    maps = recorder.mean("subject").flatten(2)
    scaled = (maps - maps.amin(-1, keepdim=True)) / (maps.amax(-1, keepdim=True) - maps.amin(-1, keepdim=True))
    expected = plain_eq_3(attn, Z, state, scaled.softmax(dim=1))
    assert torch.allclose(attn(Z, encoder_hidden_states=state), expected, atol=1e-5)


def test_a_subject_without_a_mask_beside_one_that_has(attn: torch.nn.Module) -> None:
    """Its S* columns stay as they are, and its branch has its part of the text maps' softmax."""
    torch.manual_seed(0)
    masks = torch.rand(2, 2, 3, 4)
    a, b = branch(1, 2, [2, 3]), replace(branch(2, 2, [5]), masked=False)
    Z, recorder = hidden_for(state_of([a, b])), MapRecorder()
    attn(Z, encoder_hidden_states=state_of([a, b], recorder=recorder))
    maps = recorder.mean("subject").flatten(2)
    low, high = maps.amin(-1, keepdim=True), maps.amax(-1, keepdim=True)
    where = ((maps - low) / (high - low)).softmax(dim=1)
    where[:, 0] = masks[:, 0].flatten(1)
    state = state_of([a, b], masks=masks)
    assert torch.allclose(attn(Z, encoder_hidden_states=state), plain_eq_3(attn, Z, state, where), atol=1e-5)
    other = masks.clone()
    other[:, 1] = 0
    assert torch.equal(
        attn(Z, encoder_hidden_states=state_of([a, b], masks=other)), attn(Z, encoder_hidden_states=state)
    )


def test_recorded_maps_are_the_attention_that_was_used(attn: torch.nn.Module) -> None:
    """Text: probs @ V equals the fused output. Visual: the mass on the subject's tokens, null key left out."""
    state = state_of([branch(1, 2, [2, 3])], recorder=MapRecorder(tokens=S))
    Z = hidden_for(state)
    attn(Z, encoder_hidden_states=state)
    c = 32 // attn.heads
    Q, K = attn.to_q(Z[1:]), attn.to_k(state.text[1][:, LAYER])
    K_v = state.branches[0].keys[LAYER]
    text, mass = 0, 0
    for head in range(attn.heads):
        part = slice(head * c, (head + 1) * c)
        text = text + torch.softmax(Q[..., part] @ K[..., part].mT / math.sqrt(c), -1) / attn.heads
        mass = mass + torch.softmax(Q[..., part] @ K_v[..., part].mT / math.sqrt(c), -1)[..., 1:].sum(-1) / attn.heads
    recorder = state.recorder
    assert torch.allclose(recorder.mean("text").flatten(2).mT, text, atol=1e-5)
    assert torch.allclose(recorder.mean("subject")[:, 0].flatten(1), text[..., 2:4].sum(-1), atol=1e-5)
    assert torch.allclose(recorder.mean("visual")[:, 0].flatten(1), mass, atol=1e-5)


def test_sink_takes_the_mass_and_gives_nothing(attn: torch.nn.Module) -> None:
    subject = branch(1, 2, [2])
    state = state_of([subject], recorder=MapRecorder())
    Z = hidden_for(state)
    attn(Z, encoder_hidden_states=state)
    mass = state.recorder.mean("visual")
    assert (mass > 0).all() and (mass < 1).all()

    for key in subject.keys:
        key[:, 0] = 0
        key[:, 1:] = 0
    even = replace(state, recorder=MapRecorder())
    attn(Z, encoder_hidden_states=even)
    assert torch.allclose(even.recorder.mean("visual"), torch.full_like(mass, N_TOKENS / (N_TOKENS + 1)))

    without = state_of([branch(1, 2, [2], sink=False)], recorder=MapRecorder())
    attn(Z, encoder_hidden_states=without)
    assert without.recorder.mean("visual") is None, "without a sink the mass is 1 everywhere and says nothing"


def test_masks_of_ones_change_nothing_and_zeros_remove_the_subject(attn: torch.nn.Module) -> None:
    state = state_of([branch(1, 2, [2, 3])])
    Z = hidden_for(state)
    free = attn(Z, encoder_hidden_states=state)
    ones = attn(Z, encoder_hidden_states=replace(state, masks=torch.ones(2, 1, 5, 5)))
    assert torch.allclose(free, ones, atol=1e-6)

    text_only = LocationConfig(mask_text=False)
    zeros = attn(Z, encoder_hidden_states=replace(state, masks=torch.zeros(2, 1, 5, 5), location=text_only))
    bare = attn(Z, encoder_hidden_states=replace(state, branches=()))
    assert torch.allclose(zeros, bare, atol=1e-6)

    both = attn(Z, encoder_hidden_states=replace(state, masks=torch.zeros(2, 1, 5, 5)))
    assert torch.equal(both[0], bare[0]), "the unconditional row has no mask"
    assert not torch.allclose(both[1:], bare[1:], atol=1e-3), "S* is out of the text too"


@torch.no_grad()
def test_lambda_zero_is_the_text_attention_to_the_bit(attn: torch.nn.Module) -> None:
    state = state_of([branch(1, 2, [2, 3], 0.0)], recorder=MapRecorder(S))
    Z = hidden_for(state)
    context = torch.cat([group[:, LAYER] for group in state.text])
    assert torch.equal(attn(Z, encoder_hidden_states=state), attn(Z, encoder_hidden_states=context))


def test_swapping_two_subjects_swaps_their_maps_and_nothing_else(attn: torch.nn.Module) -> None:
    a, b = branch(1, 2, [2, 3]), branch(2, 2, [5])
    torch.manual_seed(0)
    masks = torch.rand(2, 2, 3, 4)
    one = state_of([a, b], masks=masks, recorder=MapRecorder())
    two = state_of([b, a], masks=masks.flip(1), recorder=MapRecorder())
    Z = hidden_for(one)
    assert torch.allclose(attn(Z, encoder_hidden_states=one), attn(Z, encoder_hidden_states=two), atol=1e-5)
    assert torch.allclose(aggregate(one.recorder), aggregate(two.recorder).flip(1), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recording_changes_no_bit(attn: torch.nn.Module, masked: bool, dtype: torch.dtype) -> None:
    attn = copy.deepcopy(attn).to(dtype)
    torch.manual_seed(0)
    masks = torch.rand(2, 2, 3, 4) if masked else None
    state = state_of([branch(1, 2, [2, 3]), branch(2, 2, [5], 0.5)], masks=masks)
    state = replace(state, text=tuple(group.to(dtype) for group in state.text))
    Z = hidden_for(state).to(dtype)
    found = attn(Z, encoder_hidden_states=replace(state, recorder=MapRecorder(S)))
    assert torch.equal(found, attn(Z, encoder_hidden_states=state))


@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize("steady", [(True, False), (True, True), (False, False), ()])
def test_kept_text_keys_are_those_computed_anew(attn: torch.nn.Module, repeat: int, steady: tuple[bool, ...]) -> None:
    """Over two steps of a run whose second group changes unless it is said to be steady."""
    torch.manual_seed(4)
    empty, one, two = torch.randn(1, 1, S, 32), torch.randn(1, 2, S, 32), torch.randn(1, 2, S, 32)
    h, w = level_size((6, 8), 1)
    Z, kept = torch.randn(2 * repeat, h * w, 32), {}
    for text in (one, one if steady == (True, True) else two):
        plain = SubjectState((empty, text), (6, 8), repeat=repeat)
        found = attn(Z, encoder_hidden_states=replace(plain, steady=steady, projected=kept))
        assert torch.allclose(found, attn(Z, encoder_hidden_states=plain), atol=1e-6)
    assert set(kept) == ({LAYER} if True in steady else set())


def test_a_wrong_number_of_pixels_gets_a_sentence(attn: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="halved 1 times"):
        attn(torch.randn(3, 11, 32), encoder_hidden_states=state_of([]))
