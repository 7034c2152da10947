"""Text contexts of a training batch, without computing anything twice that is the same.

A prompt with S* goes through a text encoder once for each of the L layers. The encoders are causal, so of those L rows

* what stands before S* is the same in all of them and needs no gradient: computed once for each prompt, its keys and
  values are attended to by all rows;
* what stands behind the end token is seen by nobody where the base masks padding: it is left out;
* the rest, of all prompts and layers, is packed token after token, so that a short prompt costs less than a long one;
  only attention sees it in rows, padded to the longest.

A prompt without S* is the first part alone. `encode_contexts` is the plain way: the same values and gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.activations import QuickGELUActivation

from customcontrast.base_model import BaseModel
from customcontrast.conditioning.prompt import TokenizedPrompt
from customcontrast.conditioning.text_context import TextContext, encode_contexts
from customcontrast.conditioning.text_encoder import finish, joined, project
from customcontrast.precision import lowered
from customcontrast.transfer import sent


def contexts_of(base: BaseModel, prompts: Sequence[TokenizedPrompt], text_tokens: Sequence[Tensor]) -> TextContext:
    """`encode_contexts` of a batch with one subject; gradients flow into S*.

    text_tokens: S* for each text encoder, (B, L, n, d_text), or () without the textual branch.
    """
    if not text_tokens:
        return encode_contexts(base, prompts)
    ends = [prompt.end for prompt in prompts]
    seen = max(ends) + 1 if base.masks_padding else len(prompts[0].ids[0])
    lasts = ends if base.masks_padding else [seen - 1] * len(prompts)
    places = [prompt.positions[0].tolist() for prompt in prompts]
    packing = Packing.of(places, ends, lasts, seen, text_tokens[0].shape[1]).to(base.device)
    at_end = sent(torch.tensor(ends), base.device)
    hidden, pooled = [], None
    for i, (encoder, tokens) in enumerate(zip(base.text_encoders, text_tokens, strict=True)):
        ids = torch.stack([prompt.ids[i][:seen] for prompt in prompts])
        h, p = _encode(encoder, sent(ids, base.device), tokens, packing, at_end, base.spec.hidden_layer)
        hidden.append(h)
        pooled = pooled if p is None else p
    lengths = torch.tensor(ends) + 1 if base.masks_padding else None
    return TextContext(hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=-1), pooled, lengths)


QUICK = 1.702  # of CLIP's activation, x σ(1.702 x)
DENSE = 1.15  # padded over packed tokens, below which packing costs more than it saves


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the tokens from S* on stand: packed (T,), in rows padded to the longest, and in the whole contexts.

    The packed order is prompt, layer, token. B' counts the prompts that have S*; R = B' · L rows.
    """

    layers: int  # L
    longest: int  # tokens of a row, from S* on
    before: int  # tokens before S*, at most
    given: Tensor  # which prompts have S* (B',)
    sources: Tensor  # token of the batch (B · S) that a packed one is, (T,)
    rows: Tensor  # its place in the padded rows (R · longest), (T,)
    contexts: Tensor  # its place in the contexts (B · L · S), (T,)
    subject: Tensor  # packed places of S*, (B' · L · n,)
    positions: Tensor  # positions of S* in the prompts (B', n)
    ends: Tensor  # packed places of the end tokens, (R,)
    mask: Tensor  # what a token attends to, bool (B', longest, before + longest)

    @classmethod
    def of(
        cls,
        places: Sequence[Sequence[int]],
        ends: Sequence[int],
        lasts: Sequence[int],
        length: int,
        layers: int,
    ) -> Packing:
        """places: positions of S* in each prompt, −1 = none. lasts: the last tokens needed. length: S, of a prompt."""
        given = [i for i, own in enumerate(places) if own[0] >= 0]
        starts = [min(places[i]) for i in given]
        counts = [lasts[i] + 1 - start for i, start in zip(given, starts, strict=True)]
        if counts and max(counts) * len(counts) < DENSE * sum(counts):  # rows of one length need no packing
            starts = [min(starts)] * len(starts)
            counts = [max(lasts[i] for i in given) + 1 - starts[0]] * len(starts)
        longest, before = max(counts, default=0), max(starts, default=0)
        layer = torch.arange(layers)[:, None]
        source, row, context, subject, end, offset = [], [], [], [], [], 0
        for k, (i, start, count) in enumerate(zip(given, starts, counts, strict=True)):
            token, packed = torch.arange(count), offset + layer * count - start
            source.append((i * length + start + token).expand(layers, -1))
            row.append((k * layers + layer) * longest + token)
            context.append((i * layers + layer) * length + start + token)
            subject.append(packed + torch.tensor(places[i]))
            end.append(packed + ends[i])
            offset += layers * count
        known = torch.arange(before)[None] < torch.tensor(starts, dtype=torch.long)[:, None]
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        known, causal = known[:, None].expand(-1, longest, -1), causal.expand(len(given), -1, -1)
        return cls(
            layers,
            longest,
            before,
            torch.tensor(given, dtype=torch.long),
            _flat(source),
            _flat(row),
            _flat(context),
            _flat(subject),
            torch.tensor([places[i] for i in given], dtype=torch.long),
            _flat(end),
            torch.cat([known, causal], dim=-1),
        )

    def to(self, device: torch.device) -> Packing:
        """All of it on `device`."""
        tensors = {name: sent(value, device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Packing(**(vars(self) | tensors))

    @property
    def dense(self) -> bool:
        """Whether all rows are equally long, so that packed tokens are rows as they are."""
        return len(self.rows) == self.layers * len(self.given) * self.longest

    def padded(self, x: Tensor) -> Tensor:
        """Packed tokens (T, d) -> rows (R, longest, d)."""
        if not self.dense:
            x = x.new_zeros(self.layers * len(self.given) * self.longest, x.shape[-1]).index_copy(0, self.rows, x)
        return x.unflatten(0, (-1, self.longest))

    def packed(self, x: Tensor) -> Tensor:
        """Rows (R, longest, d) -> packed tokens (T, d)."""
        return x.flatten(0, 1) if self.dense else x.flatten(0, 1)[self.rows]

    def bias(self, dtype: torch.dtype) -> Tensor:
        """What to add to the logits (R, 1, longest, before + longest)."""
        return _bias(self.mask, dtype).repeat_interleave(self.layers, dim=0)[:, None]


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts]) if parts else torch.empty(0, dtype=torch.long)


