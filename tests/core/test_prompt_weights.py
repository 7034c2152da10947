"""prompt_weights: how a weight is read, what it does to every context, and that it is compel's rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from customcontrast.base_model import BaseModel
from customcontrast.conditioning.conditioner import Conditioner
from customcontrast.conditioning.prompt import guess_noun, parse_prompt, words_of_each
from customcontrast.conditioning.prompt_weights import weighted
from customcontrast.conditioning.text_context import TextContext, encode_contexts, encode_prompt
from customcontrast.pipeline import CustomContrast

T = torch.tensor([900, 300])


def marked(prompt: str, nouns: list[str] | None = None) -> str:
    """The words of a parsed prompt, those with a weight as word/weight."""
    words = parse_prompt(prompt, nouns or []).words
    return " ".join(word.text if word.weight == 1 else f"{word.text}/{word.weight:g}" for word in words)


@pytest.mark.parametrize(
    ("prompt", "nouns", "words"),
    [
        ("a (red:1.3) bear", [], "a red/1.3 bear"),
        ("a (big red bear:.5) on a (beach: 2 )", [], "a big/0.5 red/0.5 bear/0.5 on a beach/2"),
        ("(red:0) bear, (blue:1.25).", [], "red/0 bear, blue/1.25 ."),
        ("a bear (ratio 4:3)", [], "a bear (ratio 4:3)"),
        ("a bear (in a city)", [], "a bear (in a city)"),
        ("a (bear:loud)", [], "a (bear:loud)"),
        ("(" * 5000 + "bear:1.3)", [], "(" * 4999 + " bear/1.3"),
        ("a (bear:1.4) on the beach", ["bear"], "a bear/1.4 S*/1.4 on the beach"),
        ("a (<bear>:1.4) on the beach", ["teddy bear"], "a bear/1.4 S*/1.4 on the beach"),
        ("a <(bear:1.4)> on the beach", ["bear"], "a bear/1.4 S* on the beach"),
        ("a (bear:1.4) S* on the beach", ["bear"], "a bear/1.4 S* on the beach"),
        ("a (bear S*:1.4) on the beach", ["bear"], "a bear/1.4 S*/1.4 on the beach"),
        ("a (teddy:1.2) bear in a city", ["teddy bear"], "a teddy/1.2 bear S* in a city"),
        ("(on the beach:1.2)", ["bear"], "a bear S* on/1.2 the/1.2 beach/1.2"),
        ("a bear and a (cat:0.8)", ["bear", "cat"], "a bear S1* and a cat/0.8 S2*/0.8"),
        ("\ue1c8a bear\ue100", ["bear"], "a bear S*"),
    ],
)
def test_weights_belong_to_words(prompt: str, nouns: list[str], words: str) -> None:
    parsed = parse_prompt(prompt, nouns)
    assert marked(prompt, nouns) == words and not [note for note in parsed.notes if "weight" in note]
    assert all(word.keep for word in parsed.words if word.subject is not None)


def test_too_heavy_a_weight_gets_a_sentence() -> None:
    parsed = parse_prompt("(psalm:23) on a (bear:2.5)")
    assert parsed.text == "psalm on a bear" and all(word.weight == 1 for word in parsed.words)
    assert parsed.notes[0] == "(psalm:23) asks for a weight of 23; weights are 0 to 2: it is read as 1."
    assert len(parsed.notes) == 2


def test_each_pass_keeps_its_weights() -> None:
    parsed = parse_prompt("a (bear:1.4) and a cat in the (snow:1.2)", ["bear", "cat"])
    passes = [[(word.text, word.weight) for word in own.words] for own, _ in words_of_each(parsed)]
    assert ("S*", 1.4) in passes[0] and ("snow", 1.2) in passes[0]
    assert ("S*", 1.0) in passes[1] and ("snow", 1.2) in passes[1]


def test_a_weighted_noun_is_guessed() -> None:
    assert guess_noun("a photo of a (red bear:1.3) on the beach") == "bear"


def test_the_equation() -> None:
    g = torch.Generator().manual_seed(0)
    context = TextContext(torch.randn(2, 3, 5, 4, generator=g), torch.randn(2, 6, generator=g))
    empty = TextContext(torch.randn(1, 1, 3, 4, generator=g))
    found = weighted(context, [1.0, 1.5, 0.25, 1.0, 0.0, 9.0], empty)
    for s, (w, e) in enumerate([(1.0, 0), (1.5, 1), (0.25, 2), (1.0, 2), (0.0, 2)]):  # the last of the empty stays
        nothing = empty.hidden[0, 0, e]
        assert torch.allclose(found.hidden[:, :, s], nothing + w * (context.hidden[:, :, s] - nothing), atol=1e-6)
    assert torch.equal(found.hidden[:, :, [0, 3]], context.hidden[:, :, [0, 3]]) and found.pooled is context.pooled


def text_of(base: BaseModel, prompt: str) -> torch.Tensor:
    return Conditioner(base, None).conditions(prompt, (), T).context.hidden[0, 0]


def test_it_is_compels_rule(any_base: BaseModel) -> None:
    """Weights above 1, against compel itself; below 1 it goes another way (docs/sd15-sdxl.md)."""
    provider = pytest.importorskip("compel.embeddings_provider")
    kinds = provider.ReturnedEmbeddingsType
    wanted = []
    for tokenizer, encoder in zip(any_base.tokenizers, any_base.text_encoders, strict=True):
        xl = any_base.spec.pooled
        kind = kinds.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED if xl else kinds.LAST_HIDDEN_STATES_NORMALIZED
        own = provider.EmbeddingsProvider(tokenizer, encoder, returned_embeddings_type=kind)
        fragments, weights = ["a", "red bear", "on the", "beach"], [1.0, 1.3, 1.0, 1.7]
        wanted.append(own.get_embeddings_for_weighted_prompt_fragments([fragments], [weights])[0])
    found = text_of(any_base, "a (red bear:1.3) on the (beach:1.7)")
    assert torch.allclose(found, torch.cat(wanted, dim=-1), atol=1e-5)
    assert not torch.allclose(found, text_of(any_base, "a red bear on the beach"), atol=1e-2)


def test_s_star_is_weighted_at_every_step_and_layer(any_custom: CustomContrast, cutout: Callable) -> None:
    base, bear = any_custom.base, any_custom.subject(cutout(0), "bear")
    conditioner = Conditioner(base, any_custom.adapter)
    plain = conditioner.conditions("a bear on the beach", [bear], T)
    heavy = conditioner.conditions("a (bear:1.5) on the beach", [bear], T)
    nothing = encode_contexts(base, [encode_prompt(base, "")]).hidden
    at = [*heavy.prompt.nouns[0], *heavy.prompt.positions[0].tolist()]
    wanted = plain.context.hidden.clone()
    wanted[:, :, at] = (nothing + 1.5 * (wanted - nothing))[:, :, at]
    assert plain.context.hidden.shape[:2] == (2, len(base.cross_attention_layers))
    assert torch.allclose(heavy.context.hidden, wanted, atol=1e-5)
    again = conditioner.conditions("a bear on the beach", [bear], T)
    assert torch.equal(again.context.hidden, plain.context.hidden), "what is cached has no weights"


def test_weights_in_a_run(tiny_custom: CustomContrast, cutout: Callable) -> None:
    """Prompt and negative prompt; a weight of 1 changes no bit; the recipe keeps the prompt as it was written."""
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 6.0, "output_type": "latent"}
    bear = tiny_custom.subject(cutout(0), "bear")

    def latents(prompt: str, **more: Any) -> torch.Tensor:
        return tiny_custom.generate(prompt, bear, **options, **more).images

    plain = latents("a bear on the beach", negative_prompt="red")
    assert torch.equal(latents("a (bear:1.0) on the beach", negative_prompt="(red:1)"), plain)
    assert not torch.allclose(latents("a bear on the (beach:1.6)", negative_prompt="red"), plain, atol=1e-3)
    assert not torch.allclose(latents("a bear on the beach", negative_prompt="(red:1.6)"), plain, atol=1e-3)
    result = tiny_custom.generate("a (bear:1.4) on the beach", bear, **options)
    assert result.prompt == "a bear S* on the beach" and result.notes == []
    assert result.recipe["prompt"] == "a (bear:1.4) on the beach"
