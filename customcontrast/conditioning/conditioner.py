"""Prompt, subjects and timesteps -> everything that depends on neither seed nor λ, cached for the next seed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor

from customcontrast.adapter import Adapter, AdapterOutput
from customcontrast.attention.state import SubjectBranch
from customcontrast.base_model import BaseModel
from customcontrast.conditioning.prompt import ParsedPrompt, TokenizedPrompt
from customcontrast.conditioning.prompt_weights import weighted
from customcontrast.conditioning.text_context import TextContext, encode_contexts, encode_prompt
from customcontrast.conditioning.text_encoder import encode_rows
from customcontrast.errors import ConfigError
from customcontrast.ip_adapter import IPAdapter
from customcontrast.subject import Subject
from customcontrast.warm_start import WarmAdapter

ENCODER_ROWS = 1024  # (t, l) rows that go through the MFI encoder at once
ENCODER_WEIGHTS = 2**26  # attention weights of one of its blocks at once, over heads, rows, queries and image tokens
CACHE_BYTES = 512 * 2**20  # memory of the cache; its newest entry stays whatever its size


@dataclass(frozen=True, eq=False)
class Conditions:
    """S*, text contexts, keys and values of every (t, l) of a run. Immutable; runs and threads share it."""

    prompt: TokenizedPrompt
    timesteps: tuple[float, ...]  # the distinct ones
    context: TextContext  # a row per timestep, or one row for all
    outputs: tuple[AdapterOutput, ...]  # per subject, a row per timestep
    encoders: bytes = b""  # fingerprint of the text encoders that made it

    @property
    def steady(self) -> bool:
        """Whether the text is the same at every timestep."""
        return len(self.context.hidden) == 1

    def at(self, t: float) -> tuple[TextContext, list[AdapterOutput]]:
        """Text context and adapter outputs of timestep t, one row each."""
        i = self.timesteps.index(t)
        return self.context.row(0 if self.steady else i), [output.row(i) for output in self.outputs]


class TensorCache:
    """An LRU cache of what is expensive to make, limited in bytes (cachetools); the newest stays whatever its size.

    Threads may share it; two that request the same at the same time both make it.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self._items: LRUCache[tuple[Any, ...], tuple[Any, int]] = LRUCache(limit, getsizeof=self._size)
        self._lock = threading.Lock()

    def _size(self, item: tuple[Any, int]) -> int:
        return min(item[1], self.limit)

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """The value cached under `key`, else the value of `make`, cached from now on. key: its kind comes first."""
        with self._lock:
            if key in self._items:
                return self._items[key][0]
        value = make()
        with self._lock:
            self._items[key] = (value, tensor_bytes(value))
        return value

    def kinds(self) -> list[str]:
        """First item of each key."""
        with self._lock:
            return [str(key[0]) for key in self._items]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._items.clear()


def tensor_bytes(value: TextContext | AdapterOutput) -> int:
    """Memory that the tensors of a context or of an adapter's output take."""
    if isinstance(value, TextContext):
        tensors = [value.hidden, *([] if value.pooled is None else [value.pooled])]
    else:
        tensors = [*value.keys, *value.values, *value.mfi.text_tokens, value.mfi.visual_tokens]
        tensors += [x for xs in (*(value.unconditional or ()), *(value.beside or ())) for x in xs]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