def _encode(
    encoder: Any, ids: Tensor, tokens: Tensor, packing: Packing, ends: Tensor, hidden_layer: int
) -> tuple[Tensor, Tensor | None]:
    """One text encoder: hidden (B, L, S, d_text), pooled (B, P) or None. ids: (B, S); tokens: S* (B, L, n, d_text)."""
    core = getattr(encoder, "text_model", encoder)
    B, S = ids.shape
    depth = len(core.encoder.layers) + 1 + hidden_layer
    projection = getattr(encoder, "text_projection", None)
    with torch.no_grad():
        h = core.embeddings(inputs_embeds=encoder.get_input_embeddings()(ids))
        plain, pooled, known = _plain(core, h, packing, depth, ends, projection)
    hidden = plain[:, None].expand(-1, packing.layers, -1, -1)
    if not len(packing.given):  # gradients of 0, which several processes wait for
        return hidden + 0 * tokens.sum().to(hidden.dtype), pooled

    own = tokens[packing.given] + core.embeddings.position_embedding.weight[packing.positions][:, None]
    x = h.flatten(0, 1)[packing.sources].index_copy(0, packing.subject, own.flatten(0, 2).to(h.dtype))
    state = x
    mask = packing.bias(known[0][0].dtype)
    recompute = encoder.training and getattr(core.encoder.layers[0], "gradient_checkpointing", False)
    for i, (layer, pair) in enumerate(zip(core.encoder.layers, known, strict=False)):
        run: Callable[[Tensor], Tensor] = functools.partial(_layer, layer, packing, pair, mask)
        x = checkpoint(run, x, use_reentrant=False) if recompute else run(x)
        state = x if i + 1 == depth else state
    state = core.final_layer_norm(state) if hidden_layer == -1 else state
    hidden = hidden.reshape(B * packing.layers * S, -1).index_copy(0, packing.contexts, state.to(hidden.dtype))
    if pooled is not None and projection is not None:
        p = projection(core.final_layer_norm(x[packing.ends])).unflatten(0, (-1, packing.layers)).mean(dim=1)
        pooled = pooled.index_copy(0, packing.given, p.to(pooled.dtype))
    return hidden.unflatten(0, (B, packing.layers, S)), pooled


