"""Cross-attention layer <-> S+ index l, and the trained projections W'_k, W'_v and null keys of Eq. 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from customcontrast.attention.processor import SubjectProcessor
from customcontrast.config import EncoderConfig
from customcontrast.precision import lowered


@dataclass(frozen=True)
class LayerSpec:
    """One cross-attention layer of a UNet; its place in the tuple is its index l."""

    name: str  # module path in the UNet, e.g. "down_blocks.0.attentions.1.transformer_blocks.0.attn2"
    level: int  # how often the latents were halved before it: 0 is the full latent size
    width: int  # inner width, heads × head size
    heads: int  # attention heads


def cross_attention_layers(unet: Any) -> tuple[LayerSpec, ...]:
    """All cross-attention layers of a `UNet2DConditionModel` in execution order: down, mid, up.

    (`unet.attn_processors` is not in that order.) Raises ValueError where a layer has a part Eq. 3 does not know.
    """
    blocks = [(f"down_blocks.{i}", block) for i, block in enumerate(unet.down_blocks)]
    blocks += [("mid_block", unet.mid_block)] if unet.mid_block is not None else []
    blocks += [(f"up_blocks.{i}", block) for i, block in enumerate(unet.up_blocks)]

    specs, level = [], 0
    for block_name, block in blocks:
        for name, attn in block.named_modules():
            if name.split(".")[-1] == "attn2":
                specs.append(_spec(f"{block_name}.{name}", attn, level))
        level += bool(getattr(block, "downsamplers", None)) - bool(getattr(block, "upsamplers", None))
    if not specs:
        raise ValueError("cross_attention_layers: unet has no cross-attention (no module named attn2).")
    return tuple(specs)


def _spec(name: str, attn: Any, level: int) -> LayerSpec:
    odd = [part for part in ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross") if getattr(attn, part)]
    if odd or attn.added_kv_proj_dim is not None:
        raise ValueError(f"cross_attention_layers: {name} has {odd or ['added_kv']}; Eq. 3 has no place for it.")
    return LayerSpec(name, level, attn.to_q.out_features, attn.heads)


def layer_scales(
    specs: Sequence[LayerSpec], given: Mapping[int | str, float] | Sequence[float] | None
) -> tuple[float, ...] | None:
    """λ of every layer l, from one number each, or from a mapping.

    given: L numbers in execution order; or {l: λ}, or {block of the UNet: λ} such as {"up_blocks.0.attentions.1": 1.0},
    where layers that are not named get 0 as in diffusers; None = the same everywhere. Raises ValueError.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        scales: list[Any] = [0.0] * len(specs)
        for place, scale in given.items():
            own = [at for at, spec in enumerate(specs) if place in (at, spec.name) or _inside(spec.name, place)]
            if not own:
                raise ValueError(
                    f"layer_scales: {place!r} names none of the {len(specs)} cross-attention layers (0 to "
                    f"{len(specs) - 1}, or blocks such as {specs[0].name.rsplit('.', 3)[0]!r})."
                )
            for at in own:
                scales[at] = scale
    else:
        scales = list(given) if isinstance(given, list | tuple) else [given]
    right = all(isinstance(s, int | float) and not isinstance(s, bool) and abs(s) <= 1000 for s in scales)
    if not right or len(scales) != len(specs):
        raise ValueError(
            f"layer_scales: got {len(scales)} values; it must be {len(specs)} numbers from -1000 to 1000, one for each "
            "cross-attention layer, or a mapping of layers or blocks to numbers."
        )
    return tuple(float(s) for s in scales)


def _inside(name: str, block: object) -> bool:
    return isinstance(block, str) and name.startswith(f"{block.rstrip('.')}.")


