"""The whole path once, with SD-1.5 at true size and random weights: seconds of each part, and peak memory.

    python -m tests.benchmarks.end_to_end_sd15 [--side 512] [--steps 2] [--float32] [--device cpu]

A random SD-1.5 (UNet, CLIP text ViT-L, autoencoder, CLIP image ViT-L/14, a tokenizer of 49,408 tokens) is written as a
diffusers folder and loaded like the real one. Then: cut the subject out of a reference, look at it, S+ contexts,
denoise with guidance, location masks and all maps, decode; save the adapter, load it, and do everything again. The
second picture, masks and maps must be those of the first to the bit, or it ends with an error. What the picture shows
means nothing: the weights are noise.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
import numpy as np
import torch

from customcontrast import CustomContrast, Segmenter
from customcontrast.adapter import Adapter
from customcontrast.adapter_files import load_adapter, save_adapter
from customcontrast.base_model import load_base
from customcontrast.images.loading import load_picture
from customcontrast.output import Result
from tests.benchmarks.generation import EXAMPLE, stock_pipeline
from tests.benchmarks.memory import forget_peak, peak, resident
from tests.benchmarks.report import machine, table
from tests.benchmarks.sizes import PROMPT, parameters
from train.common.true_models import base_model

ARRAYS = ("location_masks", "text_maps", "visual_maps", "subject_maps")


class Watch:
    """Seconds and peak memory (MB, of the whole process) of each part, in order."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, float]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        forget_peak()
        start = time.perf_counter()
        yield
        self.rows.append((name, time.perf_counter() - start, peak()))


def write_folder(folder: Path, dtype: torch.dtype) -> None:
    """SD-1.5 with random weights as a diffusers folder, the CLIP image encoder in it."""
    stock_pipeline(base_model("sd15", "cpu", dtype)).save_pretrained(folder)


def make_picture(custom: CustomContrast, watch: Watch, side: int, steps: int) -> Result:
    """From the reference's file to the picture."""
    with watch.part("segmentation"):
        found = Segmenter().auto(load_picture(EXAMPLE))
    with watch.part("subject: image encoder, f_I"):
        subject = custom.subject(found, "bear")
    with watch.part(f"generate: {steps} steps, {side} px"):
        result = custom.generate(PROMPT, subject, num_inference_steps=steps, height=side, width=side)
    for name, seconds in result.seconds.items():
        watch.rows.append((f"  {name}", seconds, float("nan")))
    return result


def differences(first: Result, second: Result) -> list[str]:
    """What of two results is not the same to the bit."""
    wrong = [name for name in ARRAYS if not np.array_equal(getattr(first, name), getattr(second, name))]
    pairs = zip(first.images, second.images, strict=True)
    return wrong + ["images"] * any(not np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def run(side: int, steps: int, dtype: torch.dtype, device: str, watch: Watch) -> tuple[Result, Result, CustomContrast]:
    """Everything; returns both results and the model that made the second."""
    with tempfile.TemporaryDirectory() as name:
        folder, file = Path(name) / "sd15", Path(name) / "adapter.safetensors"
        with watch.part("make random weights, write the folder"):
            write_folder(folder, dtype)
        with watch.part("load the base from the folder"):
            base = load_base("sd15", folder, device, dtype)
        with watch.part("make the adapter"):
            torch.manual_seed(0)
            adapter = Adapter.create(base).to(dtype).requires_grad_(False).eval()
        first = make_picture(CustomContrast.from_parts(base, adapter), watch, side, steps)
        with watch.part("save the adapter"):
            save_adapter(adapter, file, step=0)
        del adapter
        with watch.part("load the adapter"):
            custom = CustomContrast(base, load_adapter(file, base))
        return first, make_picture(custom, watch, side, steps), custom


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.end_to_end_sd15")
    parser.add_argument("--side", type=int, default=512, help="px, a multiple of 64")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--float32", action="store_true", help="default bfloat16 on a CPU, float16 on a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    diffusers.logging.set_verbosity_error()
    half = torch.float16 if given.device == "cuda" else torch.bfloat16
    dtype, watch, before = torch.float32 if given.float32 else half, Watch(), resident()
    print(machine())
    first, second, custom = run(given.side, given.steps, dtype, given.device, watch)

    base, adapter = custom.base, custom.adapter
    frozen = sum(map(parameters, (base.unet, *base.text_encoders, base.vae, base.image_encoder)))
    print(f"{frozen:,} frozen and {parameters(adapter):,} trained parameters in {dtype}; {before:.0f} MB at the start")
    calls, rows = len(first.timesteps), len(set(first.timesteps)) * len(base.cross_attention_layers)
    shapes = {name: getattr(first, name).shape for name in ARRAYS}
    print(f"{calls} UNet calls ({type(base.scheduler).__name__}), {rows} rows of S+, arrays {shapes}")
    shown = [(name, f"{seconds:.2f}", "" if mb != mb else f"{mb:,.0f}") for name, seconds, mb in watch.rows]
    print("\n".join(table(("", "seconds", "peak MB"), shown)))
    wrong, pixels = differences(first, second), np.asarray(first.images[0])
    if wrong:
        raise SystemExit(f"The second run differs in {', '.join(wrong)}.")
    if pixels.std() < 1 or not all(np.isfinite(getattr(first, name)).all() for name in ARRAYS):
        raise SystemExit(f"The picture is flat (standard deviation {pixels.std():.2f} of 255), or a map is not finite.")
    print(f"pixels: mean {pixels.mean():.1f}, standard deviation {pixels.std():.1f} of 255")
    print("Picture, masks and maps after saving and loading the adapter: the same to the bit.")


if __name__ == "__main__":
    main()
