"""attention: Eq. 3 against a plain loop, the sink, masks, several subjects, and the untouched text-only path."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from conftest import random_adapter
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from customcontrast.attention import (
    MapRecorder,
    SubjectBranch,
    SubjectProcessor,
    SubjectState,
    aggregate,
    install_processors,
    unet_forward,
)
from customcontrast.attention.layers import SubjectAttention
from customcontrast.attention.state import level_size
from customcontrast.bases import BaseModel, encoder_config
from customcontrast.checkpoint import Adapter
from customcontrast.conditioning import encode_contexts, encode_prompt, subject_state
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


# ---- the whole UNet ---------------------------------------------------------------------------------


def prepared(base: BaseModel, adapter: Adapter, size: tuple[int, int], recorder: MapRecorder | None = None) -> tuple:
    """z, t, state for a batch of two samples, as in training."""
    install_processors(base.unet)
    torch.manual_seed(0)
    out = adapter(tuple(torch.randn(2, 10, 24) for _ in range(3)), torch.tensor([20, 800]))
    n = adapter.config.placeholder_tokens
    prompts = [encode_prompt(base, text, ["bear"], n) for text in ("a bear on the beach", "the photo of a bear")]
    context = encode_contexts(base, prompts, [out.mfi.text_tokens])
    z = torch.randn(2, base.unet.config.in_channels, *size)
    return z, torch.tensor([20, 800]), subject_state(base, context, prompts, [out], size=size, recorder=recorder), out


def test_layers_are_numbered_in_execution_order(any_base: BaseModel) -> None:
    install_processors(any_base.unet)
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in any_base.unet.named_modules()
        if name.endswith("attn2")
    ]
    recorder = MapRecorder()
    z, t, state, _ = prepared(any_base, random_adapter(any_base), (16, 16), recorder)
    unet_forward(any_base, z, t, state)
    for handle in handles:
        handle.remove()
    assert ran == any_base.cross_attention_names
    processors = [any_base.unet.get_submodule(name).processor for name in ran]
    assert [processor.layer for processor in processors] == list(range(len(ran)))
    assert recorder._seen == {(kind, i) for i in range(len(ran)) for kind in ("subject", "visual")}


def test_every_layer_reads_its_own_context(tiny_base: BaseModel) -> None:
    z, t, state, _ = prepared(tiny_base, random_adapter(tiny_base), (8, 8))
    before = unet_forward(tiny_base, z, t, replace(state, branches=()))
    for layer in range(len(tiny_base.cross_attention_names)):
        text = state.text[0].clone()
        text[:, layer] += 1
        assert not torch.equal(before, unet_forward(tiny_base, z, t, replace(state, text=(text,), branches=())))


def test_text_only_path_is_diffusers_own_to_the_bit(any_base: BaseModel) -> None:
    stock = copy.deepcopy(any_base.unet)
    stock.set_attn_processor(AttnProcessor2_0())
    install_processors(any_base.unet)
    torch.manual_seed(0)
    z = torch.randn(2, stock.config.in_channels, 8, 8)
    text = torch.randn(2, 7, stock.config.cross_attention_dim)
    added = any_base.added_conditions(torch.randn(2, 24), 64, 64)
    results = [u(z, 5, encoder_hidden_states=text, added_cond_kwargs=added).sample for u in (stock, any_base.unet)]
    assert torch.equal(*results)
    state = SubjectState((text[:, None],), (8, 8), recorder=MapRecorder(7), added_conditions=added)
    assert torch.equal(results[0], unet_forward(any_base, z, 5, state)), "recording changes nothing"


def test_processors_hold_no_weights_and_are_set_once(tiny_base: BaseModel) -> None:
    before = set(tiny_base.unet.state_dict())
    install_processors(tiny_base.unet)
    first = [tiny_base.unet.get_submodule(name).processor for name in tiny_base.cross_attention_names]
    install_processors(tiny_base.unet)
    assert set(tiny_base.unet.state_dict()) == before
    assert all(isinstance(processor, SubjectProcessor) for processor in first)
    assert first == [tiny_base.unet.get_submodule(name).processor for name in tiny_base.cross_attention_names]


@pytest.mark.parametrize("size", [(8, 12), (12, 8), (5, 9), (16, 24)])
def test_maps_keep_height_and_width(any_base: BaseModel, size: tuple[int, int]) -> None:
    recorder = MapRecorder(4)
    z, t, state, _ = prepared(any_base, random_adapter(any_base), size, recorder)
    assert unet_forward(any_base, z, t, state).shape == z.shape
    levels = {layer.level for layer in any_base.cross_attention_layers}
    assert set(recorder.sums) == {level_size(size, level) for level in levels}
    assert aggregate(recorder).shape == (2, 1, *level_size(size, min(levels)))


def test_gradients_reach_everything_trained_and_nothing_frozen(any_base: BaseModel) -> None:
    adapter = random_adapter(any_base).requires_grad_(True)
    recorder = MapRecorder()
    z, t, state, out = prepared(any_base, adapter, (8, 8), recorder)
    loss = unet_forward(any_base, z, t, state).square().mean() + aggregate(recorder).mean()
    (loss + out.mfi.text_cls.mean() + out.mfi.visual_cls.mean()).backward()
    silent = [name for name, p in adapter.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    for model in (any_base.unet, *any_base.text_encoders, any_base.image_encoder, any_base.vae):
        assert all(p.grad is None for p in model.parameters())


def test_location_loss_alone_trains_keys_null_keys_and_s_star(tiny_base: BaseModel) -> None:
    adapter = random_adapter(tiny_base).requires_grad_(True)
    recorder = MapRecorder()
    z, t, state, _ = prepared(tiny_base, adapter, (8, 8), recorder)
    unet_forward(tiny_base, z, t, state)
    aggregate(recorder).mean().backward()
    trained = {name for name, p in adapter.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"attention.to_k.0.weight", "attention.null_key.0", "encoder.text_heads.0.weight"} <= trained


def test_gradient_checkpointing_gives_the_same_maps_and_gradients(tiny_base: BaseModel) -> None:
    found = []
    for checkpointing in (False, True):
        base = replace(tiny_base, unet=copy.deepcopy(tiny_base.unet).train())
        if checkpointing:
            base.unet.enable_gradient_checkpointing()
        adapter = random_adapter(tiny_base).requires_grad_(True)
        recorder = MapRecorder()
        z, t, state, _ = prepared(base, adapter, (8, 8), recorder)
        (unet_forward(base, z, t, state).square().mean() + aggregate(recorder).mean()).backward()
        found.append((aggregate(recorder).detach(), adapter.attention.to_k[0].weight.grad))
    assert torch.allclose(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


@pytest.mark.parametrize("flags", [{"textual": False, "tv_fusion": False}, {"tv_fusion": False}, {"sink": False}])
def test_ablations_run_through_the_same_code(any_base: BaseModel, flags: dict[str, bool]) -> None:
    recorder = MapRecorder()
    adapter = random_adapter(any_base, **flags)
    z, t, state, _ = prepared(any_base, adapter, (8, 8), recorder)
    unet_forward(any_base, z, t, state)
    kinds = {kind for kind, _ in recorder._seen}
    assert kinds == {"visual", "subject"} - ({"subject"} if "textual" in flags else set()) - (
        {"visual"} if "sink" in flags else set()
    )


def test_wrong_sizes_get_a_sentence(tiny_base: BaseModel, attn: torch.nn.Module) -> None:
    z, t, state, _ = prepared(tiny_base, random_adapter(tiny_base), (8, 8))
    with pytest.raises(ValueError, match="state.size"):
        unet_forward(tiny_base, z[..., :4], t, state)
    with pytest.raises(ValueError, match="contexts for 2"):
        unet_forward(tiny_base, z[:1], t, state)
    with pytest.raises(ValueError, match="halved 1 times"):
        attn(torch.randn(3, 11, 32), encoder_hidden_states=state_of([]))
    config = replace(encoder_config(tiny_base), num_layers=3)
    with pytest.raises(ValueError, match="7 cross-attention layers"):
        SubjectAttention(config, tiny_base.cross_attention_layers)


SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (SD15, {(320, 0): 5, (640, 1): 5, (1280, 2): 5, (1280, 3): 1}),
        (SDXL, {(640, 1): 10, (1280, 2): 60}),
    ],
)
def test_layers_of_the_true_models(config: dict[str, object], found: dict[tuple[int, int], int]) -> None:
    """Widths and levels of all cross-attention layers, at true size on the meta device."""
    with torch.device("meta"):
        specs = install_processors(UNet2DConditionModel(**config))
    assert Counter((spec.width, spec.level) for spec in specs) == found
