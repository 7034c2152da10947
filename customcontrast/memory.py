"""What a model and a picture take of memory, and what follows: number type, CPU offload, how pictures are decoded.

Figures are counted, not measured on a GPU: weights exactly; activations by `tests/benchmarks/sizes.py`, which runs
SD-1.5 and SDXL dry on the meta device, and half as much again for what it cannot see (cuDNN's workspaces). No torch
here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from customcontrast.errors import ConfigError

GB = 10**9
RESERVE = 800_000_000  # bytes on a GPU for CUDA's kernels and the allocator's gaps
UNET_NUMBERS = 13_000  # in a UNet, per latent cell and row of its batch (guidance: 2 a picture); counted: 8,700
DECODER_NUMBERS = 1_150  # in an autoencoder, per pixel that is decoded at once; counted: 768
ENCODER_BYTES = 150_000_000  # a text or image encoder at work, beside its weights
S_PLUS_BYTES = 1_200_000_000  # the text encoders at work on S+ (our adapters), all steps at once; counted: 780 MB
TILE = 512  # px, side of a tile where pictures are decoded in tiles
CELL = 8  # px of a latent cell
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
OFFLOADS = ("none", "model", "sequential")
CHOICES = ("auto", *OFFLOADS)
TELLS = {
    "none": "all of the model stays on it",
    "model": "its parts take turns there, which costs seconds a picture",
    "sequential": "its layers are brought there one by one, which is slow",
}


@dataclass(frozen=True)
class ModelSize:
    """How many numbers the parts of a model hold."""

    unet: int
    vae: int
    text: int = 0  # all text encoders
    vision: int = 0  # image encoder
    adapter: int = 0
    checker: int = 0  # safety checker
    contexts: int = 0  # what a run keeps of prompt and subjects for all its steps
    wide_vae: bool = False  # the autoencoder stays float32 where the rest is float16 (SDXL's overflows)

    def vae_bytes(self, dtype: str) -> int:
        """Of one number of the autoencoder."""
        return 4 if self.wide_vae and dtype == "float16" else BYTES[dtype]

    def weights(self, dtype: str) -> int:
        """Bytes of all parts."""
        others = self.unet + self.text + self.vision + self.adapter + self.checker
        return others * BYTES[dtype] + self.vae * self.vae_bytes(dtype)


@dataclass(frozen=True)
class MemoryPlan:
    """How a model is kept in memory. Made by `choose_memory`; `offload.place` does it."""

    dtype: str = "float32"  # a key of BYTES
    offload: str = "none"  # one of OFFLOADS: diffusers' model CPU offload, or its sequential one, of the UNet
    vae_slicing: bool = False  # several pictures are decoded one at a time
    vae_tiling: bool = False  # pictures are decoded in blended tiles of TILE px
    device: str = "cpu"  # "cpu" or "cuda"
    free: int | None = None  # bytes that were free; None = not known
    needed: int = 0  # bytes that a picture takes this way, at least

    @property
    def enough(self) -> bool:
        """Whether that was free."""
        return self.free is None or self.needed <= self.free

    @property
    def sentence(self) -> str:
        """The plan as people read it."""
        if self.free is None:
            return f"Memory: what is free on the device is not known; {self.dtype}, {TELLS[self.offload]}."
        place = "on the GPU" if self.device == "cuda" else "in main memory"
        said = f"Memory: {self.free / GB:.1f} GB free {place}, about {self.needed / GB:.1f} GB needed in {self.dtype}"
        said += f"; {TELLS[self.offload]}" if self.device == "cuda" else ""
        said += "; pictures are decoded in tiles" if self.vae_tiling else ""
        if self.enough:
            return f"{said}."
        return f"{said}. That is more than is free: a run may fail; close what else uses it, or take a smaller model."


def choose_memory(
    free_bytes: int | None,
    model: ModelSize,
    device: str = "cuda",
    size: tuple[int, int] = (512, 512),
    images: int = 1,
    native_bf16: bool = False,
    dtype: str | None = None,
    offload: str | None = None,
) -> MemoryPlan:
    """The fastest way of running a model that fits into what is free; if none does, the smallest.

    size: (height, width) of a picture in px; images: made at once. native_bf16: whether the device computes bfloat16
    itself. dtype, offload: to have these in any case. Raises ConfigError for a name that is none.
    """
    if dtype is not None and dtype not in BYTES:
        raise ConfigError(f"memory: dtype={dtype!r} must be one of {', '.join(BYTES)}.")
    if offload is not None and offload not in OFFLOADS:
        raise ConfigError(f"memory={offload!r} must be one of {', '.join(CHOICES)}.")
    usual = "float16" if device == "cuda" else "float32"
    if free_bytes is None:
        return MemoryPlan(dtype or usual, offload or "none", images > 1, device=device)
    reserve = RESERVE if device == "cuda" else 0
    dtypes = [dtype] if dtype else [usual, *(["bfloat16"] if device != "cuda" and native_bf16 else [])]
    plans = [
        replace(plan, device=device, free=free_bytes, needed=reserve + needed_bytes(plan, model, size, images))
        for chosen in dtypes
        for plan in _ways(chosen, images, [offload] if offload else OFFLOADS if device == "cuda" else ("none",))
    ]
    return next((plan for plan in plans if plan.enough), min(plans, key=lambda plan: plan.needed))


def _ways(dtype: str, images: int, offloads: tuple[str, ...] | list[str]) -> Iterator[MemoryPlan]:
    """The plans in one number type, the fastest first: what costs nothing before what costs seconds or seams."""
    for offload in offloads:
        for slicing, tiling in ((False, False), (True, False), (True, True)):
            if images > 1 or slicing == tiling:  # slicing is for several pictures alone
                yield MemoryPlan(dtype, offload, slicing, tiling)


def needed_bytes(plan: MemoryPlan, model: ModelSize, size: tuple[int, int] = (512, 512), images: int = 1) -> int:
    """Bytes on the device at the highest point of a run, from the first look at a reference to the pictures."""
    working = S_PLUS_BYTES if model.contexts else ENCODER_BYTES
    each, wide, cells = BYTES[plan.dtype], model.vae_bytes(plan.dtype), size[0] * size[1] // CELL**2
    denoising = 2 * images * cells * UNET_NUMBERS * each
    pixels = min(size[0] * size[1], TILE**2) if plan.vae_tiling else size[0] * size[1]
    decoding = (1 if plan.vae_slicing else images) * pixels * DECODER_NUMBERS * wide
    contexts = model.contexts * each
    if plan.offload == "none":
        return model.weights(plan.dtype) + contexts + max(denoising, decoding, working)
    unet, vae = model.unet * each, model.vae * wide
    looking = (max(model.text, model.vision) + model.adapter) * each + working
    checking = model.checker * each + ENCODER_BYTES
    if plan.offload == "model":  # the autoencoder comes before the UNet has gone
        return contexts + max(unet + max(denoising, vae), vae + decoding, looking, checking)
    return contexts + max(denoising + ENCODER_BYTES, vae + decoding, looking, checking)


def free_main_memory(root: Path = Path("/")) -> int | None:
    """Bytes of main memory that a program may still take, of the machine or of its container; None = not known.

    Read from Linux's own files, for a container those of cgroup 2. root: where they lie, for tests.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        rows = dict(line.split(":", 1) for line in lines if ":" in line)
        free = 1024 * int(rows["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError, IndexError):
        return None
    group = root / "sys/fs/cgroup"
    try:
        limit, used = (int((group / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        free = min(free, limit - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):  # "max": no limit
        pass
    return max(0, free)


def lent_by_the_call() -> bool:
    """Whether the GPU is lent for each run (ZeroGPU on Hugging Face Spaces): it cannot be looked at before."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
