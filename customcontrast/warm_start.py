"""Our adapter with a published IP-Adapter in its visual branch, from which its training starts.

The image tokens of the file (`ip_adapter.IPAdapter`) have a softmax of their own beside that of the subject's features,
under the same λ and the same mask, so Eq. 3 becomes

    softmax(Q K_tᵀ/√d) V_t + λ · [softmax(Q K_vᵀ/√d) V_v + softmax(Q K_pᵀ/√d) V_p]

with V_v = 0 at first: before its first step the visual branch is the IP-Adapter. A softmax over both kinds of keys
would not do: the new keys would take weight from the old ones at once. As an IP-Adapter, it shows the unconditional
half the tokens of no picture, and in training the rows whose subject is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from customcontrast.adapter import Adapter, AdapterOutput
from customcontrast.attention.layers import LayerSpec
from customcontrast.base_model import BaseModel, encoder_config
from customcontrast.building import alone
from customcontrast.config import EncoderConfig
from customcontrast.encoder.image_features import extract
from customcontrast.errors import CheckpointError
from customcontrast.ip_adapter import IPAdapter, IPAdapterConfig, load_ip_adapter, read_config

PREFIX = "published."  # of the IP-Adapter's weights among the adapter's


class WarmAdapter(Adapter):
    """`Adapter` with an IP-Adapter beside it; all of both is trained.

    Of the three CLIP layers of f_I the coarsest is the one before the last, which IP-Adapters read: see
    `BaseModel.penultimate`.
    """

    black: Tensor | None

    @alone
    def __init__(
        self, config: EncoderConfig, specs: tuple[LayerSpec, ...], base_name: str, sizes: IPAdapterConfig
    ) -> None:
        super().__init__(config, specs, base_name)
        self.published = IPAdapter(sizes, specs, base_name)
        for weight in self.attention.to_v.parameters():
            nn.init.zeros_(weight)
        # The hidden states of a zero picture (1, N, d_I), which training needs at every step.
        self.register_buffer("black", None, persistent=False)

    @classmethod
    def from_file(cls, base: BaseModel, file: str | Path, **overrides: Any) -> WarmAdapter:
        """An adapter for `base` that starts as a published IP-Adapter; overrides are EncoderConfig fields.

        Raises CheckpointError for a file that is none, is for another base or image encoder, or reads image embeddings.
        """
        base = replace(base, penultimate=True, dtype=torch.float32)  # the file's 16-bit numbers as they are
        sizes = checked(read_config(file)[0], Path(file).name)
        published = load_ip_adapter(file, base)
        adapter = cls(encoder_config(base, **overrides), base.cross_attention_layers, base.name, sizes)
        adapter.published.load_state_dict(published.state_dict())
        adapter.image_encoder = base.encoder_id
        return adapter.to(base.device).sees_nothing(base)

    @torch.no_grad()
    def sees_nothing(self, base: BaseModel) -> WarmAdapter:
        """Look at a zero picture, for training; returns itself."""
        side = base.image_side
        pixels = torch.zeros(1, 3, side, side, device=base.device, dtype=base.image_encoder.dtype)
        self.black = extract(base, pixels, self.config.image_layers)[0]
        return self

    def alike(self) -> WarmAdapter:
        """Another one of the same sizes, untrained."""
        copy = WarmAdapter(self.config, self.attention.specs, self.base_name, self.published.config)
        copy.image_encoder, copy.black = self.image_encoder, self.black
        return copy

    @torch.no_grad()
    def image_tokens(self, base: BaseModel, pictures: Sequence[Image.Image], side: int | None = None) -> Tensor:
        """The IP-Adapter's tokens of one subject's references: (1, references · tokens, C). side: see `preprocess`."""
        return self.published.look(base, pictures, side)

    def forward(
        self, hidden_states: tuple[Tensor, ...], t: Tensor, positives: tuple[Tensor, ...] | None = None
    ) -> AdapterOutput:
        """See `Adapter.forward`. Raises ValueError where `sees_nothing` was not called."""
        black, dtype = self.black, next(self.parameters()).dtype
        if black is None:
            raise ValueError("WarmAdapter: the hidden states of no picture are not known; call `sees_nothing` first.")
        out = super().forward(hidden_states, t, positives)
        seen, nothing = (self.published.image_proj(x.to(dtype)) for x in (hidden_states[0], black))
        return self.joined(out, seen, nothing)

    def joined(self, out: AdapterOutput, tokens: Tensor, nothing: Tensor) -> AdapterOutput:
        """`out` with the IP-Adapter's keys and values. tokens: (B or 1, n, C); nothing: (1, n', C) of no picture."""
        beside = self.published.at(tokens, nothing=nothing)
        return replace(out, beside=(beside.keys, beside.values), unconditional=beside.unconditional)


def checked(sizes: IPAdapterConfig, name: str) -> IPAdapterConfig:
    """Raises CheckpointError for an IP-Adapter that training cannot start from."""
    if sizes.kind == "pooled":
        raise CheckpointError(
            f"load_adapter: {name} reads image embeddings, and a start is needed that reads hidden states; take an "
            "IP-Adapter-plus, such as ip-adapter-plus."
        )
    return sizes


def sizes_in(shapes: Mapping[str, Sequence[int]], name: str) -> IPAdapterConfig | None:
    """Sizes of the IP-Adapter among an adapter's weights, given their shapes; None where there is none.

    Raises CheckpointError where its weights are of no known layout.
    """
    own = {key.removeprefix(PREFIX): shape for key, shape in shapes.items() if key.startswith(PREFIX)}
    if not own:
        return None
    layers = {key.replace(".weight", ".to_k_ip.weight"): s for key, s in own.items() if key.startswith("to_k.")}
    return checked(IPAdapterConfig.from_shapes(own | layers, name), name)
