"""`prompt_embeds` and its kin: texts that were encoded elsewhere, for pictures without subjects.

Where S* stands in such a text, and which of its rows is which word, nobody can tell: with subjects they are refused, and
no maps are recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value for name, value in given.items() if value is not None}
        if not tensors:
            return 0
        if self.prompt_embeds is None:
            raise wrong(next(iter(tensors)), "a tensor", "came without prompt_embeds; give both, or the texts")
        if prompt is not None:
            raise wrong("prompt", prompt, "came with prompt_embeds; give one of the two")
        if subjects not in ((), []):
            raise wrong(
                "prompt_embeds", "a tensor", "cannot say where S* of the subjects is; give the prompt as text with them"
            )
        if negative_prompt is not None and self.negative_prompt_embeds is not None:
            raise wrong("negative_prompt", negative_prompt, "came with negative_prompt_embeds; give one of the two")
        width = sum(encoder.config.hidden_size for encoder in base.text_encoders)
        length = int(base.tokenizers[0].model_max_length)
        P = len(self.prompt_embeds) if isinstance(self.prompt_embeds, Tensor) and self.prompt_embeds.ndim else 0
        for name, value in tensors.items():
            want: tuple[int, ...] = (P, width)
            if "pooled" in name:
                want = (P, base.text_encoders[-1].config.projection_dim)
                if not base.spec.pooled:
                    raise wrong(name, "a tensor", f"is not taken by base {base.name!r}; leave it out")
            shape = tuple(getattr(value, "shape", ()))
            tokens = shape[1:2] if "pooled" not in name else ()
            if not P or (*shape[:1], *shape[1 + len(tokens) :]) != want or not value.is_floating_point():
                size = ", ".join(str(n) for n in (want if "pooled" in name else (P or "P", "tokens", width)))
                raise wrong(name, shape or value, f"must be a tensor ({size})")
        if base.spec.pooled:
            for name in ("prompt_embeds", "negative_prompt_embeds"):
                pooled = name.replace("prompt", "pooled_prompt")
                if (given[name] is None) != (given[pooled] is None):
                    raise wrong(name, "a tensor", f"goes with {pooled}; give both")
        own, negative = self.prompt_embeds, self.negative_prompt_embeds
        if (length if negative is None else negative.shape[1]) != own.shape[1]:
            raise wrong(
                "negative_prompt_embeds", negative if negative is None else tuple(negative.shape),
                f"must be a tensor with as many tokens as prompt_embeds, {own.shape[1]}",
            )  # fmt: skip
        return P

    def conditioner(self, base: BaseModel, i: int) -> GivenTexts:
        """The i-th prompt's."""

        def context(hidden: Tensor | None, pooled: Tensor | None) -> TextContext | None:
            if hidden is None:
                return None
            lengths = torch.tensor([hidden.shape[1]]) if base.masks_padding else None
            place = {"device": base.device, "dtype": base.dtype}
            pooled = None if pooled is None else pooled[i : i + 1].to(**place)
            return TextContext(hidden[i : i + 1, None].to(**place), pooled, lengths)

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
