"""Prompt, subjects and timesteps -> everything that does not depend on seed or λ, kept for the next seed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from customcontrast.bases import BaseModel
from customcontrast.checkpoint import Adapter, AdapterOutput
from customcontrast.conditioning import TextContext, encode_contexts, encode_prompt
from customcontrast.prompt import TokenizedPrompt
from customcontrast.subject import Subject

ENCODER_ROWS = 1024  # (t, l) rows that go through the MFI encoder at once
CACHE_BYTES = 512 * 2**20  # memory for what is kept


@dataclass(frozen=True, eq=False)
class Conditions:
    """S*, text contexts, keys and values of every (t, l) of a run. Immutable; runs and threads share it."""

    prompt: TokenizedPrompt
    timesteps: tuple[float, ...]  # the distinct ones
    context: TextContext  # a row per timestep, or one row for all
    outputs: tuple[AdapterOutput, ...]  # per subject, a row per timestep

    def at(self, t: float) -> tuple[TextContext, list[AdapterOutput]]:
        """Those of timestep t."""
        i = self.timesteps.index(t)
        return self.context.row(i if len(self.context.hidden) > 1 else 0), [output.row(i) for output in self.outputs]

    def bytes(self) -> int:
        """Memory it takes."""
        mfis = [output.mfi for output in self.outputs]
        tensors = [self.context.hidden, *(x for o in self.outputs for x in (*o.keys, *o.values))]
        tensors += [x for mfi in mfis for x in (*mfi.text_tokens, mfi.visual_tokens)]
        return sum(x.untyped_storage().nbytes() for x in tensors)


class Conditioner:
    """Makes `Conditions`, and keeps the latest under a lock for whoever asks for the same again."""

    def __init__(self, base: BaseModel, adapter: Adapter | None) -> None:
        self.base = base
        self.adapter = adapter
        self.kept: OrderedDict[tuple[Any, ...], Conditions] = OrderedDict()
        self._lock = threading.Lock()

    def conditions(self, prompt: str, subjects: Sequence[Subject], timesteps: Tensor) -> Conditions:
        """For one prompt and its subjects at all timesteps of a run (T,), in large batches."""
        n = self.adapter.config.placeholder_tokens if subjects else 0
        tokenized = encode_prompt(self.base, prompt, [subject.noun for subject in subjects], n)
        distinct = tuple(dict.fromkeys(timesteps.tolist()))
        if not subjects:
            return Conditions(tokenized, distinct, encode_contexts(self.base, [tokenized]), ())

        ids = tuple(tuple(ids.tolist()) for ids in tokenized.ids)
        key = (ids, tuple(tokenized.positions.flatten().tolist()), tuple(s.key for s in subjects), distinct)
        with self._lock:
            known = self.kept.get(key)
            if known is not None:
                self.kept.move_to_end(key)
                return Conditions(tokenized, distinct, known.context, known.outputs)

        t = torch.tensor(distinct, device=self.base.device)
        outputs = tuple(self._outputs(subject.features, t) for subject in subjects)
        prompts = [tokenized] * (len(distinct) if n else 1)
        context = encode_contexts(self.base, prompts, [output.mfi.text_tokens for output in outputs])
        return self._keep(key, Conditions(tokenized, distinct, context, outputs))

    def unconditional(self, negative_prompt: str) -> TextContext:
        """The empty (or negative) prompt, without any subject."""
        context = encode_contexts(self.base, [encode_prompt(self.base, negative_prompt)])
        if self.base.zero_empty_prompt and not negative_prompt:
            return TextContext(torch.zeros_like(context.hidden), torch.zeros_like(context.pooled))
        return context

    def _outputs(self, f_I: Tensor, t: Tensor) -> AdapterOutput:
        chunk = max(1, ENCODER_ROWS // self.adapter.config.num_layers)
        return AdapterOutput.cat([self.adapter.at(f_I, part) for part in t.split(chunk)])

    def _keep(self, key: tuple[Any, ...], conditions: Conditions) -> Conditions:
        """The longest unused leave when all together grow beyond CACHE_BYTES."""
        with self._lock:
            self.kept[key] = conditions
            while sum(kept.bytes() for kept in self.kept.values()) > CACHE_BYTES:
                self.kept.popitem(last=False)
        return conditions
