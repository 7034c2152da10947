"""`python -m tests.benchmarks.memory NAME STEPS DEVICE`: one contender in its own process; peak memory as JSON."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import torch

from tests.benchmarks.generation import contender


def resident() -> float:
    """RSS now, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak() -> float:
    """Highest RSS since this program began or `forget_peak` was called, MB. (getrusage's figure survives an exec.)"""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024


def forget_peak() -> None:
    """Start anew with the memory that is used now."""
    Path("/proc/self/clear_refs").write_text("5")


def main(name: str, steps: str, device: str) -> None:
    call = contender(name, int(steps), device)
    loaded = resident()
    forget_peak()
    call()
    figures = {"loaded_mb": loaded, "peak_mb": peak(), "growth_mb": peak() - loaded}
    if device == "cuda":
        figures["gpu_peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
