"""contexts: what is kept, what leaves, and what is computed only once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from customcontrast.base_model import BaseModel
from customcontrast.conditioning import conditioner as contexts
from customcontrast.conditioning.conditioner import Conditioner, TensorCache, tensor_bytes
from customcontrast.conditioning.text_context import TextContext
from customcontrast.pipeline import CustomContrast
from customcontrast.subject import Subject
from tests.conftest import Cutout
from tests.support.tiny_models import random_adapter

PROMPT = "a bear on the beach"
T = torch.tensor([900, 600, 300, 0])


def context(kilobytes: int) -> TextContext:
    return TextContext(torch.zeros(1, 1, 1, 256 * kilobytes))


def test_the_longest_unused_leave_and_the_newest_stays() -> None:
    kept = TensorCache(limit=4096)
    made = []

    def get(name: str, kilobytes: int) -> TextContext:
        return kept.get((name,), lambda: made.append(name) or context(kilobytes))

    get("a", 1), get("b", 1), get("c", 1), get("a", 1)
    assert made == ["a", "b", "c"] and set(kept.kinds()) == {"a", "b", "c"}
    get("d", 2)
    assert set(kept.kinds()) == {"a", "c", "d"}, "b was unused for longest"
    get("huge", 100)
    assert kept.kinds() == ["huge"], "the newest is kept whatever its size: the next seed asks for it"
    assert tensor_bytes(context(100)) == 100 * 1024
    kept.clear()
    assert len(kept) == 0


def test_the_same_is_made_once(any_custom: CustomContrast, bear: Subject) -> None:
    conditioner = Conditioner(any_custom.base, any_custom.adapter)
    a, b = conditioner.conditions(PROMPT, [bear], T), conditioner.conditions(PROMPT, [bear], T)
    assert a.context is b.context and a.outputs[0] is b.outputs[0]
    c = conditioner.conditions("a red bear", [bear], T)
    assert c.outputs[0] is a.outputs[0] and c.context is not a.context
    assert conditioner.unconditional("no") is not conditioner.unconditional("not")


def test_the_visual_qformer_runs_once_for_all_timesteps(
    any_base: BaseModel, any_custom: CustomContrast, bear: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Conditioner(any_base, any_custom.adapter).conditions(PROMPT, [bear], T).outputs[0]
    monkeypatch.setattr(contexts, "ENCODER_WEIGHTS", 1)  # one timestep at a time
    runs = {"visual": 0, "text": 0}
    encoder = any_custom.adapter.encoder
    handles = [
        getattr(encoder, f"{name}_qformer").register_forward_hook(
            lambda *_, name=name: runs.update({name: runs[name] + 1})
        )
        for name in runs
    ]
    parts = Conditioner(any_base, any_custom.adapter).conditions(PROMPT, [bear], T).outputs[0]
    for handle in handles:
        handle.remove()
    assert runs == {"visual": 1, "text": len(T)}
    assert torch.allclose(parts.mfi.visual_tokens, whole.mfi.visual_tokens, atol=1e-5)
    for a, b in zip((*parts.keys, *parts.values), (*whole.keys, *whole.values), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_each_timestep_finds_its_own(any_custom: CustomContrast, bear: Subject) -> None:
    conditions = Conditioner(any_custom.base, any_custom.adapter).conditions(PROMPT, [bear], T)
    for i, t in enumerate(T.tolist()):
        found, (output,) = conditions.at(t)
        assert torch.equal(found.hidden[0], conditions.context.hidden[i])
        assert torch.equal(output.keys[2][0], conditions.outputs[0].keys[2][i])
        alone = any_custom.adapter.at(bear.features, T[i : i + 1])
        assert torch.allclose(output.mfi.visual_tokens, alone.mfi.visual_tokens, atol=1e-5)
    assert not conditions.steady


def test_without_s_star_one_text_serves_all_steps(any_base: BaseModel, cutout: Callable[[int], Cutout]) -> None:
    custom = CustomContrast.from_parts(any_base, random_adapter(any_base, textual=False, tv_fusion=False))
    conditions = custom.conditioner.conditions(PROMPT, [custom.subject(cutout(1), "bear")], T)
    assert conditions.steady and conditions.context.hidden.shape[:2] == (1, 1)
    assert len(conditions.outputs[0].keys[0]) == len(T)


@pytest.mark.parametrize("part", ["q_proj", "v_proj", "layer_norm1"])
@pytest.mark.parametrize("which", [0, -1])
def test_changed_text_encoders_are_noticed(
    any_base: BaseModel, any_custom: CustomContrast, bear: Subject, part: str, which: int
) -> None:
    """Weights written over in place, as fused LoRA layers do: nothing that is kept is used again."""
    base = replace(any_base, text_encoders=[copy.deepcopy(encoder) for encoder in any_base.text_encoders])
    conditioner = Conditioner(base, any_custom.adapter)
    before, empty = conditioner.conditions(PROMPT, [bear], T), conditioner.unconditional("no")
    encoder = base.text_encoders[which]
    layer = getattr(encoder, "text_model", encoder).encoder.layers[0]
    (getattr(layer, part, None) or getattr(layer.self_attn, part)).weight.data.mul_(1.5)
    after = conditioner.conditions(PROMPT, [bear], T)
    wanted = Conditioner(base, any_custom.adapter).conditions(PROMPT, [bear], T)
    assert torch.equal(after.context.hidden, wanted.context.hidden)
    assert not torch.equal(after.context.hidden, before.context.hidden)
    assert not torch.equal(conditioner.unconditional("no").hidden, empty.hidden)
    assert after.outputs[0] is before.outputs[0], "the adapter reads pictures alone"


def test_a_changed_row_of_the_embedding_table_is_noticed(
    any_base: BaseModel, any_custom: CustomContrast, bear: Subject
):
    """Textual inversion writes the rows of a token or two: prompts with them are encoded anew, others are not."""
    base = replace(any_base, text_encoders=[copy.deepcopy(encoder) for encoder in any_base.text_encoders])
    conditioner = Conditioner(base, any_custom.adapter)
    before, empty = conditioner.conditions(PROMPT, [bear], T), conditioner.unconditional("no")
    token = base.tokenizers[0]("beach", add_special_tokens=False).input_ids[0]
    base.text_encoders[0].get_input_embeddings().weight.data[token] += 1
    after = conditioner.conditions(PROMPT, [bear], T)
    wanted = Conditioner(base, any_custom.adapter).conditions(PROMPT, [bear], T)
    assert torch.equal(after.context.hidden, wanted.context.hidden)
    assert not torch.equal(after.context.hidden, before.context.hidden)
    assert conditioner.unconditional("no").hidden is empty.hidden
