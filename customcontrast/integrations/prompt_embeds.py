"""`prompt_embeds` and its kin: texts that were encoded elsewhere, for pictures without subjects.

Where S* stands in such a text, and which of its rows is which word, nobody can tell: with subjects they are refused,
and no maps are recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from customcontrast.base_model import BaseModel
from customcontrast.conditioning.conditioner import Conditioner, Conditions
from customcontrast.conditioning.prompt import ParsedPrompt
from customcontrast.conditioning.text_context import TextContext
from customcontrast.integrations.diffusers_inputs import wrong
from customcontrast.subject import Subject

NOTE = "The prompt came as prompt_embeds: its words are not known, and this recipe does not hold it."


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """Encoded texts under diffusers' names; P prompts, S tokens. None = not given."""

    prompt_embeds: Tensor | None = None  # (P, S, d_text)
    negative_prompt_embeds: Tensor | None = None  # alike; None = `negative_prompt` is encoded
    pooled_prompt_embeds: Tensor | None = None  # (P, d_pooled), SDXL
    negative_pooled_prompt_embeds: Tensor | None = None

    def check(self, base: BaseModel, prompt: Any, subjects: Any, negative_prompt: Any) -> int:
        """How many prompts there are, 0 without `prompt_embeds`. Raises ValueError with one sentence."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if not tensors:
            return 0
        for is_wrong, name, value, remedy in self._conflicts(base, prompt, subjects, negative_prompt, tensors):
            if is_wrong:
                raise wrong(name, value, remedy)
        return self._shapes(base, tensors)

    def _conflicts(
        self, base: BaseModel, prompt: Any, subjects: Any, negative_prompt: Any, tensors: dict[str, Tensor]
    ) -> Iterator[tuple[bool, str, Any, str]]:
        """What may not come together, each with its argument, its value and what to do."""
        first, tensor = next(iter(tensors)), "a tensor"
        yield self.prompt_embeds is None, first, tensor, "came without prompt_embeds; give both, or the texts"
        yield prompt is not None, "prompt", prompt, "came with prompt_embeds; give one of the two"
        no_place = "cannot say where S* of the subjects stands; give the prompt as text with them"
        yield subjects not in ((), []), "prompt_embeds", tensor, no_place
        both = negative_prompt is not None and self.negative_prompt_embeds is not None
        yield both, "negative_prompt", negative_prompt, "came with negative_prompt_embeds; give one of the two"
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            pooled = name.replace("prompt", "pooled_prompt")
            if base.spec.pooled:
                yield (name in tensors) != (pooled in tensors), name, tensor, f"goes with {pooled}; give both"
            else:
                yield pooled in tensors, pooled, tensor, f"is not taken by base {base.name!r}; leave it out"

    def _shapes(self, base: BaseModel, tensors: dict[str, Tensor]) -> int:
        """The number of prompts, where all shapes fit. Raises ValueError with one sentence."""
        own = tuple(getattr(self.prompt_embeds, "shape", ()))
        P = own[0] if len(own) == 3 and own[0] else 1
        tokens = own[1] if len(own) == 3 else int(base.tokenizers[0].model_max_length)
        width = sum(encoder.config.hidden_size for encoder in base.text_encoders)
        for name, value in tensors.items():
            pooled = "pooled" in name
            fits = (P, base.text_encoders[-1].config.projection_dim) if pooled else (P, tokens, width)
            shape = tuple(getattr(value, "shape", ()))
            if shape != fits or not value.is_floating_point():
                raise wrong(name, shape or value, f"must be a tensor {fits} of floats")
        if self.negative_prompt_embeds is None and tokens != int(base.tokenizers[0].model_max_length):
            raise wrong("negative_prompt_embeds", None, f"must be a tensor with {tokens} tokens, as prompt_embeds has")
        return P

    def conditioner(self, base: BaseModel, i: int) -> GivenTexts:
        """The i-th prompt's."""

        def context(hidden: Tensor | None, pooled: Tensor | None) -> TextContext | None:
            if hidden is None:
                return None
            lengths = torch.tensor([hidden.shape[1]]) if base.masks_padding else None
            pooled = None if pooled is None else pooled[i : i + 1].to(base.device, base.dtype)
            return TextContext(hidden[i : i + 1, None].to(base.device, base.dtype), pooled, lengths)

        own = context(self.prompt_embeds, self.pooled_prompt_embeds)
        assert own is not None, "`check` comes first"
        return GivenTexts(base, own, context(self.negative_prompt_embeds, self.negative_pooled_prompt_embeds))


class GivenTexts(Conditioner):
    """`Conditioner` of a text that is encoded already, and perhaps of what to avoid."""

    def __init__(self, base: BaseModel, context: TextContext, negative: TextContext | None) -> None:
        super().__init__(base, None)
        self.context = context
        self.negative = negative

    def conditions(
        self, prompt: str | ParsedPrompt, subjects: Sequence[Subject], timesteps: Tensor, clip_skip: int = 0
    ) -> Conditions:
        """The given text at every timestep; there are no subjects, and `prompt` is empty."""
        nothing = replace(self.tokenized("", ()), notes=(NOTE,))
        return Conditions(nothing, tuple(dict.fromkeys(timesteps.tolist())), self.context, ())

    def unconditional(self, negative_prompt: str, encoders: bytes | None = None) -> TextContext:
        """The given text to avoid, else `negative_prompt`."""
        return super().unconditional(negative_prompt) if self.negative is None else self.negative