class Conditioner:
    """Computes `Conditions`, with an LRU cache of text contexts and adapter outputs."""

    def __init__(self, base: BaseModel, adapter: Adapter | IPAdapter | None) -> None:
        self.base = base
        self.adapter = adapter
        self.cache = TensorCache()

    @property
    def placeholder_tokens(self) -> int:
        """n, tokens of S* in the prompt of a subject."""
        return self.loaded.config.placeholder_tokens

    @property
    def loaded(self) -> Adapter | IPAdapter:
        """The adapter. Raises ConfigError where there is none."""
        if self.adapter is None:
            raise ConfigError("generate: no adapter is loaded; pass adapter=FILE to CustomContrast.load.", "adapter")
        return self.adapter

    def tokenized(self, prompt: str | ParsedPrompt, subjects: Sequence[Subject]) -> TokenizedPrompt:
        """The prompt as the text encoders read it, with S* of each subject."""
        n = self.placeholder_tokens if subjects else 0
        return encode_prompt(self.base, prompt, [subject.noun for subject in subjects], n)

    def conditions(
        self, prompt: str | ParsedPrompt, subjects: Sequence[Subject], timesteps: Tensor, clip_skip: int = 0
    ) -> Conditions:
        """Compute, or take from the cache, what a prompt and its subjects give at all timesteps of a run (T,)."""
        tokenized = self.tokenized(prompt, subjects)
        n = tokenized.positions.shape[1]
        distinct = tuple(dict.fromkeys(timesteps.tolist()))
        encoders = self.fingerprint()
        if not subjects:
            return Conditions(tokenized, distinct, self._text(tokenized, encoders, clip_skip), (), encoders)

        outputs = tuple(self._outputs(subject, distinct) for subject in subjects)
        if not n:
            return Conditions(tokenized, distinct, self._text(tokenized, encoders, clip_skip), outputs, encoders)
        places = tuple(tokenized.positions.flatten().tolist())
        key = ("contexts", encoders, self._read(tokenized), places, tuple(s.key for s in subjects), distinct, clip_skip)
        tokens = [output.mfi.text_tokens for output in outputs]
        context = self.cache.get(
            key, lambda: encode_contexts(self.base, [tokenized] * len(distinct), tokens, clip_skip=clip_skip)
        )
        context = self._weighted(context, tokenized, encoders, clip_skip)
        return Conditions(tokenized, distinct, context, outputs, encoders)

    def unconditional(self, negative_prompt: str, encoders: bytes | None = None) -> TextContext:
        """The empty (or negative) prompt, without any subject. encoders: `Conditions.encoders` of the run, if known."""
        context = self._text(encode_prompt(self.base, negative_prompt), encoders or self.fingerprint())
        if self.base.zero_empty_prompt and not negative_prompt and context.pooled is not None:
            return replace(context, hidden=torch.zeros_like(context.hidden), pooled=torch.zeros_like(context.pooled))
        return context

    def without_subjects(
        self, prompt: str | ParsedPrompt, subjects: Sequence[Subject], conditions: Conditions, clip_skip: int = 0
    ) -> TextContext:
        """The prompt of `conditions` as if there were no subjects: their nouns stay, without S*."""
        plain = encode_prompt(self.base, prompt, [subject.noun for subject in subjects])
        return self._text(plain, conditions.encoders or self.fingerprint(), clip_skip)

    def everywhere(self, pictures: Sequence[Subject]) -> tuple[SubjectBranch, ...]:
        """Branches of style and layout pictures: their own λ in each layer, the same at every timestep."""
        outputs = [self._outputs(picture, ()) for picture in pictures]
        return tuple(
            SubjectBranch(
                out.keys,
                out.values,
                strength=picture.strength,
                sink=out.sink,
                masked=False,
                layer_scales=picture.layer_scales,
                unconditional=out.unconditional,
            )
            for picture, out in zip(pictures, outputs, strict=True)
        )

    @torch.no_grad()
    def fingerprint(self) -> bytes:
        """Digest of the text encoders' output for two tokens: it changes with their weights, type and LoRA layers."""
        digest = hashlib.sha256(str(self.base.dtype).encode())
        for tokenizer, encoder in zip(self.base.tokenizers, self.base.text_encoders, strict=True):
            ids = torch.tensor([[tokenizer.bos_token_id, tokenizer.eos_token_id]], device=self.base.device)
            embeds = encoder.get_input_embeddings()(ids)
            hidden, pooled = encode_rows(encoder, embeds, ids.new_ones(1), self.base.spec.hidden_layer)
            for x in (hidden, pooled):
                digest.update(b"" if x is None else x.float().cpu().numpy().tobytes())
        return digest.digest()

    @torch.no_grad()
    def _read(self, prompt: TokenizedPrompt) -> tuple[tuple[int, ...] | bytes, ...]:
        """The prompt's tokens, and a digest of their rows in the embedding tables, which textual inversion changes."""
        digest = hashlib.sha256()
        for ids, encoder in zip(prompt.ids, self.base.text_encoders, strict=True):
            rows = encoder.get_input_embeddings()(ids.to(self.base.device))
            digest.update(rows.float().cpu().numpy().tobytes())
        return (*(tuple(ids.tolist()) for ids in prompt.ids), digest.digest())

    def _text(self, prompt: TokenizedPrompt, encoders: bytes, clip_skip: int = 0) -> TextContext:
        """Text without S*: one context for all timesteps and layers."""
        key = ("text", encoders, self._read(prompt), clip_skip)
        context = self.cache.get(key, lambda: encode_contexts(self.base, [prompt], clip_skip=clip_skip))
        return self._weighted(context, prompt, encoders, clip_skip)

    def _weighted(self, context: TextContext, prompt: TokenizedPrompt, encoders: bytes, clip_skip: int) -> TextContext:
        """The context with the prompt's weights, which are not cached."""
        if not prompt.weights:
            return context
        return weighted(context, prompt.weights, self._text(encode_prompt(self.base, ""), encoders, clip_skip))

    def _outputs(self, subject: Subject, timesteps: tuple[float, ...]) -> AdapterOutput:
        """The adapter's output for a subject; the visual Q-Former runs once for all timesteps."""
        adapter = self.loaded
        if isinstance(adapter, IPAdapter):
            nothing = adapter.nothing(self.base)
            return self.cache.get(("subject", subject.key), lambda: adapter.at(subject.features, nothing=nothing))

        def make() -> AdapterOutput:
            t = torch.tensor(timesteps, device=self.base.device)
            visual = adapter.encoder.visual(subject.features)
            c = adapter.config
            a_row = c.heads * (c.text_queries + 1) * subject.features.shape[1]
            chunk = max(1, min(ENCODER_ROWS, ENCODER_WEIGHTS // a_row) // c.num_layers)
            out = AdapterOutput.cat([adapter.at(subject.features, part, visual) for part in t.split(chunk)])
            if not isinstance(adapter, WarmAdapter) or subject.image_tokens is None:
                return out
            return adapter.joined(out, subject.image_tokens, adapter.published.nothing(self.base))

        return self.cache.get(("subject", subject.key, timesteps), make)


class VisualConditioner(Conditioner):
    """`Conditions` of the visual branch alone: the prompt holds no S*.

    Each subject acts through the second term of Eq. 3 only, as in IP-Adapter, with the weights of this adapter.
    """

    @property
    def placeholder_tokens(self) -> int:
        """0: the prompt is read without S*."""
        return 0

    def conditions(
        self, prompt: str | ParsedPrompt, subjects: Sequence[Subject], timesteps: Tensor, clip_skip: int = 0
    ) -> Conditions:
        """As `Conditioner.conditions`, with the plain text context in place of C(t, l)."""
        if not subjects:
            return super().conditions(prompt, subjects, timesteps, clip_skip)
        plain = self.tokenized(prompt, subjects)
        distinct = tuple(dict.fromkeys(timesteps.tolist()))
        encoders = self.fingerprint()
        outputs = [self._outputs(subject, distinct) for subject in subjects]
        silent = tuple(replace(out, mfi=replace(out.mfi, text_tokens=[])) for out in outputs)
        return Conditions(plain, distinct, self._text(plain, encoders, clip_skip), silent, encoders)
