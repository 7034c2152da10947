"""IP-Adapter files with random weights in the published layout, written without the code that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

KINDS = ("plus", "pooled", "full")


def plus_shapes(image_width: int, width: int, dim: int, heads: int, queries: int, depth: int) -> dict[str, tuple]:
    """Shapes of the Resampler's tensors under their published names."""
    shapes: dict[str, tuple] = {
        "latents": (1, queries, dim),
        "proj_in.weight": (dim, image_width),
        "proj_in.bias": (dim,),
        "proj_out.weight": (width, dim),
        "proj_out.bias": (width,),
        "norm_out.weight": (width,),
        "norm_out.bias": (width,),
    }
    inner = 64 * heads
    for i in range(depth):
        own = {"0.to_q": (inner, dim), "0.to_kv": (2 * inner, dim), "0.to_out": (dim, inner)}
        own |= {"1.1": (4 * dim, dim), "1.3": (dim, 4 * dim)}
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in own.items()}
        for norm in ("0.norm1", "0.norm2", "1.0"):
            shapes |= {f"layers.{i}.{norm}.{part}": (dim,) for part in ("weight", "bias")}
    return shapes


def pooled_shapes(image_width: int, width: int, tokens: int = 4) -> dict[str, tuple]:
    """Shapes of the pooled projection."""
    proj = {"proj.weight": (tokens * width, image_width), "proj.bias": (tokens * width,)}
    return proj | {"norm.weight": (width,), "norm.bias": (width,)}


def full_shapes(image_width: int, width: int) -> dict[str, tuple]:
    """Shapes of the full-face projection."""
    e = image_width
    first = {"proj.0.weight": (e, e), "proj.0.bias": (e,), "proj.2.weight": (width, e), "proj.2.bias": (width,)}
    return first | {"proj.3.weight": (width,), "proj.3.bias": (width,)}


def attention_shapes(unet: nn.Module) -> dict[str, tuple]:
    """Shapes of to_k_ip and to_v_ip, numbered as `unet.attn_processors` lists the processors."""
    C, shapes = unet.config.cross_attention_dim, {}
    for i, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
            shapes |= {f"ip_adapter.{i}.to_{which}_ip.weight": (width, C) for which in "kv"}
    return shapes


def file_shapes(kind: str, unet: nn.Module, vision: Any, **sizes: int) -> dict[str, tuple]:
    """Shapes of a whole file for this UNet and this configuration of an image encoder."""
    C = unet.config.cross_attention_dim
    if kind == "plus":
        sizes = {"dim": C, "heads": 2, "queries": 16, "depth": 4} | sizes
        projection = plus_shapes(vision.hidden_size, C, **sizes)
    elif kind == "pooled":
        projection = pooled_shapes(vision.projection_dim, C)
    else:
        projection = full_shapes(vision.hidden_size, C)
    return {f"image_proj.{name}": shape for name, shape in projection.items()} | attention_shapes(unet)


def random_ip_file(path: Path, kind: str, unet: nn.Module, vision: Any, seed: int = 3) -> Path:
    """A file whose picture shows in the result: loud keys and values, norms near one."""
    g = torch.Generator().manual_seed(seed)

    def tensor(name: str, shape: tuple) -> Tensor:
        if "norm" in name or ".1.0." in name or ".proj.3." in name:
            return torch.randn(shape, generator=g) * 0.1 + name.endswith("weight")
        loud = {"to_k_ip": 3.0, "to_v_ip": 2.0}.get(name.split(".")[-2], 1.0)
        return torch.randn(shape, generator=g) * (0.1 if len(shape) == 1 else loud * shape[-1] ** -0.5)

    save_file({name: tensor(name, shape) for name, shape in file_shapes(kind, unet, vision).items()}, path)
    return path
