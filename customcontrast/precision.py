"""bfloat16 only where the hardware computes in it: elsewhere it is emulated, a hundred times slower on some CPUs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from customcontrast.errors import BaseModelError

NATIVE = ("avx512_bf16", "amx_bf16", "bf16")  # names of CPU capabilities, x86 and Arm


NAMES = {  # what people write for a type of weights
    **dict.fromkeys(("float32", "fp32", "float"), torch.float32),
    **dict.fromkeys(("float16", "fp16", "half"), torch.float16),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
}


def read_dtype(value: torch.dtype | str) -> torch.dtype:
    """A floating-point type, also by name: "float16", "fp16", "torch.bfloat16". Raises BaseModelError."""
    named = NAMES.get(value.strip().lower().removeprefix("torch.")) if isinstance(value, str) else value
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise BaseModelError(
            f"load_base: dtype={value!r} must be float32, float16 or bfloat16, as torch's own or a name."
        )
    return named


def is_half(dtype: torch.dtype) -> bool:
    """Whether a type has 16 bits."""
    return dtype in (torch.float16, torch.bfloat16)


def computes_bf16(device: torch.device | str) -> bool:
    """Whether matrix products and convolutions in bfloat16 are the device's own."""
    kind = torch.device(device).type
    if kind == "cpu":
        found = torch.cpu.get_capabilities()
        return any(found.get(name, False) for name in NATIVE)
    return kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def lowered(x: torch.Tensor) -> torch.Tensor:
    """Cast x to the type in which autocast, where it is on, computes products: once for several of them."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return x.to(torch.get_autocast_dtype(kind)) if on else x


def autocast(device: torch.device | str) -> AbstractContextManager[None]:
    """bfloat16 where `computes_bf16`, else nothing: float32 stays float32."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16) if computes_bf16(device) else nullcontext()
