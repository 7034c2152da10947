"""SIGKILL at random moments of training; each time `--resume latest` goes on to the losses of the unbroken run.

    python -m tests.robustness.kills --count 20 [--data mixed] [--fork] [--seed 0] [--json FILE]

A real run of `python -m train.adapter` on a tiny base is killed so often; kills fall anywhere: while it loads, in a
step, while it writes a checkpoint. Afterwards every step's losses must be those of a run that nobody disturbed, to the
last digit, and so must the exported weights. --data: a pool of Toyland, or "mixed": two weighted sets, shards behind a
mapped index and a folder, with a contrastive batch. --fork: the runs are forks of this process, which has everything
imported, so that a kill falls into a step more often than into an import.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from tests.robustness.runs import mixed_run, small_run
from tests.support import processes
from train.adapter.adapter_config import AdapterTrainConfig
from train.adapter.train import main as train_main

ROOT = Path(__file__).parents[2]
TERMS = ("total", "diffusion", "cscl", "macl", "location", "gradient", "learning_rate")


class Running(Protocol):
    """A run in a process of its own: what is used of `subprocess.Popen`."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end."""

    def kill(self) -> None:
        """SIGKILL."""


Launch = Callable[[Path, Path, Path], Running]  # (configuration, output, log) -> the run


def command(config: Path, output: Path, *more: str) -> list[str]:
    start = [sys.executable, "-m", "train.adapter", "--config", str(config), "--output", str(output)]
    return [*start, "--resume", "latest", "--cpu", *more]


def start(config: Path, output: Path, log: Path) -> subprocess.Popen:
    """`python -m train.adapter` as a user starts it."""
    with log.open("a") as file:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(command(config, output), cwd=ROOT, env=environment, stdout=file, stderr=file)


class Forked:
    """The same run in a fork of this process, which has everything imported: for tests.

    prepare: what that process does first. What it says goes to `log`.
    """

    def __init__(self, config: Path, output: Path, log: Path, prepare: Callable[[], object] | None = None) -> None:
        words = command(config, output)[3:]
        self.process = processes.start(_train, words, log, prepare, failed=log.with_suffix(".traceback"))

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()

    def end(self, limit: float = 120) -> int | None:
        """Its exit status; -9 where it was killed, also because it hung."""
        self.wait(limit)
        self.kill()
        return self.wait()


