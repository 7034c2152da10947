"""conditioning: the frozen encoders see exactly what stock code would, and S* where it belongs."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from customcontrast.attention import MapRecorder
from customcontrast.base_model import BaseModel
from customcontrast.conditioning.text_context import TextContext, encode_contexts, encode_prompt, subject_state
from tests.support.tiny_models import random_adapter

PROMPT = "a photo of a bear on the beach"


def s_star(base: BaseModel, batch: int, layers: int, n: int = 3, seed: int = 0) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    widths = [encoder.config.hidden_size for encoder in base.text_encoders]
    return [torch.randn(batch, layers, n, width) for width in widths]


def test_plain_text_equals_the_stock_encoder_to_the_bit(tiny_base: BaseModel) -> None:
    prompt = encode_prompt(tiny_base, PROMPT)
    context = encode_contexts(tiny_base, [prompt])
    assert context.hidden.shape == (1, 1, 32, 32) and context.pooled is None
    assert torch.equal(context.hidden[:, 0], tiny_base.text_encoders[0](prompt.ids[0][None])[0])


def test_plain_text_equals_the_sdxl_pipeline_to_the_bit(tiny_xl_base: BaseModel, tiny_xl_folder: object) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_xl_folder)
    hidden, _, pooled, _ = pipe.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False)
    context = encode_contexts(tiny_xl_base, [encode_prompt(tiny_xl_base, PROMPT)])
    assert torch.equal(context.hidden[:, 0], hidden)
    assert torch.equal(context.pooled, pooled)


def test_s_star_replaces_the_fillers_at_the_input(any_base: BaseModel) -> None:
    """Against the stock encoder with a hook on its token table, one (t, l) at a time."""
    prompt = encode_prompt(any_base, PROMPT, ["bear"], 3)
    tokens = s_star(any_base, 2, 4)
    context = encode_contexts(any_base, [prompt] * 2, [tokens], rows=3)
    for b, layer in ((0, 0), (1, 3)):
        parts = []
        for i, encoder in enumerate(any_base.text_encoders):

            def put(module, inputs, output, i=i, b=b, layer=layer):
                output = output.clone()
                output[:, prompt.positions[0]] = tokens[i][b, layer]
                return output

            handle = encoder.get_input_embeddings().register_forward_hook(put)
            out = encoder(prompt.ids[i][None], output_hidden_states=True)
            handle.remove()
            parts.append(out[0] if any_base.spec.hidden_layer == -1 else out.hidden_states[any_base.spec.hidden_layer])
        assert torch.allclose(context.hidden[b, layer], torch.cat(parts, dim=-1)[0], atol=1e-5)


def test_text_before_s_star_is_the_same_in_every_layer(any_base: BaseModel) -> None:
    prompt = encode_prompt(any_base, PROMPT, ["bear"], 3)
    hidden = encode_contexts(any_base, [prompt], [s_star(any_base, 1, 4)]).hidden[0]
    first = int(prompt.positions[0, 0])
    assert torch.allclose(hidden[0, :first], hidden[3, :first], atol=1e-5)
    assert not torch.allclose(hidden[0, first:], hidden[3, first:], atol=1e-2)


def test_several_subjects_each_at_its_place(any_base: BaseModel) -> None:
    prompt = encode_prompt(any_base, "a bear and a cat", ["bear", "cat"], 3)
    a, b = s_star(any_base, 1, 2, seed=1), s_star(any_base, 1, 2, seed=2)
    both = encode_contexts(any_base, [prompt], [a, b]).hidden
    other = encode_contexts(any_base, [prompt], [a, s_star(any_base, 1, 2, seed=3)]).hidden
    second = int(prompt.positions[1, 0])
    assert torch.equal(both[:, :, :second], other[:, :, :second])
    assert not torch.allclose(both[:, :, second:], other[:, :, second:])


def test_a_prompt_without_its_subject_ignores_s_star(any_base: BaseModel) -> None:
    with_subject = encode_prompt(any_base, PROMPT, ["bear"], 3)
    without = encode_prompt(any_base, PROMPT)
    without = type(without)(without.ids, torch.full((1, 3), -1), without.tokens, without.words, without.text)
    context = encode_contexts(any_base, [with_subject, without], [s_star(any_base, 2, 4)])
    plain = encode_contexts(any_base, [without])
    assert torch.allclose(context.hidden[1], plain.hidden[0].expand(4, -1, -1), atol=1e-5)


def test_gradients_reach_s_star_and_nothing_frozen(any_base: BaseModel) -> None:
    prompt = encode_prompt(any_base, PROMPT, ["bear"], 3)
    tokens = [t.requires_grad_() for t in s_star(any_base, 1, 4)]
    context = encode_contexts(any_base, [prompt], [tokens])
    context.hidden.square().mean().backward()
    assert all((t.grad.abs().amax(dim=(0, 2, 3)) > 0).all() for t in tokens), "in every layer"
    assert all(p.grad is None for encoder in any_base.text_encoders for p in encoder.parameters())


def test_pooled_text_is_the_mean_over_layers(tiny_xl_base: BaseModel) -> None:
    prompt = encode_prompt(tiny_xl_base, PROMPT, ["bear"], 3)
    tokens = s_star(tiny_xl_base, 1, 4)
    pooled = encode_contexts(tiny_xl_base, [prompt], [tokens]).pooled
    each = [encode_contexts(tiny_xl_base, [prompt], [[t[:, i : i + 1] for t in tokens]]).pooled for i in range(4)]
    assert torch.allclose(pooled, torch.stack(each).mean(dim=0), atol=1e-5)


def test_rows_in_chunks_are_the_same(any_base: BaseModel) -> None:
    prompts = [encode_prompt(any_base, text, ["bear"], 3) for text in (PROMPT, "a bear", "the red bear in a city")]
    tokens = s_star(any_base, 3, 4)
    a, b = (encode_contexts(any_base, prompts, [tokens], rows=rows) for rows in (5, 64))
    assert torch.allclose(a.hidden, b.hidden, atol=1e-5)


@pytest.mark.parametrize("repeat", [1, 3])
def test_state_rows_and_added_conditions(any_base: BaseModel, repeat: int) -> None:
    adapter = random_adapter(any_base)
    torch.manual_seed(0)
    out = adapter(tuple(torch.randn(2, 10, 24) for _ in range(3)), torch.tensor([1, 900]))
    prompts = [encode_prompt(any_base, text, ["bear"], 3) for text in (PROMPT, "a red bear")]
    context = encode_contexts(any_base, prompts, [out.mfi.text_tokens])
    empty = encode_contexts(any_base, [encode_prompt(any_base, "")] * 2)
    state = subject_state(
        any_base, context, prompts, [out], size=(8, 12), unconditional=empty, repeat=repeat, recorder=MapRecorder()
    )
    assert state.first == 2 * repeat
    assert state.context(3).shape[0] == 4 * repeat
    assert state.branches[0].keys[0].shape[:2] == (2 * repeat, 4), "n + 1 keys with the sink"
    assert state.positions().shape == (2 * repeat, 1, 32)
    assert torch.equal(state.positions()[0, 0].nonzero().flatten(), prompts[0].positions[0])
    if any_base.spec.pooled:
        assert state.added_conditions["text_embeds"].shape == (4 * repeat, 24)
        assert state.added_conditions["time_ids"][0].tolist() == [32, 48, 0, 0, 32, 48]


def test_row_takes_one_of_many() -> None:
    context = TextContext(torch.arange(6.0).view(3, 1, 2, 1), torch.arange(3.0)[:, None])
    assert torch.equal(context.row(1).hidden, context.hidden[1:2]) and context.row(1).pooled.tolist() == [[1.0]]
