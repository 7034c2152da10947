"""Public IP-Adapter weights as the visual branch of Eq. 3 (Ye et al. 2023, arXiv 2308.06721).

A published file holds a projection of CLIP image features to a few image tokens (`image_proj.*`) and W'_k, W'_v of
every cross-attention layer (`ip_adapter.{i}.*`). That is the second term of Eq. 3 without S*, textual branch and null
key. The modules here have the published names, so such a file is loaded as it is, and diffusers' `load_ip_adapter`
reads ours.

Kinds: "plus" (also plus-face, composition: a Resampler over patch features), "pooled" (also light: a projection of the
image embedding) and "full" (full-face: every patch projected).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from customcontrast.adapter import AdapterOutput, check_weights
from customcontrast.attention.layers import LayerSpec
from customcontrast.base_model import BaseModel, same_encoder
from customcontrast.building import alone
from customcontrast.config import DEFAULT_SCALES
from customcontrast.encoder import MFIOutput
from customcontrast.encoder.image_features import interpolated, preprocess
from customcontrast.errors import CheckpointError
from customcontrast.sampling import on_device
from customcontrast.tensor_files import write_tensors

FORMAT = "ip-adapter"
HEAD = 64  # width of an attention head of the Resampler, in every published file
DETAILS = "customcontrast"  # key of our own facts in the file's metadata
VIT_H = "h94/IP-Adapter:models/image_encoder"  # OpenCLIP ViT-H/14: width 1280, projection 1024
BIG_G = "h94/IP-Adapter:sdxl_models/image_encoder"  # OpenCLIP ViT-bigG/14: width 1664, projection 1280
# Where a whole picture acts as style or as layout: InstantStyle (Wang et al. 2024, arXiv 2404.02733) for SDXL, l 44–53
# and 14–23; for SD-1.5 its authors name these blocks as an experiment, weaker than SDXL's: l 7–9 and 4–6.
ROLE_BLOCKS: dict[tuple[str, bool], tuple[str, ...]] = {  # (role, whether the base is SDXL) -> blocks of the UNet
    ("style", True): ("up_blocks.0.attentions.1.",),
    ("layout", True): ("down_blocks.2.attentions.1.",),
    ("style", False): ("up_blocks.1.",),
    ("layout", False): ("down_blocks.2.", "mid_block."),
}


@dataclass(frozen=True)
class IPAdapterConfig:
    """Sizes of an IP-Adapter, read from the shapes in its file."""

    kind: str  # "plus", "pooled" or "full"
    image_width: int  # of what it reads: CLIP's hidden states, or for "pooled" its image embedding
    width: int  # C, width of the image tokens: the UNet's cross_attention_dim
    num_layers: int  # L, cross-attention layers
    tokens: int = 0  # image tokens of one reference; 0 = one for each token of the image encoder ("full")
    dim: int = 0  # width of the Resampler
    depth: int = 0  # its blocks
    heads: int = 0  # its attention heads

    placeholder_tokens = 0  # no S* in the prompt
    textual = False
    sink = False

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]], name: str) -> IPAdapterConfig:
        """Read the config off the shapes of a file's tensors. Raises CheckpointError for an unknown layout.

        name: of the file, for the message.
        """
        if (
            any(".perceiver_resampler." in key for key in shapes)
            or {"image_proj.proj.2.bias", "image_proj.norm.weight"} <= shapes.keys()
        ):
            raise CheckpointError(
                f"load_adapter: {name} is an IP-Adapter FaceID, which reads a face recogniser's vectors; take "
                "plus-face instead."
            )
        layers = sum(key.endswith(".to_k_ip.weight") for key in shapes)
        try:
            if "image_proj.latents" in shapes:
                _, tokens, dim = shapes["image_proj.latents"]
                width, image_width = shapes["image_proj.proj_out.weight"][0], shapes["image_proj.proj_in.weight"][1]
                depth = sum(key.endswith(".0.to_q.weight") for key in shapes)
                heads = shapes["image_proj.layers.0.0.to_q.weight"][0] // HEAD
                return cls("plus", image_width, width, layers, tokens, dim, depth, heads)
            if "image_proj.proj.weight" in shapes:
                rows, image_width = shapes["image_proj.proj.weight"]
                width = shapes["image_proj.norm.weight"][0]
                return cls("pooled", image_width, width, layers, rows // width)
            image_width, width = shapes["image_proj.proj.0.weight"][1], shapes["image_proj.proj.3.weight"][0]
            return cls("full", image_width, width, layers)
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            raise CheckpointError(f"load_adapter: {name} has no known IP-Adapter layout (no {error}).") from error

    @property
    def image_encoder(self) -> str:
        """The published image encoder that has this width, as a hub id with its folder."""
        return BIG_G if self.image_width == (1280 if self.kind == "pooled" else 1664) else VIT_H


class ResamplerAttention(nn.Module):
    """Attention of the latents over image features and themselves, under the published names."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * HEAD, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * HEAD, bias=False)  # k above v
        self.to_out = nn.Linear(heads * HEAD, dim, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """The update of the latents (B, n, dim) by image features x (B, N, dim)."""
        latents = self.norm2(latents)
        keys, values = self.to_kv(torch.cat([self.norm1(x), latents], dim=1)).chunk(2, dim=-1)
        parts = [y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.to_q(latents), keys, values)]
        return self.to_out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """Kind "plus": learned latents attend to the patch features, block by block."""

    def __init__(self, c: IPAdapterConfig) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, c.tokens, c.dim) * c.dim**-0.5)
        self.proj_in, self.proj_out = nn.Linear(c.image_width, c.dim), nn.Linear(c.dim, c.width)
        self.norm_out = nn.LayerNorm(c.width)
        self.layers = nn.ModuleList(
            nn.ModuleList([ResamplerAttention(c.dim, c.heads), _feed_forward(c.dim)]) for _ in range(c.depth)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Image tokens (B, tokens, C) of patch features (B, N, image width)."""
        x, latents = self.proj_in(features), self.latents.expand(len(features), -1, -1)
        for attention, feed_forward in cast("Iterable[tuple[nn.Module, nn.Module]]", self.layers):
            latents = latents + attention(x, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents))


def _feed_forward(dim: int) -> nn.Sequential:
    inner = 4 * dim
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, inner, bias=False), nn.GELU(), nn.Linear(inner, dim, bias=False)
    )


class PooledProjection(nn.Module):
    """Kind "pooled": one linear map of the image embedding."""

    def __init__(self, c: IPAdapterConfig) -> None:
        super().__init__()
        self.tokens = c.tokens
        self.proj, self.norm = nn.Linear(c.image_width, c.tokens * c.width), nn.LayerNorm(c.width)

    def forward(self, embedding: Tensor) -> Tensor:
        """Image tokens (B, tokens, C) of image embeddings (B, image width)."""
        return self.norm(self.proj(embedding).unflatten(-1, (self.tokens, -1)))


class FullProjection(nn.Module):
    """Kind "full": every token of the image encoder through two layers."""

    def __init__(self, c: IPAdapterConfig) -> None:
        super().__init__()
        e = c.image_width
        self.proj = nn.Sequential(nn.Linear(e, e), nn.GELU(), nn.Linear(e, c.width), nn.LayerNorm(c.width))

    def forward(self, features: Tensor) -> Tensor:
        """Image tokens (B, N, C) of patch features (B, N, image width)."""
        return self.proj(features)


_PROJECTIONS = {"plus": Resampler, "pooled": PooledProjection, "full": FullProjection}


class IPAdapter(nn.Module):
    """A published IP-Adapter behind the interface of `Adapter` that generation uses; the same at every timestep."""

    _nothing: Tensor | None

    kind = FORMAT
    normalize = "layer"  # of its location maps; see LocationConfig
    default_scale = DEFAULT_SCALES[kind]

    @alone
    def __init__(self, config: IPAdapterConfig, specs: tuple[LayerSpec, ...], base_name: str = "") -> None:
        """specs: the UNet's cross-attention layers in execution order; to_k and to_v follow it."""
        super().__init__()
        self.config = config
        self.specs = specs
        self.base_name = base_name
        self.image_proj = _PROJECTIONS[config.kind](config)
        self.to_k = nn.ModuleList(nn.Linear(config.width, spec.width, bias=False) for spec in specs)
        self.to_v = nn.ModuleList(nn.Linear(config.width, spec.width, bias=False) for spec in specs)
        self.image_encoder: dict[str, Any] | None = None  # whose features it reads, `BaseModel.encoder_id`
        self.metadata: dict[str, Any] = {}
        self.register_buffer("_nothing", None, persistent=False)  # image tokens of no picture, once known

    @torch.no_grad()
    def look(self, base: BaseModel, pictures: Sequence[Image.Image], side: int | None = None) -> Tensor:
        """Encode references of one subject to image tokens, joined along the tokens: (1, references · tokens, C).

        side: see `preprocess`.
        """
        tokens = self._tokens(base, preprocess(base, pictures, side))
        return tokens.reshape(1, -1, tokens.shape[-1])

    @torch.no_grad()
    def nothing(self, base: BaseModel) -> Tensor:
        """Image tokens of the unconditional half of classifier-free guidance, (1, tokens, C), computed once.

        They are those of a zero pixel tensor after normalisation; for "pooled", of a zero embedding. One picture serves
        any number of references: a softmax over the same keys several times is the softmax over them once.
        """
        if self._nothing is None:
            side = base.image_side
            with on_device(base.device, base.image_encoder, self):
                pixels = torch.zeros(1, 3, side, side, device=base.device, dtype=base.image_encoder.dtype)
                self._nothing = self._tokens(base, pixels, black=True)
        return self._nothing

    def _tokens(self, base: BaseModel, pixels: Tensor, black: bool = False) -> Tensor:
        dtype = next(self.to_k.parameters()).dtype
        if self.config.kind == "pooled":
            embedding = base.image_encoder(pixels, **interpolated(base, pixels)).image_embeds
            return self.image_proj((torch.zeros_like(embedding) if black else embedding).to(dtype))
        seen = base.image_encoder(pixels, output_hidden_states=True, **interpolated(base, pixels))
        hidden = seen.hidden_states[-2]
        return self.image_proj(hidden.to(dtype))

    def at(self, tokens: Tensor, t: Tensor | None = None, nothing: Tensor | None = None) -> AdapterOutput:
        """Keys and values of one subject in every layer, the same for every t: one row for all of them.

        tokens: (1, n, C) from `look`. nothing: (1, n', C) of the unconditional half, None = it sees no picture at all.
        """
        unconditional = None if nothing is None else self._keys_values(nothing)
        mfi = MFIOutput([], None, tokens[:, None], tokens.mean(dim=1))
        keys, values = self._keys_values(tokens)
        return AdapterOutput(mfi, keys, values, sink=False, by_noun=True, unconditional=unconditional)

    def _keys_values(self, tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return [to_k(tokens) for to_k in self.to_k], [to_v(tokens) for to_v in self.to_v]

    def published(self) -> dict[str, Tensor]:
        """All weights under their published names, as `save_adapter` writes them."""
        own = self.state_dict()
        return {name: own[ours] for name, ours in published_names(self).items()}


def published_names(adapter: IPAdapter) -> dict[str, str]:
    """Published name -> name in `IPAdapter`, of every weight.

    The number i of a layer counts attention processors as diffusers lists them: self- and cross-attention in turn (so i
    is odd), down, up, and the middle block last. Execution is down, middle, up.
    """
    names = {f"image_proj.{name}": f"image_proj.{name}" for name in adapter.image_proj.state_dict()}
    order = sorted(range(len(adapter.specs)), key=lambda at: adapter.specs[at].name.startswith("mid_block"))
    for k, at in enumerate(order):
        for which in ("k", "v"):
            names[f"ip_adapter.{2 * k + 1}.to_{which}_ip.weight"] = f"to_{which}.{at}.weight"
    return names


def role_scales(base: BaseModel, role: str) -> tuple[float, ...]:
    """λ of every layer for a whole picture in this role: 1 in the blocks that carry it, 0 elsewhere.

    Raises ValueError where the base's UNet has no such blocks.
    """
    blocks = ROLE_BLOCKS[role, base.spec.pooled]
    scales = tuple(float(spec.name.startswith(blocks)) for spec in base.cross_attention_layers)
    if not any(scales):
        raise ValueError(
            f"style: role={role!r} acts in {' and '.join(b.rstrip('.') for b in blocks)}, and the UNet of base "
            f"{base.name!r} has no cross-attention there; give layer_scales of your own."
        )
    return scales


def read_config(path: str | Path) -> tuple[IPAdapterConfig, dict[str, Any]]:
    """Sizes of an IP-Adapter's file and its metadata, without reading a weight. Raises CheckpointError."""
    path = Path(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            about = json.loads((file.metadata() or {}).get(DETAILS, "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"load_adapter: {path.name} cannot be read as safetensors ({error}).") from error
    config = IPAdapterConfig.from_shapes(shapes, path.name)
    base = {768: "sd15", 2048: "sdxl"}.get(config.width, "")
    return config, {"base": base} | (about if isinstance(about, dict) else {}) | {"format": FORMAT, "kind": config.kind}


def load_ip_adapter(path: str | Path, base: BaseModel) -> IPAdapter:
    """Read a published IP-Adapter file for `base`: in base.dtype, on base.device, frozen.

    Checks the base, the image encoder, and every key and shape. Raises CheckpointError with one sentence.
    """
    path = Path(path)
    config, about = read_config(path)
    here = base.unet.config.cross_attention_dim, len(base.cross_attention_layers)
    if (config.width, config.num_layers) != here:
        fits = {768: " (SD-1.5)", 2048: " (SDXL)"}.get(config.width, "")
        raise CheckpointError(
            f"load_adapter: {path.name} is for a UNet of width {config.width} and {config.num_layers} layers{fits}; "
            f"base {base.name!r} has {here[0]} and {here[1]}: choose the file of your base."
        )
    _check_encoder(config, base, path.name)
    if not same_encoder(about.get("image_encoder"), base.encoder_id):
        raise CheckpointError(
            f"load_adapter: {path.name} was made with the image encoder {about['image_encoder'].get('id')!r}, this "
            f"base has {(base.encoder_id or {}).get('id')!r}; pass image_encoder= the first of them."
        )
    with safe_open(str(path), framework="pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    with torch.device("meta"):
        adapter = IPAdapter(config, base.cross_attention_layers, base.name)
    names, own = published_names(adapter), adapter.state_dict()
    check_weights({name: own[ours] for name, ours in names.items()}, found, path.name)
    adapter.load_state_dict({ours: found[name] for name, ours in names.items()}, assign=True)
    adapter.metadata, adapter.image_encoder = about, base.encoder_id
    return adapter.to(base.device, base.dtype).requires_grad_(False).eval()


def _check_encoder(config: IPAdapterConfig, base: BaseModel, name: str) -> None:
    """The features it reads must be as wide as the image encoder's."""
    encoder = base.image_encoder.config
    pooled = config.kind == "pooled"
    here = encoder.projection_dim if pooled else encoder.hidden_size
    if config.image_width != here:
        what = "image embeddings" if pooled else "hidden states"
        given = (base.encoder_id or {}).get("id") or "the one given"
        raise CheckpointError(
            f"load_adapter: {name} reads {what} of width {config.image_width}, and this base's image encoder "
            f"({given}) makes {here}; pass image_encoder={config.image_encoder!r}."
        )


def save_ip_adapter(adapter: IPAdapter, path: str | Path, dtype: torch.dtype | None = None, **meta: Any) -> Path:
    """Write an IP-Adapter in the published layout; diffusers' `load_ip_adapter` reads it too.

    dtype: store weights in this type (default: as they are). meta: more facts, anything JSON can hold.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"save_adapter: path={str(path)!r} must end in .safetensors.")
    about = meta | {"base": adapter.base_name, "config": asdict(adapter.config), "image_encoder": adapter.image_encoder}
    weights = {key: value.detach().to("cpu", dtype).contiguous() for key, value in adapter.published().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return write_tensors(weights, path, {"format": "pt", DETAILS: json.dumps(about)})
    except (SafetensorError, OSError) as error:
        raise OSError(
            f"save_adapter: {str(path)!r} could not be written ({error}); make room and try again."
        ) from error
