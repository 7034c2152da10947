"""Puts a loaded model where its `MemoryPlan` says, by diffusers' own switches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from customcontrast.adapter import Adapter
from customcontrast.base_model import BaseModel
from customcontrast.ip_adapter import IPAdapter
from customcontrast.memory import TILE, MemoryPlan, ModelSize, choose_memory, free_main_memory, lent_by_the_call
from customcontrast.precision import computes_bf16

CONTEXT_ROWS = 100  # what is kept a step and layer, in rows of the text's width: 77 tokens, K_v, V_v, S* and f_tv


class _Parts(DiffusionPipeline):
    """The parts whose coming and going is diffusers' affair; the others come and go by `sampling.on_device`."""

    model_cpu_offload_seq = "unet->vae"

    def __init__(self, unet: nn.Module, vae: nn.Module | None) -> None:
        super().__init__()
        self.register_modules(unet=unet, vae=vae)


def model_size(
    base: BaseModel, adapter: Adapter | IPAdapter | None = None, checker: nn.Module | None = None
) -> ModelSize:
    """How many numbers the parts of a loaded model hold."""
    kept = base.default_steps * len(base.cross_attention_layers) * CONTEXT_ROWS * base.unet.config.cross_attention_dim
    vae = next(base.vae.parameters())
    return ModelSize(
        unet=_count(base.unet),
        vae=_count(base.vae),
        text=sum(map(_count, base.text_encoders)),
        vision=_count(base.image_encoder),
        adapter=_count(adapter),
        checker=_count(checker),
        contexts=kept if isinstance(adapter, Adapter) else 0,
        wide_vae=vae.dtype == torch.float32 and base.dtype == torch.float16,
    )


def _count(model: nn.Module | None) -> int:
    return 0 if model is None else sum(weight.numel() for weight in model.parameters())


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, or None where that cannot be known."""
    if device.type == "cpu":
        return free_main_memory()
    if device.type != "cuda" or lent_by_the_call():
        return None
    return torch.cuda.mem_get_info(device)[0]


def plan_for(
    base: BaseModel,
    adapter: Adapter | IPAdapter | None,
    device: torch.device,
    free: int | None,
    choice: str = "auto",
    dtype: torch.dtype | None = None,
    checker: nn.Module | None = None,
) -> MemoryPlan:
    """The plan for a model that was loaded on the CPU and is to run on `device`, one picture at the base's own size.

    free: bytes that were free there before (`free_memory`). choice: one of `memory.CHOICES`; a CPU offloads nothing.
    dtype: None = the plan may choose. On other accelerators than CUDA all of the model goes there.
    """
    side = base.default_size
    plan = choose_memory(
        free,
        model_size(base, adapter, checker),
        device="cpu" if device.type == "cpu" else "cuda",
        size=(side, side),
        native_bf16=computes_bf16(device),
        dtype=None if dtype is None and device.type == "cpu" else str(base.dtype).removeprefix("torch."),
        offload=None if choice == "auto" or device.type == "cpu" else choice,
    )
    return replace(plan, vae_slicing=True)  # one picture at a time is no slower, and a later request may be for four


def place(
    base: BaseModel,
    adapter: Adapter | IPAdapter | None,
    plan: MemoryPlan,
    device: torch.device,
    checker: nn.Module | None = None,
) -> tuple[BaseModel, _Parts | None]:
    """The same base, run on `device` as `plan` says; its modules, the adapter and the checker are moved.

    Returns it with what holds the hooks (`rest` brings all parts home), or None where nothing is offloaded.
    """
    dtype = getattr(torch, plan.dtype)
    if dtype != base.dtype:
        for model in _modules(base, adapter, checker):
            model.to(dtype)
        base = replace(base, dtype=dtype)
    _set_decoder(base.vae, plan)
    if plan.offload == "none":
        for model in _modules(base, adapter, checker):
            model.to(device)
        return replace(base, device=device), None
    if plan.offload == "model":
        parts = _Parts(base.unet, base.vae)
        parts.enable_model_cpu_offload(device=device)
    else:
        parts = _Parts(base.unet, None)
        parts.enable_sequential_cpu_offload(device=device)
    return replace(base, device=device), parts


def rest(parts: _Parts | None) -> None:
    """Bring what diffusers' model offload left on the accelerator back to the CPU."""
    for hook in getattr(parts, "_all_hooks", ()) if parts is not None else ():
        hook.offload()


def _modules(base: BaseModel, adapter: nn.Module | None, checker: nn.Module | None) -> list[nn.Module]:
    every: list[Any] = [base.unet, base.vae, *base.text_encoders, base.image_encoder, adapter, checker]
    return [model for model in every if model is not None]


def _set_decoder(vae: Any, plan: MemoryPlan) -> None:
    """Slices and tiles, where the autoencoder has them. SDXL's own tiles are as large as its pictures: here TILE."""
    if plan.vae_slicing and hasattr(vae, "enable_slicing"):
        vae.enable_slicing()
    if plan.vae_tiling and hasattr(vae, "enable_tiling"):
        vae.enable_tiling()
        vae.tile_sample_min_size = min(vae.tile_sample_min_size, TILE)
        vae.tile_latent_min_size = vae.tile_sample_min_size // 2 ** (len(vae.config.block_out_channels) - 1)
