"""The trainable parameters, `Adapter`: MFI encoder, and keys, values and null keys of Eq. 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from customcontrast.attention.layers import LayerSpec, SubjectAttention
from customcontrast.base_model import BaseModel, encoder_config
from customcontrast.building import alone
from customcontrast.config import DEFAULT_SCALES, EncoderConfig
from customcontrast.encoder import MFIEncoder, MFIOutput
from customcontrast.encoder.image_features import extract
from customcontrast.errors import CheckpointError

FORMAT = "customcontrast-adapter-1"


ABLATIONS = ("textual", "tv_fusion", "sink")


@dataclass(frozen=True)
class AdapterOutput:
    """Output of the adapter for a batch of subjects at their timesteps; B: samples or timesteps, L: layers."""

    mfi: MFIOutput
    keys: list[Tensor]  # K_v of Eq. 3 with the null key first: L × (B, n+1, width_l)
    values: list[Tensor]  # V_v, alike
    sink: bool  # whether the first key is the null key
    by_noun: bool = False  # without S*: the text map of the subject's noun locates it
    unconditional: tuple[list[Tensor], list[Tensor]] | None = None  # see `SubjectBranch.unconditional`
    beside: tuple[list[Tensor], list[Tensor]] | None = None  # see `SubjectBranch.beside`, L × (B or 1, n', width_l)

    def row(self, i: int) -> AdapterOutput:
        """The i-th sample (or timestep) alone; where one row stands for all, that one."""
        i = min(i, len(self.keys[0]) - 1)
        keep = slice(i, i + 1)
        mfi = MFIOutput(
            [tokens[keep] for tokens in self.mfi.text_tokens],
            None if self.mfi.text_cls is None else self.mfi.text_cls[keep],
            self.mfi.visual_tokens[keep],
            self.mfi.visual_cls[keep],
        )
        keys, values = ([x[keep] for x in xs] for xs in (self.keys, self.values))
        beside = None
        if self.beside is not None:
            K, V = ([x[min(i, len(x) - 1)][None] for x in xs] for xs in self.beside)
            beside = (K, V)
        return AdapterOutput(mfi, keys, values, self.sink, self.by_noun, self.unconditional, beside)

    def shown(self, where: Tensor) -> AdapterOutput:
        """Rows where `where` (B,) is 0 see no picture: their values are 0, and image tokens are the unconditional ones.

        For an output with `beside`.
        """
        assert self.beside is not None and self.unconditional is not None
        seen = where[:, None, None]
        both = zip(self.beside, self.unconditional, strict=True)
        K, V = ([torch.where(seen > 0, x, u) for x, u in zip(xs, us, strict=True)] for xs, us in both)
        return replace(self, values=[value * seen.to(value.dtype) for value in self.values], beside=(K, V))

    @staticmethod
    def cat(parts: Sequence[AdapterOutput]) -> AdapterOutput:
        """Join the samples (or timesteps) of several outputs in one."""
        mfis = [part.mfi for part in parts]
        mfi = MFIOutput(
            [torch.cat(tokens) for tokens in zip(*(m.text_tokens for m in mfis), strict=True)],
            None if mfis[0].text_cls is None else torch.cat([m.text_cls for m in mfis if m.text_cls is not None]),
            torch.cat([m.visual_tokens for m in mfis]),
            torch.cat([m.visual_cls for m in mfis]),
        )
        keys = [torch.cat(layer) for layer in zip(*(part.keys for part in parts), strict=True)]
        values = [torch.cat(layer) for layer in zip(*(part.values for part in parts), strict=True)]
        return AdapterOutput(mfi, keys, values, parts[0].sink)


class Adapter(nn.Module):
    """MFI encoder (section 3.2), and W'_k, W'_v and null keys of Eq. 3: everything that Eq. 9 trains.

    `forward` uses every parameter, so it can be wrapped in DistributedDataParallel as it is.
    """

    kind = "customcontrast"
    normalize = "raw"  # of its location maps; see LocationConfig
    default_scale = DEFAULT_SCALES[kind]

    @alone
    def __init__(self, config: EncoderConfig, specs: tuple[LayerSpec, ...], base_name: str = "") -> None:
        super().__init__()
        self.config = config
        self.base_name = base_name
        self.encoder = MFIEncoder(config)
        self.attention = SubjectAttention(config, specs)
        self.metadata: dict[str, Any] = {}  # of the file it was read from: step, revision, …
        self.image_encoder: dict[str, Any] | None = None  # whose features it reads, `BaseModel.encoder_id`

    @classmethod
    def create(cls, base: BaseModel, **overrides: Any) -> Adapter:
        """Make an untrained adapter for `base`, float32 on its device.

        overrides: fields of EncoderConfig. Raises ConfigError.
        """
        adapter = cls(encoder_config(base, **overrides), base.cross_attention_layers, base.name).to(base.device)
        adapter.image_encoder = base.encoder_id
        return adapter

    def alike(self) -> Adapter:
        """Another one of the same sizes, untrained."""
        copy = Adapter(self.config, self.attention.specs, self.base_name)
        copy.image_encoder = self.image_encoder
        return copy

    @torch.no_grad()
    def look(self, base: BaseModel, pictures: Sequence[Image.Image], side: int | None = None) -> Tensor:
        """Encode references of one subject to f_I, joined along the tokens: (1, references · 3N, d).

        pictures: segmented subjects R on white. N: tokens of the CLIP image encoder. side: see `preprocess`.
        """
        f_I = self.encoder.encode_image(extract(base, pictures, self.config.image_layers, side))  # (references, 3N, d)
        return f_I.reshape(1, -1, f_I.shape[-1])

    def forward(
        self, hidden_states: tuple[Tensor, ...], t: Tensor, positives: tuple[Tensor, ...] | None = None
    ) -> AdapterOutput:
        """Run the adapter on a batch of references, each at its own timestep.

        hidden_states: three CLIP layers, each (B, N, d_I), from `image_features.extract`. t: timesteps (B,).
        positives: those of other references of the same subjects, for Eq. 7: see `MFIOutput.positive_tokens`.
        """
        mfi = self.encoder(self.encoder.encode_image(paired(hidden_states, positives)), t, pairs=positives is not None)
        return self._output(mfi)

    def at(self, f_I: Tensor, t: Tensor, visual: tuple[Tensor, Tensor] | None = None) -> AdapterOutput:
        """Run the adapter on projected features.

        f_I: (B, 3N, d), or one subject's (1, 3N, d) at many timesteps. t: (B,). visual: see `MFIEncoder.forward`.
        """
        return self._output(self.encoder(f_I, t, visual))

    def _output(self, mfi: MFIOutput) -> AdapterOutput:
        keys, values = self.attention(mfi.visual_tokens)
        return AdapterOutput(mfi, keys, values, self.config.sink)


def paired(states: tuple[Tensor, ...], positives: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """CLIP layers of references, and those of others behind them: each (B, N, d_I), or (2B, N, d_I)."""
    if positives is None:
        return states
    return tuple(torch.cat([own, other]) for own, other in zip(states, positives, strict=True))


def check_weights(expected: dict[str, Tensor], found: dict[str, Tensor], name: str) -> None:
    """Check that a file has every expected key and shape and no other, as finite floats. Raises CheckpointError.

    name: of the file, for the message.
    """
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing:
        raise CheckpointError(f"load_adapter: {name} lacks {len(missing)} weights, the first is {missing[0]!r}.")
    if unknown:
        raise CheckpointError(f"load_adapter: {name} has {len(unknown)} unknown weights, the first is {unknown[0]!r}.")
    for key, value in expected.items():
        if value.shape != found[key].shape:
            raise CheckpointError(
                f"load_adapter: {key!r} in {name} has shape {tuple(found[key].shape)}; expected {tuple(value.shape)}."
            )
        if not found[key].is_floating_point():
            raise CheckpointError(f"load_adapter: {key!r} in {name} is of type {found[key].dtype}; expected floats.")
        if not found[key].isfinite().all():
            raise CheckpointError(f"load_adapter: {key!r} in {name} holds values that are not finite; train it again.")
