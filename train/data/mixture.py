"""Several sets of subjects in one run, each with its share of the samples; and the subjects that training never sees.

Nothing is counted and nothing is remembered: which set sample `index` comes from, and which one of that set it is,
follow from (seed, index), so a resumed run and a run of more processes see one sequence.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from train.data.samples import Sample, Source

BLOCK = 1024  # samples in which every set has exactly its share


@dataclass(frozen=True)
class Part:
    """One set of a mixture."""

    name: str  # stands in front of its subjects' ids; "" = nothing does
    source: Source
    weight: float = 1.0  # share of the samples, against the other weights
    captions: str = "given"  # given or noun, as `DataConfig.captions`

    def named(self, sample: Sample) -> Sample:
        """The sample with the set's name in front of its subject's id: two sets may both have a "cat"."""
        return replace(sample, subject=f"{self.name}/{sample.subject}") if self.name else sample


class Mixture:
    """The parts, and which of them each sample comes from."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        total = sum(part.weight for part in self.parts)
        exact = [BLOCK * part.weight / total for part in self.parts]
        quotas = [max(1, int(share)) for share in exact]
        while sum(quotas) < BLOCK:  # what is left goes to the largest remainders
            quotas[max(range(len(quotas)), key=lambda i: exact[i] - quotas[i])] += 1
        while sum(quotas) > BLOCK:
            quotas[max(range(len(quotas)), key=lambda i: quotas[i] - exact[i])] -= 1
        self.quotas = quotas
        self._block: tuple[str, list[int], list[int]] = ("", [], [])

    def __len__(self) -> int:
        return sum(len(part.source) for part in self.parts)

    def place(self, seed: object, index: int) -> tuple[int, int]:
        """(which part, the how-manieth sample of that part) of sample `index` under `seed`."""
        if len(self.parts) == 1:
            return 0, index
        block, at = divmod(index, BLOCK)
        key = f"{seed}-mixture-{block}"
        if self._block[0] != key:
            order = [k for k, quota in enumerate(self.quotas) for _ in range(quota)]
            random.Random(key).shuffle(order)
            seen, ranks = [0] * len(self.parts), []
            for k in order:
                ranks.append(seen[k])
                seen[k] += 1
            self._block = (key, order, ranks)
        _, order, ranks = self._block
        return order[at], block * self.quotas[order[at]] + ranks[at]


def held_out(keys: np.ndarray, share: float) -> np.ndarray:
    """Which subjects are kept for validation, by the hash of their ids: always the same ones, whoever joins them.

    keys: uint64 (N,), as `Source.subject_keys` gives them. Returns bool (N,).
    """
    return keys < np.uint64(share * 2**64)


class Subset:
    """Some subjects of a source."""

    def __init__(self, source: Source, rows: Sequence[int] | np.ndarray) -> None:
        self.source, self.rows = source, np.asarray(rows, np.uint32)

    @classmethod
    def split(cls, source: Source, share: float, validation: bool) -> Source:
        """The subjects that are held out (validation), or all the others."""
        if share == 0 and not validation:
            return source
        return cls(source, np.flatnonzero(held_out(source.subject_keys(), share) == validation))

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, index: int, rng: random.Random) -> Sample:
        return self.source.draw(int(self.rows[index]), rng)

    def pair(self, index: int, rng: random.Random) -> Sample:
        return self.source.pair(int(self.rows[index]), rng)

    def subject_keys(self) -> np.ndarray:
        return self.source.subject_keys()[self.rows]
