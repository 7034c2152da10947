"""A training step against the bare UNet's forward and backward; the wait for data; one process and two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from customcontrast.adapter import Adapter
from customcontrast.base_model import load_base
from customcontrast.conditioning.text_context import encode_contexts, encode_prompt
from tests.benchmarks.generation import ROOT
from tests.benchmarks.report import Options, Report, Target, table
from tests.benchmarks.timing import interleave, summarize
from train.adapter import training_state
from train.adapter.adapter_config import AdapterTrainConfig, load_config
from train.adapter.step import AdapterLoss, Noise
from train.adapter.train import usable_precision
from train.common.ema import EMA
from train.data.frozen_features import with_features
from train.data.sampler import Samples
from train.data.samples import collate
from train.data.sources import make_source

SUBJECTS = 96  # of the pool: enough for batches without repeats


def settings(folder: Path, steps: int = 100_000) -> AdapterTrainConfig:
    """The Toyland preset on a small pool under `folder`, without validation and checkpoints in between."""
    config = load_config("toyland")
    data = replace(config.data, source="pool", path=str(folder / "pool"), subjects=SUBJECTS, workers=0)
    log = replace(config.log, every=1, validate_every=0, save_every=10**6, save_minutes=10**6)
    return replace(config, data=data, log=log, optim=replace(config.optim, steps=steps))


def contenders(config: AdapterTrainConfig, device: str) -> dict[str, Callable[[], object]]:
    """The bare UNet (stock processors; gradients into its contexts) and our whole step, on one batch."""
    precision = usable_precision(config.optim.mixed_precision, device == "cpu")
    plain, base = load_base("toyland", device=device), load_base("toyland", device=device)
    source = make_source(config.data, base, progress=False)
    samples = Samples(source, config.seed, 0.0)
    batch = with_features(base, collate([samples[i] for i in range(config.optim.batch)]))
    noise = Noise.draw(batch.latents.shape, base.scheduler.config.num_train_timesteps, (0, 0), base.device)
    prompts = [encode_prompt(plain, caption) for caption in batch.captions]
    with torch.no_grad():
        hidden = encode_contexts(plain, prompts).hidden[:, 0]
    dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def bare() -> None:
        context = hidden.clone().requires_grad_()
        with torch.autocast(base.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            prediction = plain.unet(batch.latents, noise.t, context).sample
        torch.nn.functional.mse_loss(prediction.float(), noise.epsilon).backward()

    torch.manual_seed(0)
    adapter = Adapter.create(base, **config.encoder).float().train()
    model, optimizer = AdapterLoss(base, adapter, config.loss), training_state.make_optimizer(adapter, config.optim)
    ema, done = EMA(adapter, config.optim.ema), [0]

    def step() -> None:
        with torch.autocast(base.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            losses = model(batch, noise)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), config.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        done[0] += 1
        ema.update(adapter, done[0])

    return {"bare UNet, forward and backward": bare, "our whole step (Eq. 9, optimiser, average)": step}


def session(config: AdapterTrainConfig, folder: Path, processes: int, minutes: float, device: str) -> dict[str, float]:
    """`train.adapter.train` for so long: samples a second, and the share of time spent waiting for data."""
    folder.mkdir()
    path, output = folder / "config.yaml", folder / "run"
    path.write_text(yaml.safe_dump(config.to_dict()))
    run = ["-m", "train.adapter", "--config", str(path), "--output", str(output), "--minutes", str(minutes)]
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *launch, *run, *(["--cpu"] if device == "cpu" else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300 + 60 * minutes
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    log = output / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if len(lines) < 3:
        raise RuntimeError(f"{len(lines)} step(s) in {minutes:g} minutes say too little; give more with --minutes")
    kept = lines[1:]  # the first line holds the warm-up
    return {name: sum(line[name] for line in kept) / len(kept) for name in ("samples_per_second", "data_wait")}


def run(options: Options) -> Report:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = settings(folder)
        precision = usable_precision(config.optim.mixed_precision, options.device == "cpu")
        rows = summarize(
            interleave(contenders(config, options.device), max(3, options.rounds // 2), sync=options.device == "cuda")
        )
        turns = [session(config, folder / str(i), n, options.minutes, options.device) for i, n in enumerate((1, 2, 1))]
    lines = table(
        (
            f"batch of {config.optim.batch}, {precision}",
            "seconds",
            "± quartiles",
            "×",
            "± quartiles",
        ),
        [(r.name, f"{r.seconds:.3f}", f"{r.iqr:.3f}", f"{r.ratio:.2f}", f"{r.ratio_iqr:.2f}") for r in rows],
    )
    for n, s in zip((1, 2, 1), turns, strict=True):
        wait, pace = s["data_wait"], s["samples_per_second"]
        lines.append(f"{n} process(es): {pace:.2f} samples a second, waiting for data {wait:.1%} of the time")
    before, two, after = (s["samples_per_second"] for s in turns)
    scaling, allowed = two / ((before + after) / 2), len(os.sched_getaffinity(0))
    lines.append(f"two processes against one: {scaling:.2f} × on {allowed} core(s) allowed")
    if abs(before - after) > 0.2 * min(before, after):
        lines.append("the two sessions of one process differ by more than a fifth: the machine was busy, measure again")
    targets = [
        Target("step × bare UNet", rows[1].ratio, 1.25),
        Target("waiting for data, share", max(s["data_wait"] for s in turns), 0.05),
    ]
    figures = {"rows": [row.as_dict() for row in rows], "sessions": turns, "scaling": scaling, "cores": allowed}
    return Report("Training: the Toyland preset", lines, figures, targets)
