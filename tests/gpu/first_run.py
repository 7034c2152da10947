"""Everything that waits for the first day with a GPU, in one run of at most four minutes.

    python -m tests.gpu.first_run --out runs/first-run

1. the tests marked gpu: attention and pictures in fp16 and bf16, training steps in both, models that rest on the CPU;
2. pictures of SD-1.5 and SDXL at true size with random weights: seconds, and peak memory beside `sizes.estimates`;
3. 20 training steps of both presets at true size with random weights: seconds a step, share of the GPU's peak (MFU)
   and peak memory beside `train.plan`;
4. what is registered in MORE.

Writes first-run.json and first-run.md after every part, so that what was measured stays when the time is up. A part
that fails says why and does not stop the others. --tiny --device cpu goes the same way with tiny classes.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from customcontrast.adapter import Adapter
from customcontrast.base_model import BaseModel, load_base
from customcontrast.config import RecordConfig
from customcontrast.pipeline import CustomContrast
from tests.benchmarks.sizes import estimates
from tests.support.tiny_models import random_adapter, save_tiny_sd15, save_tiny_xl
from train import plan
from train.adapter import training_state
from train.adapter.adapter_config import AdapterTrainConfig, load_config
from train.adapter.frozen_base import make_ready
from train.adapter.step import AdapterLoss, Noise, attention_kernel
from train.common.true_models import adapter_for, base_model
from train.data.frozen_features import with_features
from train.data.samples import Batch

ROOT = Path(__file__).parents[2]
BUDGET = 240.0  # seconds for all parts
PEAK = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "A10G": 125e12, "4090": 165e12, "L40": 181e12}  # 16-bit FLOP/s
PROMPT = "a <bear> on the red beach"
GB = 2**30


@dataclass(frozen=True)
class Machine:
    """Where the parts run and what size of models they take."""

    device: str
    tiny: bool
    folder: Path  # for tiny models
    deadline: float  # on time.monotonic

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name() if self.device == "cuda" else "CPU"

    @property
    def peak(self) -> float | None:
        """16-bit FLOP/s of this GPU at most; None where it is not in PEAK."""
        return next((value for key, value in PEAK.items() if key in self.name), None)

    def base(self, name: str, dtype: torch.dtype) -> BaseModel:
        """The base "sd15" or "sdxl" with random weights."""
        if not self.tiny:
            return base_model(name, self.device, dtype)
        folder = self.folder / name
        if not folder.is_dir():
            (save_tiny_xl if name == "sdxl" else save_tiny_sd15)(folder)
        return load_base(name, weights=folder, device=self.device, dtype=dtype)

    def adapter(self, base: BaseModel, dtype: torch.dtype) -> Adapter:
        if self.tiny:
            return random_adapter(base).to(dtype)
        return adapter_for(base, self.device, dtype)

    def clear(self) -> None:
        """Start to count memory anew."""
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def used(self) -> float | None:
        """GB that were allocated at most; None on a CPU."""
        return torch.cuda.max_memory_allocated() / GB if self.device == "cuda" else None


def gpu_tests(machine: Machine) -> dict[str, Any]:
    """Part 1."""
    environment = os.environ | {"CUSTOMCONTRAST_TEST_DEVICE": machine.device, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu/test_gpu.py", "-p", "no:cacheprovider"]
    if machine.tiny:  # one of each kind
        command += ["-k", "toyland-float16 or sdxl-bfloat16 or bf16 or rest_on_the_cpu or nobody_waits"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=max(10.0, min(150.0, machine.left))
    )
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.MULTILINE)
    return {"counts": counts, "failed": failed, "ok": done.returncode == 0}


def pictures(machine: Machine) -> dict[str, Any]:
    """Part 2: seconds of a second picture, so that no kernel is chosen within it."""
    found: dict[str, Any] = {}
    dtype = torch.float32 if machine.device == "cpu" else torch.float16
    for name in ("sd15", "sdxl"):
        machine.clear()
        base = machine.base(name, dtype)
        adapter = machine.adapter(base, dtype)
        custom = CustomContrast.from_parts(base, adapter)
        side, steps = (base.default_size, 2) if machine.tiny else (base.default_size, base.default_steps)
        subject = custom.subject(_Plain(Image.new("RGB", (224, 224), "orange")), "bear")
        seconds = 0.0
        for _ in range(2):
            machine.wait()
            begun = time.monotonic()
            custom.generate(PROMPT, subject, seed=0, num_inference_steps=steps, record=RecordConfig(maps=False))
            machine.wait()
            seconds = time.monotonic() - begun
        models = (_on_meta(base), copy.deepcopy(adapter).to("meta")) if machine.tiny else None
        estimate = estimates(name, (side,), steps, models)[side, "location masks"].peak / GB
        found[name] = {
            "side": side, "steps": steps, "seconds": seconds, "peak_gb": machine.used(), "estimated_gb": estimate,
        }  # fmt: skip
        del custom, adapter, base, subject
    return found


def training(machine: Machine, steps: int = 20) -> dict[str, Any]:
    """Part 3: Eq. 9, AdamW and the average on random pictures, as `train.adapter` does them."""
    found: dict[str, Any] = {}
    steps = 4 if machine.tiny else steps
    dtype = torch.float32 if machine.device == "cpu" else torch.bfloat16
    for name in ("sd15", "sdxl"):
        machine.clear()
        config = settings(name, machine.tiny)
        optim = config.optim
        base = machine.base(name, dtype)
        make_ready(base, optim.gradient_checkpointing)
        flops = optim.accumulation * sum(part.flops for part in flop_parts(machine, name, config))
        adapter = machine.adapter(base, torch.float32).train().requires_grad_(True)
        model, optimizer = AdapterLoss(base, adapter, config.loss), training_state.make_optimizer(adapter, optim)
        ema = training_state.EMA(adapter, optim.ema)
        batch = random_batch(base, config)
        times = []
        for step in range(steps):
            machine.wait()
            begun = time.monotonic()
            for micro in range(optim.accumulation):
                ready = with_features(base, batch)
                pairs = len(batch.contrast) if batch.contrast is not None else 0
                noise = Noise.draw(ready.latents.shape, 1000, (0, step, micro), base.device, pairs)
                with torch.autocast(base.device.type, dtype, enabled=dtype != torch.float32):
                    losses = model(ready, noise)
                with attention_kernel(base.device):
                    (losses.total / optim.accumulation).backward()
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), optim.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(adapter, step + 1)
            machine.wait()
            times.append(time.monotonic() - begun)
            if machine.left < 20:
                break
        seconds = sorted(times[1:] or times)[len(times[1:] or times) // 2]
        found[name] = {
            "steps": len(times), "seconds": seconds, "tflop": flops / 1e12, "peak_gb": machine.used(),
            "mfu": flops / seconds / machine.peak if machine.peak else None,
            "finite": bool(torch.isfinite(losses.total)), "batch": [optim.batch, optim.accumulation],
        }  # fmt: skip
        if not machine.tiny:
            found[name]["estimated_gb"] = plan.make_plan(config, 1).peak / GB if machine.left > 60 else None
        del model, optimizer, ema, adapter, base, batch, ready, losses
    return found


def settings(name: str, tiny: bool) -> AdapterTrainConfig:
    """The preset, or as much of it as tiny classes take."""
    config = load_config(name)
    if not tiny:
        return config
    optim = replace(config.optim, batch=2, accumulation=2 if name == "sdxl" else 1)
    loss = replace(config.loss, contrast_batch=min(4, config.loss.contrast_batch))
    return replace(config, data=replace(config.data, size=64), optim=optim, loss=loss)


def flop_parts(machine: Machine, name: str, config: AdapterTrainConfig) -> list[plan.Part]:
    """What `train.plan` counts, without its memory."""
    if machine.tiny:
        base = machine.base(name, torch.float32)
        adapter = random_adapter(base).train().requires_grad_(True)
    else:
        base = base_model(name, dtype=torch.bfloat16)
        adapter = adapter_for(base).train().requires_grad_(True)
    make_ready(base, config.optim.gradient_checkpointing)
    return plan.count(base, adapter, config, memory=False)


def random_batch(base: BaseModel, config: AdapterTrainConfig) -> Batch:
    """Noise for pictures, as a loader would bring it."""
    g = torch.Generator().manual_seed(0)
    side, crop = config.data.size or base.default_size, base.image_encoder.config.image_size

    def pictures(n: int, size: int) -> torch.Tensor:
        return torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8)

    def rows(n: int, **tensors: torch.Tensor) -> Batch:
        no = torch.zeros(n, dtype=torch.bool)
        captions, nouns = ["a photo of a bear on the beach"] * n, [(13, 17)] * n
        return Batch(torch.arange(n), captions, nouns, drop_text=no, drop_subject=no, **tensors)

    n, pairs = config.optim.batch, config.loss.contrast_batch
    mask = torch.zeros(n, 1, side, side, dtype=torch.bool)
    mask[:, :, side // 4 : side // 2, side // 4 : side // 2] = True
    origins = torch.tensor([[side, side, 0, 0]]).expand(n, -1)
    contrast = None
    if pairs:
        bare = torch.zeros(pairs, 1, 1, 1, dtype=torch.bool)
        contrast = rows(pairs, masks=bare, references=pictures(pairs, crop), positives=pictures(pairs, crop))
    whole = rows(
        n, masks=mask, images=pictures(n, side), references=pictures(n, crop), positives=pictures(n, crop),
        origins=origins,
    )  # fmt: skip
    return replace(whole, contrast=contrast)


MORE: dict[str, Callable[[Machine], dict[str, Any]]] = {}
"""The hook for the IP-Adapter comparison: what is registered here runs last, and is reported under its name."""

PARTS: dict[str, Callable[[Machine], dict[str, Any]]] = {"tests": gpu_tests, "pictures": pictures, "training": training}


@dataclass
class Report:
    """What was found so far."""

    machine: str
    parts: dict[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        """The tables."""
        lines = [f"# First run on {self.machine}", ""]
        tests = self.parts.get("tests", {})
        if "counts" in tests:
            lines += [", ".join(f"{n} {kind}" for kind, n in tests["counts"].items()), ""]
            lines += [f"- {name}" for name in tests["failed"]]
        head = ["seconds", "peak_gb", "estimated_gb", "tflop", "mfu"]
        rows = [
            (f"{part}: {name}", row)
            for part in ("pictures", "training")
            for name, row in self.parts.get(part, {}).items()
            if isinstance(row, dict)
        ]
        if rows:
            lines += ["| | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
            lines += [f"| {name} | " + " | ".join(_cell(row.get(key)) for key in head) + " |" for name, row in rows]
        for name, part in self.parts.items():
            if "error" in part:
                lines += ["", f"{name} failed: {part['error']}"]
            elif name in MORE:
                lines += ["", f"{name}: {json.dumps(part)}"]
        return "\n".join(lines) + "\n"

    def write(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "first-run.json").write_text(json.dumps({"machine": self.machine} | self.parts, indent=1))
        (out / "first-run.md").write_text(self.markdown(), encoding="utf-8")


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)


@dataclass(frozen=True)
class _Plain:
    picture: Image.Image

    def on_plain(self) -> Image.Image:
        return self.picture


def _on_meta(base: BaseModel) -> BaseModel:
    """A copy without memory."""

    def meta(module: torch.nn.Module) -> torch.nn.Module:
        return copy.deepcopy(module).to("meta")

    return replace(
        base, text_encoders=[meta(e) for e in base.text_encoders], unet=meta(base.unet), vae=meta(base.vae),
        image_encoder=meta(base.image_encoder), device=torch.device("cpu"),
    )  # fmt: skip


def run(out: Path, device: str, tiny: bool, budget: float = BUDGET, parts: Sequence[str] = ()) -> Report:
    """All parts, or those named; the report is written after each."""
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(device, tiny, Path(folder), time.monotonic() + budget)
        report = Report(machine.name)
        for name, part in (PARTS | MORE).items():
            if parts and name not in parts:
                continue
            try:
                if machine.left < 15:
                    raise TimeoutError("the time was up before it began")
                report.parts[name] = part(machine)
            except Exception as error:  # noqa: BLE001 - a part that fails must not cost the others their turn
                traceback.print_exc()
                report.parts[name] = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
            report.write(out)
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.first_run", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/first-run"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny classes: shows that the run works")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all parts")
    parser.add_argument("--parts", nargs="*", default=[], choices=sorted(PARTS | MORE), help="default all")
    options = parser.parse_args(arguments)
    report = run(options.out, options.device, options.tiny, options.budget, options.parts)
    print(report.markdown())
    return int(any("error" in part or part.get("ok") is False for part in report.parts.values()))


if __name__ == "__main__":
    sys.exit(main())
