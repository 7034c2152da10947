"""What a benchmark hands back: figures, lines of a table, and targets that are met or not."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Options:
    """How large the benchmarks are run."""

    steps: int = 10  # denoising steps of a picture
    rounds: int = 7  # turns each contender has after one to warm up
    minutes: float = 0.5  # of each training run
    pictures: Path | None = None  # folder for plots
    device: str = "cpu"  # cpu or cuda


@dataclass(frozen=True)
class Target:
    """A figure and what it should not exceed."""

    what: str
    value: float
    limit: float

    @property
    def met(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        return f"{'met   ' if self.met else 'MISSED'} {self.what}: {self.value:.3g} (target ≤ {self.limit:g})"


@dataclass
class Report:
    """One benchmark's outcome."""

    title: str
    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)

    def print(self) -> None:
        print("\n".join(["", self.title, *(f"  {line}" for line in self.lines), *(f"  {t}" for t in self.targets)]))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        targets = [asdict(target) | {"met": target.met} for target in self.targets]
        return {"title": self.title, "figures": self.figures, "targets": targets}


def machine() -> str:
    """The date, the processor, how much of it this process may use and how busy it is, the GPU, torch."""
    model = (
        re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    )
    name = model[1] if model else platform.machine()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{date.today()}, {name}, {allowed} of {os.cpu_count()} cores allowed, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f} at the start{gpu}, torch {torch.__version__}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns; the first to the left, the others to the right."""
    widths = [max(len(str(row[i])) for row in (head, *rows)) for i in range(len(head))]

    def padded(row: Sequence[str]) -> str:
        cells = zip(row, widths, strict=True)
        return "  ".join(str(c).rjust(w) if i else str(c).ljust(w) for i, (c, w) in enumerate(cells))

    return [padded(head), *map(padded, rows)]
