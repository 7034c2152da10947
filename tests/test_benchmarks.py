"""The figures behind the benchmark table."""

from __future__ import annotations

import pytest

from tests.benchmarks.timing import interleave, summarize


def test_ratios_pair_the_rounds() -> None:
    first, second = summarize({"a": [1.0, 2.0, 4.0], "b": [3.0, 6.0, 12.0]})
    assert (first.ratio, second.ratio, second.ratio_iqr) == pytest.approx((1.0, 3.0, 0.0))
    assert (second.seconds, second.iqr) == pytest.approx((6.0, 4.5))


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    times = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert "".join(calls) == "abababab" and [len(x) for x in times.values()] == [3, 3]