def _train(words: list[str], log: Path, prepare: Callable[[], object] | None) -> None:
    with log.open("a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        if prepare is not None:
            prepare()
        try:
            code = train_main(words)
        except Exception:
            traceback.print_exc()  # where the rest of what it said is
            raise
    sys.exit(code)


def finish(config: Path, output: Path, log: Path, start: Launch = start, limit: float = 600) -> tuple[float, float]:
    """Run to the end; seconds until a step was done, and until the end. RuntimeError with the log's end if it fails."""
    began, process = time.monotonic(), start(config, output, log)
    _wait(lambda: steps_done(output) > 0, process, began + limit)
    first = time.monotonic() - began
    if process.wait(limit) != 0:
        raise RuntimeError(log.read_text()[-3000:])
    return first, time.monotonic() - began


def steps_done(output: Path) -> int:
    """The last step in the log; a line that a kill cut short does not count."""
    return max(history(output), default=0)


def history(output: Path) -> dict[int, dict[str, float]]:
    """Step → its line of the log; of a step that was done twice the last one."""
    lines = {}
    path = output / "log.jsonl"
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
            lines[line["step"]] = line
        except (ValueError, KeyError, TypeError):
            continue
    return lines


def kill_once(
    config: Path, output: Path, log: Path, rng: random.Random, loading: float, longest: float, start: Launch = start
) -> tuple[int, str]:
    """Start, wait a random while, SIGKILL. Returns the step it had come to and what it was at.

    A third of the kills wait for a step first, a third for a checkpoint being written, so that these moments are met
    however long loading takes.
    """
    kind = rng.choice(("any moment", "in a step", "while writing"))
    process, goal = start(config, output, log), steps_done(output) + rng.randint(1, 3)
    deadline = time.monotonic() + longest
    if kind == "in a step":
        _wait(lambda: steps_done(output) >= goal, process, deadline)
        time.sleep(rng.uniform(0, 0.3))
    elif kind == "while writing":
        _wait(lambda: any((output / "checkpoints").glob("*.part")), process, deadline, 0.0005)
    else:
        time.sleep(rng.uniform(0.1, 1.3 * loading))  # while it loads, and the steps after
    if process.poll() is None:
        process.kill()
        process.wait(60)
        return steps_done(output), kind
    return steps_done(output), "had finished"


def _wait(done: Callable[[], bool], process: Running, deadline: float, pause: float = 0.02) -> None:
    while not done() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(pause)


def compare(whole: Path, parts: Path) -> list[str]:
    """What differs between two finished runs; nothing, if all is well."""
    one, two = history(whole), history(parts)
    found = [f"steps {sorted(set(one) ^ set(two))} are in one log only"] if set(one) != set(two) else []
    for step in sorted(set(one) & set(two)):
        found += [f"step {step}: {t} {one[step][t]} ≠ {two[step][t]}" for t in TERMS if one[step][t] != two[step][t]]
    a, b = load_file(whole / "adapter.safetensors"), load_file(parts / "adapter.safetensors")
    found += [f"weight {name} differs" for name in a if not torch.equal(a[name], b[name])]
    leftovers = [str(path) for path in parts.rglob("*.part*")]
    return found + [f"left behind: {leftovers}"] * bool(leftovers)


def unreadable(output: Path) -> list[str]:
    """Checkpoints of a killed run that are not whole; there must be none."""
    bad = []
    for path in (output / "checkpoints").glob("step-*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                file.metadata()
        except (SafetensorError, OSError) as error:
            bad.append(f"{path.name}: {error}")
    return bad


def trial(
    folder: Path, count: int, seed: int, steps: int, config: AdapterTrainConfig, start: Launch = start
) -> dict[str, object]:
    """The unbroken run, then one that is killed `count` times before it may end. Both under `folder`."""
    config = replace(config, optim=replace(config.optim, steps=steps))
    path, log = folder / "config.yaml", folder / "log.txt"
    path.write_text(yaml.safe_dump(config.to_dict()))
    loading, seconds = finish(path, folder / "whole", log, start)
    rng, kills, damaged = random.Random(seed), [], []
    for number in range(count):  # a run that ends before it is killed so often wants more steps
        kills.append(kill_once(path, folder / "parts", log, rng, loading, seconds, start))
        if kills[-1][1] == "had finished":
            break
        damaged += unreadable(folder / "parts")
        print(f"kill {number + 1:2} of {count}: at step {kills[-1][0]:3} ({kills[-1][1]})", flush=True)
    finish(path, folder / "parts", log, start)
    differences = compare(folder / "whole", folder / "parts")
    return {"kills": kills, "steps": steps, "seconds": seconds, "damaged": damaged, "differences": differences}


def main() -> int:
    from tests.support.serving import tiny_model  # needs tests/ on the path

    parser = argparse.ArgumentParser(prog="python -m tests.robustness.kills", description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=20, help="kills")
    parser.add_argument("--steps", type=int, default=400, help="steps of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", choices=("pool", "mixed"), default="mixed")
    parser.add_argument("--fork", action="store_true", help="fork this process for each run instead of starting anew")
    parser.add_argument("--json", type=Path, help="write what happened here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make = small_run if options.data == "pool" else mixed_run
        config = make(tiny_model(folder / "tiny"), folder / "data", save_every=3)
        done = trial(folder, options.count, options.seed, options.steps, config, Forked if options.fork else start)
    killed = [kind for _, kind in done["kills"] if kind != "had finished"]
    kinds = ", ".join(f"{killed.count(kind)} {kind}" for kind in dict.fromkeys(killed))
    print(
        f"{len(killed)} kills ({kinds}) of a run of {done['steps']} steps that takes {done['seconds']:.0f} s unbroken"
    )
    print(f"checkpoints damaged: {len(done['damaged'])}; differences to the unbroken run: {len(done['differences'])}")
    for line in (*done["damaged"], *done["differences"][:20]):
        print(" ", line)
    if options.json:
        options.json.write_text(json.dumps(done, indent=1) + "\n")
    return int(bool(done["damaged"] or done["differences"]))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    sys.exit(main())
