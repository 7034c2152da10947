"""Texts without padding: contexts as long as the prompt give what the whole length with its padding masked gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from customcontrast.attention import MapRecorder, install_processors, unet_forward
from customcontrast.base_model import BaseModel
from customcontrast.conditioning.text_context import encode_contexts, encode_prompt, joined, subject_state
from tests.support.tiny_models import random_adapter

SHORT, LONG = "a cat", "a photo of a bear on the beach at night"
SIZE = (8, 8)


@pytest.fixture
def masking(tiny_base: BaseModel) -> BaseModel:
    """The tiny base as one that was trained without padding."""
    return replace(tiny_base, masks_padding=True)


def reference(base: BaseModel, z: torch.Tensor, prompts: list) -> torch.Tensor:
    """diffusers' own UNet on full-length contexts with an attention mask."""
    ids = torch.stack([prompt.ids[0] for prompt in prompts])
    mask = torch.arange(ids.shape[1]) <= torch.tensor([prompt.end for prompt in prompts])[:, None]
    context = base.text_encoders[0](ids)[0]
    own = base.unet.attn_processors
    base.unet.set_attn_processor(AttnProcessor())
    try:
        return base.unet(z, 500, context, encoder_attention_mask=mask).sample
    finally:
        base.unet.set_attn_processor(dict(own))


@torch.no_grad()
def test_two_lengths_in_one_call_equal_diffusers_with_a_mask(masking: BaseModel) -> None:
    install_processors(masking.unet)
    prompts = [encode_prompt(masking, text) for text in (SHORT, LONG)]
    z = torch.randn(2, 8, *SIZE)
    context = encode_contexts(masking, prompts)
    assert context.lengths.tolist() == [p.end + 1 for p in prompts] and context.hidden.shape[2] == prompts[1].end + 1
    state = subject_state(masking, context, prompts, size=SIZE)
    ours, theirs = unet_forward(masking, z, torch.tensor(500), state), reference(masking, z, prompts)
    assert torch.allclose(ours, theirs, atol=1e-5)
    padded = subject_state(masking, replace(context, lengths=None), prompts, size=SIZE)
    assert not torch.allclose(unet_forward(masking, z, torch.tensor(500), padded), theirs, atol=1e-3)  # zeros seen


@torch.no_grad()
def test_guidance_of_a_short_and_a_long_prompt(masking: BaseModel) -> None:
    """The empty prompt in front is shorter than the prompt: each row is what it is alone."""
    install_processors(masking.unet)
    prompt, empty = encode_prompt(masking, LONG), encode_prompt(masking, "")
    z, t = torch.randn(2, 8, *SIZE), torch.tensor(500)
    contexts = [encode_contexts(masking, [p]) for p in (empty, prompt)]
    state = subject_state(masking, contexts[1], [prompt], size=SIZE, unconditional=contexts[0])
    both = unet_forward(masking, z, t, state)
    for row, (context, own) in enumerate(zip(contexts, (empty, prompt), strict=True)):
        alone = unet_forward(masking, z[row : row + 1], t, subject_state(masking, context, [own], size=SIZE))
        assert torch.allclose(both[row : row + 1], alone, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
def test_s_plus_of_a_trimmed_prompt_is_that_of_the_whole(
    masking: BaseModel, tiny_base: BaseModel, shared: bool
) -> None:
    prompt = encode_prompt(masking, "a <bear> on the beach", ["bear"], 3)
    tokens = [torch.randn(2, 7, 3, 32)]
    whole = encode_contexts(tiny_base, [prompt] * 2, [tokens], shared=shared)
    trimmed = encode_contexts(masking, [prompt] * 2, [tokens], shared=shared)
    assert whole.lengths is None and trimmed.hidden.shape[2] == prompt.end + 1
    assert torch.allclose(trimmed.hidden, whole.hidden[:, :, : prompt.end + 1], atol=1e-5)


@torch.no_grad()
def test_maps_give_nothing_to_padding(masking: BaseModel) -> None:
    adapter = random_adapter(masking)
    install_processors(masking.unet)
    prompts = [encode_prompt(masking, text, ["cat" if "cat" in text else "bear"], 3) for text in ("a <cat>", f"{LONG}")]
    states = tuple(torch.randn(2, 10, 24) for _ in masking.image_layers)
    out = adapter(states, torch.tensor([500, 500]))
    context = encode_contexts(masking, prompts, [out.mfi.text_tokens])
    recorder = MapRecorder(tokens=prompts[1].end + 1)
    state = subject_state(masking, context, prompts, [out], size=SIZE, recorder=recorder)
    unet_forward(masking, torch.randn(2, 8, *SIZE), torch.tensor([500, 500]), state)
    maps = recorder.mean("text", (4, 4))  # (B, S, h, w)
    assert torch.allclose(maps.sum(1), torch.ones(2, 4, 4), atol=1e-4)
    assert maps[0, prompts[0].end + 1 :].abs().max() < 1e-6 < maps[0, prompts[0].end].min()


def test_joining_pads_to_the_longest_and_keeps_lengths(masking: BaseModel) -> None:
    parts = [encode_contexts(masking, [encode_prompt(masking, text)]) for text in (SHORT, LONG)]
    both = joined(parts)
    assert both.lengths.tolist() == [len(p.hidden[0, 0]) for p in parts] and len(both.hidden) == 2
    first = both.rows(torch.tensor([1, 0])).row(1)
    assert torch.equal(first.hidden[:, :, : len(parts[0].hidden[0, 0])], parts[0].hidden)
