"""Training as it runs: the wait for data, and one process against two. (`training_step`: what a step costs.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import yaml

from tests.benchmarks.generation import ROOT
from tests.benchmarks.report import Options, Report, Target
from train.adapter.adapter_config import AdapterTrainConfig, load_config

SUBJECTS = 96  # of the pool: enough for batches without repeats


def settings(folder: Path, steps: int = 100_000, preset: str = "toyland") -> AdapterTrainConfig:
    """A Toyland preset on a small pool under `folder`, without validation and checkpoints in between."""
    config = load_config(preset)
    data = replace(config.data, source="pool", path=str(folder / "pool"), subjects=SUBJECTS, workers=0)
    log = replace(config.log, every=1, validate_every=0, save_every=10**6, save_minutes=10**6)
    return replace(config, data=data, log=log, optim=replace(config.optim, steps=steps))


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
        turns = [session(config, folder / str(i), n, options.minutes, options.device) for i, n in enumerate((1, 2, 1))]
    lines = []
    for n, s in zip((1, 2, 1), turns, strict=True):
        wait, pace = s["data_wait"], s["samples_per_second"]
        lines.append(f"{n} process(es): {pace:.2f} samples a second, waiting for data {wait:.1%} of the time")
    before, two, after = (s["samples_per_second"] for s in turns)
    scaling, allowed = two / ((before + after) / 2), len(os.sched_getaffinity(0))
    lines.append(f"two processes against one: {scaling:.2f} × on {allowed} core(s) allowed")
    if abs(before - after) > 0.2 * min(before, after):
        lines.append("the two sessions of one process differ by more than a fifth: the machine was busy, measure again")
    targets = [Target("waiting for data, share", max(s["data_wait"] for s in turns), 0.05)]
    figures = {"sessions": turns, "scaling": scaling, "cores": allowed}
    return Report("Training: the Toyland preset", lines, figures, targets)
