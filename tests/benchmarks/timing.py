"""Contenders in turn (A B C A B C …), medians, quartiles and ratios of pairs from the same round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Row:
    """One contender's figures."""

    name: str
    seconds: float  # median
    iqr: float  # s, third minus first quartile
    ratio: float  # median over rounds of its time / the first contender's
    ratio_iqr: float

    def as_dict(self) -> dict[str, float | str]:
        """For JSON."""
        return asdict(self)


def summarize(times: Mapping[str, list[float]]) -> list[Row]:
    """Seconds per round of each contender -> a row each; the first is what the others are held against."""
    base = np.array(next(iter(times.values())))
    rows = []
    for name, values in times.items():
        seconds = np.array(values)
        (a, b), (c, d) = (np.percentile(x, (25, 75)) for x in (seconds, seconds / base))
        rows.append(Row(name, float(np.median(seconds)), float(b - a), float(np.median(seconds / base)), float(d - c)))
    return rows


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    sync: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Call each once to warm up, then all in turn `rounds` times; seconds of each call.

    sync: wait for the GPU. clock: time.process_time for the seconds of this process alone, on a shared machine.
    """
    wait = torch.cuda.synchronize if sync else lambda: None
    for call in contenders.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            wait()
            start = clock()
            call()
            wait()
            times[name].append(clock() - start)
    return times
