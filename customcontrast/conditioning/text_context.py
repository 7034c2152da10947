"""S+ tokens -> text encoder(s) -> one text context per (step, layer), and the state of one UNet call.

Training and inference both go: parse_prompt -> tokenize -> Adapter -> encode_contexts -> subject_state -> unet_forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from customcontrast.attention.maps import MapRecorder
from customcontrast.attention.state import SubjectBranch, SubjectState
from customcontrast.conditioning.prompt import ParsedPrompt, TokenizedPrompt, parse_prompt, tokenize
from customcontrast.conditioning.text_encoder import encode_rows, encode_shared
from customcontrast.config import LocationConfig
from customcontrast.transfer import sent

if TYPE_CHECKING:
    from customcontrast.adapter import AdapterOutput
    from customcontrast.base_model import BaseModel

__all__ = [
    "ParsedPrompt",
    "TextContext",
    "TokenizedPrompt",
    "encode_contexts",
    "encode_prompt",
    "joined",
    "parse_prompt",
    "subject_state",
    "tokenize",
]

ROWS = {"cpu": 16, "cuda": 256}  # (t, l) rows that go through a text encoder at once; elsewhere 64


@dataclass(frozen=True, eq=False)
class TextContext:
    """Text contexts of B prompts, as the UNet reads them."""

    hidden: Tensor  # C(t, l): (B, L, S, d_text), widths of several text encoders joined; (B, 1, S, d_text) without S*
    pooled: Tensor | None = None  # SDXL's pooled text (B, P): the mean over the layers' contexts
    lengths: Tensor | None = None  # (B,), on the CPU: tokens of a prompt that the UNet sees; None = all, padding too

    def row(self, i: int) -> TextContext:
        """The i-th prompt (or timestep) alone."""
        return self.rows(slice(i, i + 1))

    def rows(self, index: slice | Tensor) -> TextContext:
        """These prompts (or timesteps)."""
        own = index if isinstance(index, slice) else index.cpu()
        return TextContext(
            self.hidden[index],
            None if self.pooled is None else self.pooled[index],
            None if self.lengths is None else self.lengths[own],
        )

    def padded(self, tokens: int) -> TextContext:
        """The same with S = tokens; what is added is zeros that no `lengths` counts in."""
        more = tokens - self.hidden.shape[2]
        return self if more == 0 else replace(self, hidden=F.pad(self.hidden, (0, 0, 0, more)))


def joined(contexts: Sequence[TextContext]) -> TextContext:
    """Join contexts of the same number of layers, row after row; shorter ones are padded to the longest."""
    if len(contexts) == 1:
        return contexts[0]
    longest = max(c.hidden.shape[2] for c in contexts)
    padded = [c.padded(longest) for c in contexts]
    first = padded[0]
    return TextContext(
        torch.cat([c.hidden for c in padded]),
        None if first.pooled is None else _together(c.pooled for c in padded),
        None if first.lengths is None else _together(c.lengths for c in padded),
    )


def _together(parts: Iterable[Tensor | None]) -> Tensor:
    """Parts that are all there, row after row."""
    return torch.cat([part for part in parts if part is not None])


def encode_prompt(
    base: BaseModel, prompt: str | ParsedPrompt, nouns: Sequence[str] = (), placeholder_tokens: int = 0
) -> TokenizedPrompt:
    """Parse (if it is a string) and tokenize one prompt for `base`."""
    parsed = parse_prompt(prompt, nouns) if isinstance(prompt, str) else prompt
    return tokenize(base.tokenizers, parsed, placeholder_tokens, len(nouns))


def encode_contexts(
    base: BaseModel,
    prompts: Sequence[TokenizedPrompt],
    text_tokens: Sequence[Sequence[Tensor]] = (),
    rows: int | None = None,
    shared: bool = True,
    clip_skip: int = 0,
) -> TextContext:
    """Encode B prompts (or one prompt at B timesteps: repeat it) to text contexts; gradients flow into S*.

    text_tokens[k][i]: S* of subject k for text encoder i, (B, L, n, d_text) — `AdapterOutput.mfi.text_tokens` of each
        subject. They replace the filler tokens at the encoder's input; a prompt without this subject's fillers
        (positions −1) ignores them. () = plain text, one context for all layers.
    rows: how many (prompt, layer) rows go through the encoder at once; None = what suits the device.
    shared: where all prompts are one and the same (a run's timesteps), compute what its rows share only once. False is
        the plain way, every row in full: the same numbers, up to rounding.
    clip_skip: read so many layers of the text encoders before the one that the base reads.
    A base that was trained without padding (`BaseModel.masks_padding`) gets contexts as long as the longest prompt,
    with `TextContext.lengths`; the encoders are causal, so what stays is what it would be beside its padding.
    """
    rows = rows or ROWS.get(base.device.type, 64)
    positions = torch.stack([prompt.positions for prompt in prompts])  # (B, K, n)
    given = [tokens for tokens in text_tokens if len(tokens)]
    hidden, pooled = [], None
    ends = [prompt.end for prompt in prompts]
    seen = max(ends) + 1 if base.masks_padding else None
    places = positions[0].flatten().tolist()
    together = (
        shared and not clip_skip and bool(given) and max(places) > 0 and all(prompt is prompts[0] for prompt in prompts)
    )
    encoding = _Encoding(base, prompts, positions, rows, clip_skip)
    for i, encoder in enumerate(base.text_encoders):
        ids = sent(torch.stack([prompt.ids[i][:seen] for prompt in prompts]), base.device)
        embeds = encoder.get_input_embeddings()(ids[:1] if together else ids)[:, None]  # (B or 1, 1, S, d_text)
        tokens = [tokens[i] for tokens in given]
        h, p = (encoding.together if together else encoding.each)(encoder, embeds, tokens)
        hidden.append(h)
        if p is not None and hasattr(encoder, "text_projection"):
            pooled = p.mean(dim=1)
    lengths = torch.tensor(ends) + 1 if base.masks_padding else None
    return TextContext(hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=-1), pooled, lengths)


@dataclass(frozen=True, eq=False)
class _Encoding:
    """The rows (prompt, layer) of one `encode_contexts`, which go through each text encoder in turn."""

    base: BaseModel
    prompts: Sequence[TokenizedPrompt]
    positions: Tensor  # of S* (B, K, n) on the CPU, −1 where there is none
    rows: int  # that go through an encoder at once
    clip_skip: int

    def each(self, encoder: Any, embeds: Tensor, tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Every row in full -> hidden (B, L, S, d_text), projected pooled text (B, L, P) or None.

        embeds: (B, 1, S, d_text). tokens: S* of each subject (B, L, n, d_text).
        """
        embeds = _put_tokens(embeds, self.positions, tokens)
        B, L = embeds.shape[:2]
        ends = sent(torch.tensor([prompt.end for prompt in self.prompts]), self.base.device).repeat_interleave(L)
        parts = zip(embeds.flatten(0, 1).split(self.rows), ends.split(self.rows), strict=True)
        layer = self.base.spec.hidden_layer
        encoded = [encode_rows(encoder, part, end, layer, self.clip_skip) for part, end in parts]
        hidden = torch.cat([h for h, _ in encoded]).unflatten(0, (B, L))
        if encoded[0][1] is None:
            return hidden, None
        return hidden, _together(p for _, p in encoded).unflatten(0, (B, L))

    def together(self, encoder: Any, embeds: Tensor, tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The same for one prompt B times: embeds (1, 1, S, d_text)."""
        B, L = tokens[0].shape[:2]
        places = self.positions[0].flatten()
        given = (places >= 0).nonzero()[:, 0]
        own = torch.cat(list(tokens), dim=2).flatten(0, 1)[:, sent(given, embeds.device)]  # (B·L, K·n, d_text)
        at, end, layer = places[given].tolist(), self.prompts[0].end, self.base.spec.hidden_layer
        hidden, pooled = encode_shared(encoder, embeds[0, 0], own.to(embeds.dtype), at, end, layer, self.rows)
        return hidden.unflatten(0, (B, L)), None if pooled is None else pooled.unflatten(0, (B, L))


def _put_tokens(embeds: Tensor, positions: Tensor, tokens: Sequence[Tensor]) -> Tensor:
    """Replace the fillers. embeds: (B, 1, S, d); positions: (B, K, n); tokens: K × (B, L, n, d) -> (B, L, S, d)."""
    if not tokens:
        return embeds
    S, positions = embeds.shape[2], sent(positions, embeds.device)
    embeds = F.pad(embeds.expand(-1, tokens[0].shape[1], -1, -1), (0, 0, 0, 1))  # one slot more, for absent S*
    for k, s in enumerate(tokens):
        place = positions[:, k].where(positions[:, k] >= 0, S)
        embeds = embeds.scatter(2, place[:, None, :, None].expand_as(s), s.to(embeds.dtype))
    return embeds[:, :, :S]


def subject_state(
    base: BaseModel,
    context: TextContext,
    prompts: Sequence[TokenizedPrompt],
    outputs: Sequence[AdapterOutput] = (),
    *,
    size: tuple[int, int],
    strengths: Sequence[float | Tensor] | None = None,
    layer_scales: Sequence[Sequence[float] | None] = (),
    everywhere: Sequence[SubjectBranch] = (),
    unconditional: TextContext | None = None,
    repeat: int = 1,
    masks: Tensor | None = None,
    masked: Sequence[bool] = (),
    location: LocationConfig | None = None,
    recorder: MapRecorder | None = None,
    steady: bool = False,
    projected: dict[int, tuple[Tensor, Tensor]] | None = None,
    origins: Tensor | None = None,
) -> SubjectState:
    """Assemble the state of one UNet call, for training and inference alike; pass it to `attention.unet_forward`.

    context: C(t, l) of B prompts, from `encode_contexts`. prompts: the same prompts, for the places of S*.
    outputs: the adapter's output for each subject k, B rows each. strengths: λ of each subject, or one λ per row (B,).
    layer_scales: what each subject's λ is multiplied by in each layer, None = 1; () for none. everywhere: see
        SubjectState.
    size: (h, w) of the latents. unconditional: the empty prompt, put in front for classifier-free guidance.
    repeat: pictures per prompt; the UNet call then has (B [+ B unconditional]) · repeat rows.
    masks, location, recorder, projected: see SubjectState. masked: whether masks hold for each subject k; () = for all.
    steady: `context` is the same at every step of this run. origins: see `BaseModel.added_conditions`.

        out = adapter(hidden_states, t)                                   # trained, with gradients
        context = encode_contexts(base, prompts, [out.mfi.text_tokens])   # frozen, gradients pass through
        state = subject_state(base, context, prompts, [out], size=z.shape[-2:], recorder=MapRecorder())
        prediction = unet_forward(base, z, t, state)
        A = aggregate(state.recorder)                                     # (B, K, h, w), for Eq. 8
    """
    strengths = strengths if strengths is not None else [1.0] * len(outputs)
    masked = masked or [True] * len(outputs)
    groups = [context] if unconditional is None else [unconditional, context]
    longest = max(group.hidden.shape[2] for group in groups)
    groups = [group.padded(longest) for group in groups]
    places = None
    by_noun = bool(outputs) and outputs[0].by_noun
    layer_scales = layer_scales or [None] * len(outputs)
    places = torch.empty(0)
    if outputs:
        rows = [prompt.noun_rows if by_noun else prompt.position_rows for prompt in prompts]
        places = sent(torch.stack([row[:, :longest] for row in rows]), base.device)
    branches = tuple(
        SubjectBranch(
            keys=[_spread(key, repeat) for key in out.keys],
            values=[_spread(value, repeat) for value in out.values],
            positions=_spread(places[:, k], repeat) if by_noun or out.mfi.text_tokens else None,
            strength=strength,
            sink=out.sink,
            masked=on,
            named=not by_noun,
            layer_scales=scales,
            beside=None if out.beside is None else _all_spread(out.beside, repeat),
            unconditional=out.unconditional,
        )
        for k, (out, strength, on, scales) in enumerate(zip(outputs, strengths, masked, layer_scales, strict=True))
    )
    lengths = None
    if context.lengths is not None:
        lengths = _together(group.lengths for group in groups).repeat_interleave(repeat)
    pooled = None
    if context.pooled is not None:
        pooled = _together(group.pooled for group in groups).repeat_interleave(repeat, dim=0)
    return SubjectState(
        text=tuple(group.hidden for group in groups),
        size=(int(size[0]), int(size[1])),
        branches=branches,
        everywhere=tuple(everywhere),
        repeat=repeat,
        first=0 if unconditional is None else len(unconditional.hidden) * repeat,
        masks=masks,
        location=location or LocationConfig(),
        recorder=recorder,
        steady=(steady,) if unconditional is None else (True, steady),
        projected=projected,
        lengths=lengths,
        added_conditions=base.added_conditions(
            pooled, size[0] * base.scale_factor, size[1] * base.scale_factor, origins
        ),
    )


def _spread(x: Tensor, repeat: int) -> Tensor:
    """One row per picture; a single row stays one and is broadcast."""
    return x if len(x) == 1 or repeat == 1 else x.repeat_interleave(repeat, dim=0)


def _all_spread(pair: tuple[list[Tensor], list[Tensor]], repeat: int) -> tuple[list[Tensor], list[Tensor]]:
    keys, values = ([_spread(x, repeat) for x in xs] for xs in pair)
    return keys, values
