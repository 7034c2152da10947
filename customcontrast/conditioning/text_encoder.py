"""CLIP text encoders on input embeddings: row by row, and many rows at once that differ only in their S* tokens.

`CLIPTextModel` itself takes only token ids. `encode_rows` is the plain way and the reference; `encode_shared` gives the
same numbers for less. The encoders are causal, so in the rows of one prompt

* what stands before S* is the same in all of them: computed once, its keys and values are attended to by all rows;
* in the first layer every token but S* is still the same: its queries, keys and values are computed once;
* where the UNet reads the state before the last layer (SDXL), the last layer runs at the end token alone, for the
  pooled text, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from customcontrast.transfer import sent

Heads = tuple[Tensor, Tensor, Tensor]  # queries, keys, values, each (R, heads, tokens, c)


def encode_rows(
    encoder: Any, embeds: Tensor, ends: Tensor, hidden_layer: int, clip_skip: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Run a CLIP text encoder on input embeddings, every row in full.

    embeds: (R, S, d); ends: position of each row's end token (R,). hidden_layer: −1 = last hidden state, normed;
    −2 = the one before it, not normed (SDXL). clip_skip: so many layers before that one. Returns it (R, S, d), and the
    projected pooled text (R, P) or None.
    """
    core = getattr(encoder, "text_model", encoder)
    h = core.embeddings(inputs_embeds=embeds)
    mask = create_causal_mask(core.config, h, None, None)  # no padding, no cache; the last one's name has changed
    depth, state = len(core.encoder.layers) + 1 + hidden_layer - clip_skip, h
    for i, layer in enumerate(core.encoder.layers):
        h = layer(h, mask, is_causal=True)
        state = h if i + 1 == depth else state
    pooled = None
    if hasattr(encoder, "text_projection"):
        normed = core.final_layer_norm(h)
        pooled = encoder.text_projection(normed[torch.arange(len(normed), device=normed.device), ends])
    return (core.final_layer_norm(state) if hidden_layer == -1 else state), pooled


def encode_shared(
    encoder: Any, embeds: Tensor, tokens: Tensor, places: Sequence[int], end: int, hidden_layer: int, rows: int
) -> tuple[Tensor, Tensor | None]:
    """Run a CLIP text encoder on R rows of one prompt that differ in their S* tokens alone.

    embeds: (S, d), the prompt's; tokens: (R, m, d), the S* of each row; places: their m positions, from 1. end: the end
    token's position. rows: how many go through at once. Returns what `encode_rows` does; gradients reach `tokens`.
    """
    core = getattr(encoder, "text_model", encoder)
    layers = list(core.encoder.layers)
    depth = len(layers) + 1 + hidden_layer  # layers that every token goes through
    first = min(places)
    h = core.embeddings(inputs_embeds=embeds[None])
    prefix, before = _prefix(layers, depth, h[:, :first])
    after = h[:, first:]
    same = project(layers[0], after)
    at = sent(torch.tensor([place - first for place in places]), h.device)
    own = tokens + core.embeddings.position_embedding.weight[sent(torch.tensor(list(places)), h.device)]
    mask = torch.ones(after.shape[1], h.shape[1], dtype=torch.bool, device=h.device).tril(first)
    norm = core.final_layer_norm if hidden_layer == -1 else nn.Identity()

    hidden, pooled = h.new_empty(len(own), *h.shape[1:]), []
    hidden[:, :first] = norm(before)
    for start in range(0, len(own), rows):
        part = own[start : start + rows]
        x = after.expand(len(part), -1, -1).index_copy(1, at, part)
        for i, layer in enumerate(layers[:depth]):
            heads = _replaced(same, project(layer, part), at) if i == 0 else project(layer, x)
            x = finish(layer, x, joined(_attend(heads, prefix[i], mask)))
        y = norm(x)
        hidden[start : start + rows, first:] = y
        if hasattr(encoder, "text_projection"):
            if depth < len(layers):
                y = core.final_layer_norm(_last_token(layers[-1], x[:, : end - first + 1], prefix[-1]))
            pooled.append(encoder.text_projection(y[:, end - first if depth == len(layers) else 0]))
    return hidden, torch.cat(pooled) if pooled else None


def _prefix(layers: Sequence[Any], depth: int, x: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Keys and values of the tokens before S* in every layer, and their state after `depth` layers (1, first, d)."""
    keys_values, state = [], x
    for i, layer in enumerate(layers):
        Q, K, V = project(layer, x)
        keys_values.append((K, V))
        x = finish(layer, x, joined(F.scaled_dot_product_attention(Q, K, V, is_causal=True)))
        state = x if i + 1 == depth else state
    return keys_values, state


def project(layer: Any, x: Tensor) -> Heads:
    """Queries, keys and values of a CLIP layer for tokens x (R, tokens, d)."""
    x, attention = layer.layer_norm1(x), layer.self_attn
    Q, K, V = (
        proj(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return Q, K, V


def _replaced(same: Heads, own: Heads, at: Tensor) -> Heads:
    """Heads that all rows share, (1, heads, tokens, c), with each row's own in the places `at`."""
    Q, K, V = (x.expand(len(y), -1, -1, -1).index_copy(2, at, y) for x, y in zip(same, own, strict=True))
    return Q, K, V


def _attend(heads: Heads, prefix: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
    Q, K, V = heads
    K, V = (torch.cat([x.expand(len(y), -1, -1, -1), y], dim=2) for x, y in zip(prefix, (K, V), strict=True))
    return F.scaled_dot_product_attention(Q, K, V, attn_mask=mask)


def joined(x: Tensor) -> Tensor:
    """Join the heads again: (R, heads, tokens, c) -> (R, tokens, d)."""
    return x.transpose(1, 2).flatten(2)


def finish(layer: Any, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of a CLIP layer at tokens x (…, d): output projection, residual, feed-forward. attended: (…, d)."""
    x = x + layer.self_attn.out_proj(attended)
    return x + layer.mlp(layer.layer_norm2(x))


def _last_token(layer: Any, x: Tensor, prefix: tuple[Tensor, Tensor]) -> Tensor:
    """One layer at the last of the tokens x (R, tokens, d) alone -> (R, 1, d)."""
    Q, K, V = project(layer, x)
    return finish(layer, x[:, -1:], joined(_attend((Q[:, :, -1:], K, V), prefix, None)))
