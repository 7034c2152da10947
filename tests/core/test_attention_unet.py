"""attention in a whole UNet: layers in order, maps of any size, gradients, and the untouched text-only path."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from customcontrast.adapter import Adapter
from customcontrast.attention import (
    MapRecorder,
    SubjectProcessor,
    SubjectState,
    aggregate,
    install_processors,
    unet_forward,
)
from customcontrast.attention.layers import SubjectAttention
from customcontrast.attention.state import level_size
from customcontrast.base_model import BaseModel, encoder_config
from customcontrast.conditioning.text_context import encode_contexts, encode_prompt, subject_state
from tests.support.tiny_models import random_adapter
from train.common.true_models import UNETS


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


@torch.no_grad()
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


@pytest.mark.parametrize("lengths", [None, (8, 6)])
def test_one_attention_for_output_and_maps_is_two(any_base: BaseModel, lengths: tuple[int, ...] | None) -> None:
    """With gradients the text's weights serve both; without, outputs are fused and maps are made beside them."""
    adapter, found = random_adapter(any_base), []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            recorder = MapRecorder(tokens=5)
            z, t, state, _ = prepared(any_base, adapter, (16, 16), recorder)
            state = replace(state, lengths=None if lengths is None else torch.tensor(lengths))
            prediction = unet_forward(any_base, z, t, state)
            found.append([prediction, aggregate(recorder), recorder.mean("text")])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


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


def test_wrong_sizes_get_a_sentence(tiny_base: BaseModel) -> None:
    z, t, state, _ = prepared(tiny_base, random_adapter(tiny_base), (8, 8))
    with pytest.raises(ValueError, match=r"state.size"):
        unet_forward(tiny_base, z[..., :4], t, state)
    with pytest.raises(ValueError, match="contexts for 2"):
        unet_forward(tiny_base, z[:1], t, state)
    config = replace(encoder_config(tiny_base), num_layers=3)
    with pytest.raises(ValueError, match="4 cross-attention layers"):
        SubjectAttention(config, tiny_base.cross_attention_layers)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (UNETS["sd15"], {(320, 0): 5, (640, 1): 5, (1280, 2): 5, (1280, 3): 1}),
        (UNETS["sdxl"], {(640, 1): 10, (1280, 2): 60}),
    ],
)
def test_layers_of_the_true_models(config: dict[str, object], found: dict[tuple[int, int], int]) -> None:
    """Widths and levels of all cross-attention layers, at true size on the meta device."""
    with torch.device("meta"):
        specs = install_processors(UNet2DConditionModel(**config))
    assert Counter((spec.width, spec.level) for spec in specs) == found
