"""text_encoder: rows that share what they can give the numbers of rows computed in full."""

from __future__ import annotations

import pytest
import torch

from customcontrast.base_model import BaseModel
from customcontrast.conditioning.prompt import TokenizedPrompt
from customcontrast.conditioning.text_context import TextContext, encode_contexts, encode_prompt

ONE, TWO = ("a photo of a bear on the beach", ["bear"]), ("a bear and a red cat in a city", ["bear", "cat"])


def s_star(base: BaseModel, steps: int, layers: int, subjects: int) -> list[list[torch.Tensor]]:
    torch.manual_seed(3)
    widths = [encoder.config.hidden_size for encoder in base.text_encoders]
    return [[torch.randn(steps, layers, 3, width) for width in widths] for _ in range(subjects)]


def both_ways(
    base: BaseModel, prompt: TokenizedPrompt, tokens: list[list[torch.Tensor]], rows: int | None = None
) -> tuple[TextContext, TextContext]:
    prompts = [prompt] * len(tokens[0][0])
    return tuple(encode_contexts(base, prompts, tokens, rows=rows, shared=shared) for shared in (True, False))


@pytest.mark.parametrize("rows", [None, 1, 5, 1000])
@pytest.mark.parametrize(("text", "nouns"), [ONE, TWO, ("", ["bear"]), ("a bear " + "red " * 60, ["bear"])])
def test_shared_rows_equal_plain_rows(any_base: BaseModel, text: str, nouns: list[str], rows: int | None) -> None:
    """To 1e-4 in float32: hidden states of one and of two text encoders, and the pooled text."""
    prompt = encode_prompt(any_base, text, nouns, 3)
    fast, plain = both_ways(any_base, prompt, s_star(any_base, 3, 4, len(nouns)), rows)
    assert fast.hidden.shape == plain.hidden.shape == (3, 4, 32, any_base.unet.config.cross_attention_dim)
    assert (fast.hidden - plain.hidden).abs().max() < 1e-4
    assert plain.hidden.std(dim=(0, 1))[int(prompt.positions.min()) :].min() > 0, "every row has its own S*"
    if any_base.spec.pooled:
        assert (fast.pooled - plain.pooled).abs().max() < 1e-4 and plain.pooled.std() > 0.01


def test_a_subject_without_a_place_is_ignored(any_base: BaseModel) -> None:
    prompt = encode_prompt(any_base, *TWO, 3)
    positions = prompt.positions.clone()
    positions[1] = -1
    ids = encode_prompt(any_base, TWO[0], ["bear"], 3)
    prompt = TokenizedPrompt(ids.ids, positions, ids.tokens, ids.words, ids.text)
    fast, plain = both_ways(any_base, prompt, s_star(any_base, 2, 4, 2))
    assert torch.allclose(fast.hidden, plain.hidden, atol=1e-4)


def test_gradients_of_both_ways_agree(any_base: BaseModel) -> None:
    prompt = encode_prompt(any_base, *ONE, 3)
    found = []
    for shared in (True, False):
        tokens = [[t.requires_grad_() for t in s_star(any_base, 1, 4, 1)[0]]]
        context = encode_contexts(any_base, [prompt], tokens, shared=shared)
        loss = context.hidden.square().mean() + (0 if context.pooled is None else context.pooled.square().mean())
        loss.backward()
        found.append([t.grad for t in tokens[0]])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-5) and a.abs().max() > 0


def test_less_is_computed(any_base: BaseModel) -> None:
    """Tokens that go through the first layer's query projection, and rows through the last layer of each encoder."""
    prompt = encode_prompt(any_base, *ONE, 3)
    tokens, first = s_star(any_base, 2, 4, 1), int(prompt.positions.min())
    seen: dict[str, int] = {}

    def count(name: str):
        def hook(module, inputs, output):
            seen[name] = seen.get(name, 0) + output.shape[0] * output.shape[1]

        return hook

    encoder = any_base.text_encoders[-1]
    layers = getattr(encoder, "text_model", encoder).encoder.layers
    handles = [
        layers[0].self_attn.q_proj.register_forward_hook(count("first")),
        layers[-1].mlp.register_forward_hook(count("last")),
    ]
    encode_contexts(any_base, [prompt] * 2, tokens)
    for handle in handles:
        handle.remove()
    assert seen["first"] == 32 + 2 * 4 * 3, "the prompt once, and each row's S*"
    per_row = 1 if any_base.spec.pooled else 32 - first
    assert seen["last"] == first + 2 * 4 * per_row
