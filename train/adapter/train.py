"""Train an adapter with Eq. 9. The base is frozen; only the adapter learns.

    accelerate launch -m train.adapter --config toyland.yaml --output runs/adapter
    python -m train.adapter --config toyland --output runs/adapter --minutes 40

Stops after the preset's steps, after --minutes, or on SIGTERM / Ctrl-C, each time with a checkpoint; the same command
goes on from it, exactly: all randomness is a function of (seed, step).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch.optim import AdamW

from customcontrast.adapter import Adapter
from customcontrast.adapter_files import save_adapter
from customcontrast.errors import BaseModelError, ConfigError, ResumeError
from customcontrast.folders import check_folder
from customcontrast.precision import computes_bf16
from customcontrast.tensor_files import remove_parts
from train.adapter import training_state
from train.adapter.adapter_config import AdapterTrainConfig, load_config
from train.adapter.frozen_base import make_ready
from train.adapter.losses import Losses
from train.adapter.start import Start
from train.adapter.step import AdapterLoss, Noise, attention_kernel
from train.adapter.training_state import Progress, averaged
from train.adapter.validate import Validation
from train.adapter.watch import Agreement, FiniteWatch, batch_times_similarity
from train.common.ema import EMA
from train.common.log import Log, Timer, WandB
from train.common.sharding import shard, whole
from train.common.signals import StopSignal
from train.data.frozen_features import with_features
from train.data.mixture import Mixture
from train.data.sampler import Samples, StepSampler, in_order, make_loader
from train.data.samples import Batch, Source, required
from train.data.sources import make_source

logger = logging.getLogger(__name__)
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def usable_precision(asked: str, cpu: bool) -> str:
    """`optim.mixed_precision`; "no" instead of a bf16 that this device would only imitate, which is said."""
    device = "cuda" if torch.cuda.is_available() and not cpu else "cpu"
    if asked != "bf16" or computes_bf16(device):
        return asked
    logger.warning("optim.mixed_precision=bf16: this %s has no bfloat16 of its own, so float32 is used", device)
    return "no"


def train(
    config: AdapterTrainConfig, output: Path, minutes: float | None = None, resume: str = "latest", cpu: bool = False
) -> Progress:
    """Run until `config.optim.steps`, for `minutes`, or until SIGTERM. Returns where the run stands.

    Under `output`: adapter.safetensors (averaged weights, for inference), checkpoints/, log.jsonl, tensorboard/,
    validation/. Raises ResumeError, ConfigError, BaseModelError, or FloatingPointError naming the bad loss and step.
    """
    optim, timeout = config.optim, timedelta(minutes=config.optim.timeout_minutes)
    precision = usable_precision(optim.mixed_precision, cpu)
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=optim.accumulation,
        cpu=cpu,
        log_with="wandb" if config.log.wandb else None,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=timeout),  # the others wait while one makes data ready or validates
        ],
    )
    main, device = accelerator.is_main_process, accelerator.device
    wandb = WandB(accelerator, output, config.to_dict()) if config.log.wandb else None
    dtype = DTYPES[precision] if device.type == "cuda" else torch.float32
    found = training_state.find(output / "checkpoints", resume)
    remove_parts(*((output, output / "checkpoints") if main else ()))
    start = Start.of(config, found)
    base = start.base(device, dtype)
    make_ready(base, optim.gradient_checkpointing)
    with accelerator.main_process_first():
        source = make_source(config.data, base, progress=main)

    torch.manual_seed(config.seed)  # for the adapter's first weights; nothing else draws from the global generator
    adapter = start.adapter(base)
    model, sliced = AdapterLoss(base, adapter, config.loss), optim.sharding == "full"
    if sliced:
        shard(model, accelerator)
    optimizer = training_state.make_optimizer(adapter, optim)
    ema, rates = EMA(adapter, optim.ema), training_state.schedule(optim)
    world = accelerator.num_processes
    progress = (
        training_state.load(found, adapter, ema, optimizer, config, world) if found else Progress(processes=world)
    )
    stepper = accelerator.prepare(optimizer)
    if not sliced:
        model = accelerator.prepare(model)

    batches = batches_from(config, source, progress.step, accelerator)
    samples = optim.batch * optim.accumulation * world
    agree, watch, validation = Agreement(world, timeout), FiniteWatch(device), Validation(base, config)
    log, stop, timer = Log(output, config.log.every, main, wandb), StopSignal(), Timer(progress.seconds, minutes)
    step, saved_at = progress.step, time.monotonic()
    while step < optim.steps and not agree(stop.requested or timer.up):
        for micro in range(optim.accumulation):
            with timer.waiting():
                batch = next(batches)
            seed = (config.seed, step, micro, accelerator.process_index)
            batch = with_features(base, batch)
            if step == progress.step and micro == 0:
                warn_of_small_batch(config, batch, world)
            pairs = len(batch.contrast) if batch.contrast is not None else 0
            shape = required(batch.latents, "Batch.latents").shape
            timesteps, bias = base.scheduler.config.num_train_timesteps, config.loss.timestep_bias
            noise = Noise.draw(shape, timesteps, seed, device, pairs, bias)
            with accelerator.accumulate(model):  # averages the micro-steps; synchronises processes at the last
                with accelerator.autocast():
                    losses: Losses = model(batch, noise)
                watch.see(losses, step)
                with attention_kernel(device):
                    accelerator.backward(losses.total)
        norm = whole(accelerator.clip_grad_norm_(adapter.parameters(), optim.clip_norm or float("inf")))
        rate = set_learning_rate(optimizer, rates.rate(step))
        stepper.step()
        stepper.zero_grad()
        step += 1
        ema.update(adapter, step)

        late = time.monotonic() - saved_at > 60 * config.log.save_minutes
        late = agree(late) if sliced else late  # all must write together
        saves = (main or sliced) and (late or step % config.log.save_every == 0)
        if saves or step % config.log.every == 0:
            watch.check()
        log.add(step, losses.terms(), norm, rate, timer, samples)
        if saves:
            write(output, adapter, ema, optimizer, Progress(step, timer.total, world), config, main)
            saved_at = time.monotonic()
        if (main or sliced) and config.log.validate_every and step % config.log.validate_every == 0:
            with timer.paused():
                validate(validation, step, averaged(ema, adapter), log, main)

    watch.check()
    progress = Progress(step, timer.total, world)
    if main or sliced:
        write(output, adapter, ema, optimizer, progress, config, main)
    log.close()
    stop.restore()
    accelerator.wait_for_everyone()
    return progress


def validate(validation: Validation, step: int, adapter: Adapter, log: Log, main: bool) -> None:
    """Validate the averaged weights in the main process; the others only take part in gathering them."""
    if main:
        validation.run(step, adapter, log)


def warn_of_small_batch(config: AdapterTrainConfig, batch: Batch, processes: int) -> None:
    """Say so where Eq. 7 has too few subjects in a batch to order them: B · τ · S̄ ≤ 1, S̄ of the run's first batch.

    batch: with its features.
    """
    loss, seen = config.loss, batch if batch.contrast is None else batch.contrast
    if not loss.macl or not loss.alpha or not loss.lambda_1 or seen.embeddings is None or len(seen) < 2:
        return
    e = torch.nn.functional.normalize(seen.embeddings.float(), dim=-1)
    value = batch_times_similarity(
        processes * len(seen), loss.macl_temperature, (e @ e.T).clamp(loss.similarity_floor, 1.0)
    )
    if value <= 1:
        logger.warning(
            "L_MACL: %d samples x %d process(es) x temperature %g x mean similarity = %.2f; Eq. 7 orders subjects only "
            "above 1. Raise loss.contrast_batch (it needs no UNet), or loss.macl_temperature.",
            len(seen),
            processes,
            loss.macl_temperature,
            value,
        )


def batches_from(
    config: AdapterTrainConfig, source: Source | Mixture, step: int, accelerator: Accelerator
) -> Iterator[Batch]:
    """The batches of this process from optimiser step `step` on."""
    o = config.optim
    sampler = StepSampler(
        o.batch,
        step * o.accumulation,
        o.steps * o.accumulation,
        accelerator.process_index,
        accelerator.num_processes,
        config.loss.contrast_batch,
    )
    samples = Samples(source, config.seed, config.data.drop, config.data.captions, config.data.drop_branch)
    return in_order(make_loader(samples, sampler, config.data.workers))


def set_learning_rate(optimizer: AdamW, rate: float) -> float:
    """The same rate in all groups; returns it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def write(
    output: Path,
    adapter: Adapter,
    ema: EMA,
    optimizer: AdamW,
    progress: Progress,
    config: AdapterTrainConfig,
    main: bool = True,
) -> None:
    """A checkpoint to go on from, and adapter.safetensors: the averaged weights, 16-bit, for inference."""
    training_state.save(output / "checkpoints", adapter, ema, optimizer, progress, config, config.log.keep, main)
    exported = averaged(ema, adapter)
    if not main:
        return
    part = save_adapter(
        exported,
        output / "adapter.part.safetensors",
        torch.float16,
        step=progress.step,
        seconds=round(progress.seconds, 1),
        training=config.to_dict(),
    )
    part.replace(output / "adapter.safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; errors that a user can mend are one sentence, exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m train.adapter", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="toyland", help="preset (toyland, sd15, sdxl) or YAML file")
    parser.add_argument("--output", type=Path, default=Path("runs/adapter"), help="folder of this run")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes, with a checkpoint")
    parser.add_argument("--resume", default="latest", help="latest (default), none, or a checkpoint file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. --set optim.batch=8")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    options = parser.parse_args(arguments)
    if options.minutes is not None and not options.minutes > 0:
        parser.error(f"--minutes {options.minutes:g}: give more than 0")
    try:
        check_folder(options.output, "--output")
        config = load_config(options.config, options.set)
        progress = train(config, options.output, options.minutes, options.resume, options.cpu)
    except (ConfigError, ResumeError, BaseModelError, FloatingPointError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except (MemoryError, torch.OutOfMemoryError) as error:
        why = str(error).partition(". ")[0] or "no memory is left"
        print(f"train: {why}; lower it with --set optim.batch=N (and raise optim.accumulation).", file=sys.stderr)
        return 2
    print(
        f"step {progress.step} of {config.optim.steps}, {progress.seconds:.0f} s: {options.output}/adapter.safetensors"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
