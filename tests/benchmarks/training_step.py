"""A whole training step against the bare UNet's forward and backward on the same batch, and where its time goes.

On a CPU in seconds of this process, which other processes on the machine lengthen less than those of the clock.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from customcontrast.base_model import BaseModel, load_base
from customcontrast.conditioning.text_context import encode_contexts, encode_prompt
from customcontrast.layout_channels import channels
from tests.benchmarks.report import Options, Report, Target, table
from tests.benchmarks.timing import Row, interleave, summarize
from tests.benchmarks.training import settings
from train.adapter import step as step_module
from train.adapter import training_state
from train.adapter.adapter_config import AdapterTrainConfig
from train.adapter.frozen_base import make_ready
from train.adapter.start import Start
from train.adapter.step import AdapterLoss, Noise, attention_kernel
from train.adapter.train import usable_precision
from train.common.ema import EMA
from train.data.frozen_features import with_features
from train.data.sampler import Samples
from train.data.samples import Batch, collate
from train.data.sources import make_source

BASES = ("toyland", "toyland2")
BARE, PLAIN, OURS = "bare UNet", "bare UNet, plain attention as in ours", "our whole step"
LIMIT = 1.8  # × bare UNet
PARTS = ("adapter", "text encoder", "UNet with Eq. 3 and maps", "losses", "backward: UNet", "backward: text encoder",
         "backward: adapter and contrastive losses", "clipping, AdamW, average")  # fmt: skip


@dataclass
class Stopwatch:
    """Seconds from mark to mark, by the name of what came before each."""

    clock: Callable[[], float]
    last: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        self.seconds, self.last = {}, self.clock()

    def mark(self, name: str) -> None:
        now = self.clock()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now

    def when_reached(self, tensor: Tensor, name: str) -> None:
        """Mark when the backward pass has this tensor's gradient: all that came after it is done."""
        tensor.register_hook(lambda _: self.mark(name))


@dataclass(frozen=True)
class Steps:
    """The contenders of one base, each a step on the same batch."""

    config: AdapterTrainConfig
    base: BaseModel
    batch: Batch
    noise: Noise

    @classmethod
    def of(cls, config: AdapterTrainConfig, device: str) -> Steps:
        base = Start(config).base(torch.device(device), torch.float32)
        make_ready(base, config.optim.gradient_checkpointing)
        samples = Samples(make_source(config.data, base, progress=False), config.seed, config.data.drop)
        batch = with_features(base, collate([samples[i] for i in range(config.optim.batch)]))
        timesteps = base.scheduler.config.num_train_timesteps
        return cls(config, base, batch, Noise.draw(batch.latents.shape, timesteps, (0, 0), base.device))

    def autocast(self) -> AbstractContextManager[Any]:
        kind = self.base.device.type
        precision = usable_precision(self.config.optim.mixed_precision, kind == "cpu")
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        return torch.autocast(kind, dtype or torch.bfloat16, enabled=dtype is not None)

    def bare(self, plain_attention: bool) -> Callable[[], None]:
        """Forward and backward of the stock UNet, gradients into its contexts; no adapter, no maps."""
        base = load_base(self.config.base, device=self.base.device)
        if plain_attention:
            base.unet.set_attn_processor(AttnProcessor())
        z = self.batch.latents
        if base.layout_channels and self.batch.layouts is not None:
            z = torch.cat([z, channels(self.batch.layouts, *z.shape[-2:])], dim=1)
        with torch.no_grad():
            prompts = [encode_prompt(base, caption) for caption in self.batch.captions]
            hidden = encode_contexts(base, prompts).hidden[:, 0]

        def step() -> None:
            context = hidden.clone().requires_grad_()
            with self.autocast():
                prediction = base.unet(z, self.noise.t, context).sample
            torch.nn.functional.mse_loss(prediction.float(), self.noise.epsilon).backward()

        return step

    def ours(self, watch: Stopwatch) -> Callable[[], None]:
        """All of a step of `train.adapter.train` but the data and the log."""
        torch.manual_seed(0)
        adapter = Start(self.config).adapter(self.base)
        model, optim = AdapterLoss(self.base, adapter, self.config.loss), self.config.optim
        optimizer, ema, done = training_state.make_optimizer(adapter, optim), EMA(adapter, optim.ema), [0]

        def step() -> None:
            watch.start()
            with watched_parts(adapter, watch), self.autocast():
                losses = model(self.batch, self.noise)
            watch.mark("losses")
            with attention_kernel(self.base.device):
                losses.total.backward()
            watch.mark("backward: adapter and contrastive losses")
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), optim.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            done[0] += 1
            ema.update(adapter, done[0])
            watch.mark("clipping, AdamW, average")

        return step


@contextmanager
def watched_parts(adapter: torch.nn.Module, watch: Stopwatch) -> Iterator[None]:
    """Marks at the seams of `AdapterLoss`, forward and backward."""
    contexts_of, unet_forward = step_module.contexts_of, step_module.unet_forward

    def seen(_: torch.nn.Module, __: object, out: Any) -> None:
        watch.mark("adapter")
        watch.when_reached(out.mfi.text_tokens[0], "backward: text encoder")

    def contexts(*given: Any) -> Any:
        context = contexts_of(*given)
        watch.mark("text encoder")
        watch.when_reached(context.hidden, "backward: UNet")
        return context

    def forward(*given: Any) -> Tensor:
        prediction = unet_forward(*given)
        watch.mark("UNet with Eq. 3 and maps")
        return prediction

    hook = adapter.register_forward_hook(seen)
    try:
        with patch.object(step_module, "contexts_of", contexts), patch.object(step_module, "unet_forward", forward):
            yield
    finally:
        hook.remove()


def measure(preset: str, options: Options, folder: Path) -> tuple[list[Row], dict[str, float]]:
    """The contenders' rows, and seconds of the parts of our step."""
    cpu = options.device == "cpu"
    clock = time.process_time if cpu else time.perf_counter
    steps, watch = Steps.of(settings(folder, preset=preset), options.device), Stopwatch(clock)
    ours, turns = steps.ours(watch), []

    def timed() -> None:
        ours()
        turns.append(watch.seconds)

    contenders = {BARE: steps.bare(False), PLAIN: steps.bare(True), OURS: timed}
    rows = summarize(interleave(contenders, options.rounds, sync=not cpu, clock=clock))
    return rows, {part: statistics.median(turn[part] for turn in turns[1:]) for part in PARTS}


def run(options: Options) -> Report:
    lines, figures, targets = [], {}, []
    for preset in BASES:
        with tempfile.TemporaryDirectory() as name:
            rows, parts = measure(preset, options, Path(name))
        cells = [(r.name, f"{r.seconds:.3f}", f"{r.ratio:.2f}", f"{r.ratio_iqr:.2f}") for r in rows]
        lines += ["", *table((f"{preset}, one batch", "seconds", "×", "± quartiles"), cells)]
        total = sum(parts.values())
        cells = [(name, f"{seconds * 1000:.0f}", f"{seconds / total:.0%}") for name, seconds in parts.items()]
        lines += table(("of our step", "ms", "share"), cells)
        figures[preset] = {"rows": [row.as_dict() for row in rows], "parts": parts}
        targets.append(Target(f"{preset}: step × bare UNet", rows[2].ratio, LIMIT))
    return Report("A training step (Eq. 9, optimiser, average)", lines, figures, targets)


if __name__ == "__main__":
    run(Options()).print()