def _plain(
    core: Any, h: Tensor, packing: Packing, depth: int, ends: Tensor, projection: Any
) -> tuple[Tensor, Tensor | None, list[tuple[Tensor, Tensor]]]:
    """The prompts with their fillers, h (B, S, d): contexts (B, S, d), pooled (B, P) or None, keys and values.

    Of the prompts with S*, keys and values of what stands before it, in each layer: (B', heads, before, c).
    """
    known, state = [], h
    causal = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool, device=h.device).tril()
    for i, layer in enumerate(core.encoder.layers[: depth if projection is None else None]):
        Q, K, V = project(layer, h)
        known.append((K[packing.given, :, : packing.before], V[packing.given, :, : packing.before]))
        h = finish(layer, h, joined(_attend(Q, K, V, _bias(causal, Q.dtype))))
        state = h if i + 1 == depth else state
    pooled = None
    if projection is not None:
        pooled = projection(core.final_layer_norm(h[torch.arange(len(h), device=h.device), ends]))
    return (core.final_layer_norm(state) if depth == len(core.encoder.layers) else state), pooled, known


def _layer(layer: Any, packing: Packing, known: tuple[Tensor, Tensor], mask: Tensor, x: Tensor) -> Tensor:
    """One CLIP layer at packed tokens x (T, d). known: keys and values before S* (B', heads, before, c)."""
    attention = layer.self_attn
    y = lowered(layer.layer_norm1(x))  # once for all three
    Q, K, V = (
        packing.padded(projection(y)).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    K, V = (
        torch.cat([before.repeat_interleave(packing.layers, dim=0).to(own.dtype), own], dim=2)
        for before, own in zip(known, (K, V), strict=True)
    )
    x = x + attention.out_proj(packing.packed(joined(_attend(Q, K, V, mask))))
    return x + _feedforward(layer.mlp, layer.layer_norm2(x))


def _feedforward(mlp: Any, x: Tensor) -> Tensor:
    """CLIP's feed-forward part; on a CPU x σ(1.702 x) = silu(1.702 x) / 1.702, with the numbers in the weights."""
    if x.device.type != "cpu" or not isinstance(mlp.activation_fn, QuickGELUActivation):
        return mlp(x)
    h = F.silu(F.linear(x, QUICK * mlp.fc1.weight, QUICK * mlp.fc1.bias))
    return F.linear(h, mlp.fc2.weight / QUICK, mlp.fc2.bias)


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to logits where `mask` is what may be attended to."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)


def _attend(Q: Tensor, K: Tensor, V: Tensor, bias: Tensor) -> Tensor:
    """Attention with a bias of the logits: on a CPU in plain steps, whose backward pass is the faster one."""
    if Q.device.type != "cpu":
        return F.scaled_dot_product_attention(Q, K, V, attn_mask=bias)
    logits = (Q * Q.shape[-1] ** -0.5) @ K.transpose(-1, -2) + bias
    return logits.softmax(dim=-1) @ V
