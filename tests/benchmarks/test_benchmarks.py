"""The figures behind the benchmark tables."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.benchmarks.__main__ import present
from tests.benchmarks.breakdown import COLORS, PARTS, stacked_bar, watched
from tests.benchmarks.generation import LIMITS, NAMES, OURS
from tests.benchmarks.growth import exponent
from tests.benchmarks.memory import forget_peak, peak, resident
from tests.benchmarks.report import Report, Target, machine, table
from tests.benchmarks.timing import interleave, summarize


def test_ratios_pair_the_rounds() -> None:
    first, second = summarize({"a": [1.0, 2.0, 4.0], "b": [3.0, 6.0, 12.0]})
    assert (first.ratio, second.ratio, second.ratio_iqr) == pytest.approx((1.0, 3.0, 0.0))
    assert (second.seconds, second.iqr) == pytest.approx((6.0, 4.5))


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    times = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert "".join(calls) == "abababab" and [len(x) for x in times.values()] == [3, 3]


def test_exponents_are_those_of_power_laws() -> None:
    sizes = (1, 2, 4, 8)
    assert exponent(sizes, [3 * s**1.5 for s in sizes]) == pytest.approx((1.5, 0.0), abs=1e-9)
    rate, error = exponent(sizes, [1.0, 2.1, 3.7, 8.4])
    assert abs(rate - 1) < error + 0.1 and error > 0


def test_targets_are_met_up_to_their_limit() -> None:
    assert Target("x", 1.05, 1.05).met and not Target("x", 1.06, 1.05).met
    assert (
        "MISSED" in str(Target("x", 2, 1))
        and Report("t", targets=[Target("x", 2, 1)]).as_dict()["targets"][0]["met"] is False
    )


def test_table_lines_are_of_one_width() -> None:
    lines = table(("name", "value"), [("a", "1"), ("longer", "1000")])
    assert len({len(line) for line in lines}) == 1 and lines[1].endswith("    1")


def test_every_named_benchmark_is_here_and_the_machine_has_a_name() -> None:
    assert {"generation", "breakdown", "growth", "training", "training_step", "page", "sd15"} <= set(present())
    assert "cores" in machine() and "torch" in machine()
    assert set(LIMITS) == set(OURS) <= set(NAMES)


def test_watching_a_module_counts_its_calls() -> None:
    linear = torch.nn.Linear(2, 2)
    with watched(linear) as total:
        linear(torch.ones(1, 2))
        linear(torch.ones(1, 2))
    linear(torch.ones(1, 2))
    assert total[1] == 2 and total[0] > 0


def test_peak_memory_is_that_of_the_call() -> None:
    forget_peak()
    before = peak()
    with mmap.mmap(-1, 64 << 20) as block:  # fresh pages: malloc may hand out freed ones, which count already
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
    assert peak() - before > 50 and peak() >= resident() - 1


def test_stacked_bar_is_drawn(tmp_path: Path) -> None:
    assert len(COLORS) == len(PARTS)
    stacked_bar(dict.fromkeys(PARTS, 0.1), "parts", tmp_path / "sub" / "bar.png")
    picture = Image.open(tmp_path / "sub" / "bar.png").convert("RGB")
    assert picture.width > 1000 and len(picture.getcolors(1 << 24)) > len(PARTS)