def install_processors(unet: Any) -> tuple[LayerSpec, ...]:
    """Give every cross-attention layer the processor of Eq. 3, with its index l fixed now.

    The processors hold no weights and no state, so one UNet serves any number of adapters and threads, and its
    text-only path stays what it was: a plain tensor as `encoder_hidden_states` takes diffusers' own attention.
    Self-attention is not touched. Calling it twice changes nothing; a processor that one of diffusers' switches
    (attention slicing, fused projections, xformers) has put in place of ours goes, and its slice size is kept.
    """
    specs = cross_attention_layers(unet)
    for index, spec in enumerate(specs):
        attn = unet.get_submodule(spec.name)
        if not isinstance(attn.processor, SubjectProcessor):
            attn.set_processor(SubjectProcessor(index, spec.level, getattr(attn.processor, "slice_size", None)))
    return specs


def slice_attention(unet: nn.Module, slice_size: str | int | None = "auto") -> None:
    """Compute attention a few heads at a time in every layer of a UNet: less memory, more time, the same numbers.

    It replaces `unet.set_attention_slice`, which would take the subject away: here cross-attention keeps the processor
    of Eq. 3, which slices by itself.
    slice_size: "auto" = half of a layer's heads at a time, "max" = one, a number of heads (layers that have fewer take
        all theirs), or None = no slicing. Raises ValueError.
    """
    install_processors(unet)
    layers = [attn for attn in unet.modules() if isinstance(attn, Attention)]
    most = max(attn.heads for attn in layers)
    number = isinstance(slice_size, int) and not isinstance(slice_size, bool) and 1 <= slice_size <= most
    if not number and slice_size not in ("auto", "max", None):
        raise ValueError(
            f"enable_attention_slicing: slice_size={slice_size!r} must be 'auto', 'max', "
            f"a number of heads from 1 to {most}, or None."
        )
    for attn in layers:
        size = {"auto": attn.heads // 2, "max": 1}[slice_size] if isinstance(slice_size, str) else slice_size
        size = None if size is None else min(max(size, 1), attn.heads)
        if isinstance(attn.processor, SubjectProcessor):
            attn.processor.slice_size = size
        else:
            attn.set_attention_slice(size)


class SubjectAttention(nn.Module):
    """The trainable part of Eq. 3, for all layers: W'_k, W'_v, and one null key per layer (the sink)."""

    def __init__(self, config: EncoderConfig, specs: tuple[LayerSpec, ...]) -> None:
        super().__init__()
        if len(specs) != config.num_layers:
            raise ValueError(
                f"SubjectAttention: the UNet has {len(specs)} cross-attention layers, config.num_layers is "
                f"{config.num_layers}; make the config with base_model.encoder_config(base)."
            )
        self.specs = specs
        self.to_k = nn.ModuleList(nn.Linear(config.width, spec.width, bias=False) for spec in specs)
        self.to_v = nn.ModuleList(nn.Linear(config.width, spec.width, bias=False) for spec in specs)
        self.null_key: nn.ParameterList | None = None
        if config.sink:
            self.null_key = nn.ParameterList(torch.randn(spec.width) * 0.02 for spec in specs)
        for weight in self.to_v.parameters():
            nn.init.normal_(weight, std=0.02)  # a quiet start: the frozen base is nearly itself

    def forward(self, f_tv: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Project visual features to keys K_v = W'_k f_tv and values V_v = W'_v f_tv of every layer.

        f_tv: (B, L, n, d) -> two lists of L tensors (B, n, width_l), or (B, n+1, width_l) with the sink:
        the null key and its zero value come first.
        """
        f_tv = lowered(f_tv)
        keys = [to_k(f_tv[:, index]) for index, to_k in enumerate(self.to_k)]
        values = [to_v(f_tv[:, index]) for index, to_v in enumerate(self.to_v)]
        if self.null_key is None:
            return keys, values
        nulls = [null.expand(len(key), 1, -1) for null, key in zip(self.null_key, keys, strict=True)]
        keys = [torch.cat([null.to(key.dtype), key], dim=1) for null, key in zip(nulls, keys, strict=True)]
        values = [torch.cat([torch.zeros_like(value[:, :1]), value], dim=1) for value in values]
        return keys, values


def install(unet: nn.Module, config: EncoderConfig) -> SubjectAttention:
    """Set the processors on `unet` and make the weights they need, untrained."""
    return SubjectAttention(config, install_processors(unet))
