"""S+ tokens -> text encoder(s) -> one text context per (step, layer), and the state of one UNet call.

Training and inference both go: parse_prompt -> tokenize -> Adapter -> encode_contexts -> subject_state -> unet_forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from customcontrast.attention.maps import MapRecorder
from customcontrast.attention.state import SubjectBranch, SubjectState
from customcontrast.config import LocationConfig
from customcontrast.prompt import ParsedPrompt, TokenizedPrompt, parse_prompt, tokenize

if TYPE_CHECKING:
    from customcontrast.bases import BaseModel
    from customcontrast.checkpoint import AdapterOutput

__all__ = [
    "ParsedPrompt",
    "TextContext",
    "TokenizedPrompt",
    "encode_contexts",
    "encode_prompt",
    "parse_prompt",
    "subject_state",
    "tokenize",
]

ROWS = 64  # (t, l) rows that go through a text encoder at once


@dataclass(frozen=True, eq=False)
class TextContext:
    """What the UNet reads of B prompts."""

    hidden: Tensor  # C(t, l): (B, L, S, d_text), widths of several text encoders joined; (B, 1, S, d_text) without S*
    pooled: Tensor | None = None  # SDXL's pooled text (B, P): the mean over the layers' contexts

    def row(self, i: int) -> TextContext:
        """The i-th prompt (or timestep) alone."""
        return TextContext(self.hidden[i : i + 1], None if self.pooled is None else self.pooled[i : i + 1])


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
    rows: int = ROWS,
) -> TextContext:
    """Text contexts of B prompts (or of one prompt at B timesteps: repeat it), gradients flow into S*.

    text_tokens[k][i]: S* of subject k for text encoder i, (B, L, n, d_text) — `AdapterOutput.mfi.text_tokens` of each
        subject. They replace the filler tokens at the encoder's input; a prompt without this subject's fillers
        (positions −1) ignores them. () = plain text, one context for all layers.
    rows: how many (prompt, layer) rows go through the encoder at once.
    """
    positions = torch.stack([prompt.positions for prompt in prompts]).to(base.device)  # (B, K, n)
    given = [tokens for tokens in text_tokens if len(tokens)]
    hidden, pooled = [], None
    for i, encoder in enumerate(base.text_encoders):
        ids = torch.stack([prompt.ids[i] for prompt in prompts]).to(base.device)
        embeds = encoder.get_input_embeddings()(ids)[:, None]  # (B, 1, S, d_text)
        embeds = _put_tokens(embeds, positions, [tokens[i] for tokens in given])
        B, L = embeds.shape[:2]
        ends = torch.tensor([prompt.end for prompt in prompts], device=base.device).repeat_interleave(L)
        parts = zip(embeds.flatten(0, 1).split(rows), ends.split(rows), strict=True)
        encoded = [_run_encoder(encoder, part, end, base.spec.hidden_layer) for part, end in parts]
        hidden.append(torch.cat([h for h, _ in encoded]).unflatten(0, (B, L)))
        if hasattr(encoder, "text_projection"):
            pooled = torch.cat([p for _, p in encoded]).unflatten(0, (B, L)).mean(dim=1)
    return TextContext(hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=-1), pooled)


def _put_tokens(embeds: Tensor, positions: Tensor, tokens: Sequence[Tensor]) -> Tensor:
    """Replace the fillers. embeds: (B, 1, S, d); positions: (B, K, n); tokens: K × (B, L, n, d) -> (B, L, S, d)."""
    if not tokens:
        return embeds
    S = embeds.shape[2]
    embeds = F.pad(embeds.expand(-1, tokens[0].shape[1], -1, -1), (0, 0, 0, 1))  # one slot more, for absent S*
    for k, s in enumerate(tokens):
        place = positions[:, k].where(positions[:, k] >= 0, S)
        embeds = embeds.scatter(2, place[:, None, :, None].expand_as(s), s.to(embeds.dtype))
    return embeds[:, :, :S]


def _run_encoder(encoder: nn.Module, embeds: Tensor, ends: Tensor, hidden_layer: int) -> tuple[Tensor, Tensor | None]:
    """A CLIP text encoder on input embeddings (CLIPTextModel itself takes only ids).

    embeds: (R, S, d); ends: position of each row's end token (R,). hidden_layer: −1 = last hidden state, normed;
    −2 = the one before it, not normed (SDXL). Returns it (R, S, d), and the projected pooled text (R, P) or None.
    """
    core = getattr(encoder, "text_model", encoder)
    h = core.embeddings(inputs_embeds=embeds)
    mask = create_causal_mask(config=core.config, inputs_embeds=h, attention_mask=None, past_key_values=None)
    states = [h]
    for layer in core.encoder.layers:
        h = layer(h, mask, is_causal=True)
        states = [states[-1], h]
    normed = core.final_layer_norm(h) if hidden_layer == -1 or hasattr(encoder, "text_projection") else None
    pooled = None
    if hasattr(encoder, "text_projection"):
        pooled = encoder.text_projection(normed[torch.arange(len(normed), device=normed.device), ends])
    return (normed if hidden_layer == -1 else states[hidden_layer]), pooled


def subject_state(
    base: BaseModel,
    context: TextContext,
    prompts: Sequence[TokenizedPrompt],
    outputs: Sequence[AdapterOutput] = (),
    *,
    size: tuple[int, int],
    strengths: Sequence[float | Tensor] | None = None,
    unconditional: TextContext | None = None,
    repeat: int = 1,
    masks: Tensor | None = None,
    location: LocationConfig | None = None,
    recorder: MapRecorder | None = None,
) -> SubjectState:
    """The state of one UNet call, for training and inference alike; hand it to `attention.unet_forward`.

    context: C(t, l) of B prompts, from `encode_contexts`. prompts: the same prompts, for the places of S*.
    outputs: what the adapter said of each subject k, B rows each. strengths: λ of each subject, or one λ per row (B,).
    size: (h, w) of the latents. unconditional: the empty prompt, put in front for classifier-free guidance.
    repeat: pictures per prompt; the UNet call then has (B [+ B unconditional]) · repeat rows.
    masks, location, recorder: see SubjectState.

        out = adapter(hidden_states, t)                                   # trained, with gradients
        context = encode_contexts(base, prompts, [out.mfi.text_tokens])   # frozen, gradients pass through
        state = subject_state(base, context, prompts, [out], size=z.shape[-2:], recorder=MapRecorder())
        prediction = unet_forward(base, z, t, state)
        A = aggregate(state.recorder)                                     # (B, K, h, w), for Eq. 8
    """
    strengths = strengths if strengths is not None else [1.0] * len(outputs)
    places = torch.stack([prompt.position_rows for prompt in prompts]).to(base.device) if outputs else None
    branches = tuple(
        SubjectBranch(
            keys=[_spread(key, repeat) for key in out.keys],
            values=[_spread(value, repeat) for value in out.values],
            positions=_spread(places[:, k], repeat) if out.mfi.text_tokens else None,
            strength=strength,
            sink=out.sink,
        )
        for k, (out, strength) in enumerate(zip(outputs, strengths, strict=True))
    )
    groups = (context,) if unconditional is None else (unconditional, context)
    pooled = None
    if context.pooled is not None:
        pooled = torch.cat([group.pooled for group in groups]).repeat_interleave(repeat, dim=0)
    return SubjectState(
        text=tuple(group.hidden for group in groups),
        size=(int(size[0]), int(size[1])),
        branches=branches,
        repeat=repeat,
        first=0 if unconditional is None else len(unconditional.hidden) * repeat,
        masks=masks,
        location=location or LocationConfig(),
        recorder=recorder,
        added_conditions=base.added_conditions(pooled, size[0] * base.scale_factor, size[1] * base.scale_factor),
    )


def _spread(x: Tensor, repeat: int) -> Tensor:
    """One row per picture; a single row stays one and is broadcast."""
    return x if len(x) == 1 or repeat == 1 else x.repeat_interleave(repeat, dim=0)
