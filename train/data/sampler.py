"""Which samples a training step has.

No state. Which subjects, frames, captions and drops a sample has is a function of (seed, index), and which indices a
step has is a function of (step, process): a resumed run sees what an unbroken one sees, and nobody counts.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from customcontrast.errors import ConfigError
from train.data.mixture import Mixture, Part
from train.data.samples import DROPS, Batch, Sample, Source, collate
from train.toyland.captions import article


class Samples(Dataset):
    """An endless, shuffled sequence of samples: item `index` depends on (source, seed, index) alone.

    Each run of len(source) indices is one epoch: a permutation of all subjects, so that a batch holds no subject
    twice (but where it straddles two epochs). captions "noun" leaves nothing of a caption but its class noun. Of a
    mixture each part has epochs, ids and captions of its own.

    Item −1 − j is pair j: R and R⁺ alone, of a second sequence, for `LossConfig.contrast_batch`.
    """

    def __init__(
        self,
        source: Source | Mixture,
        seed: int = 0,
        drop: float = 0.05,
        captions: str = "given",
        branch: float = 0.0,
    ) -> None:
        if len(source) == 0:
            raise ValueError("source holds no subject; see train.data.toyland_source for what a source needs")
        self.source, self.seed, self.drop, self.branch = source, seed, drop, branch
        self.mixture = source if isinstance(source, Mixture) else Mixture([Part("", source, 1.0, captions)])
        self._orders: dict[tuple[object, int], tuple[int, array]] = {}

    def __getitem__(self, index: int) -> Sample:
        if index < 0:
            part, row, rng = self._place(f"{self.seed}-pairs", -1 - index)
            return part.named(part.source.pair(row, rng))
        part, row, rng = self._place(self.seed, index)
        drop = draw_drop(rng, self.drop, self.branch)
        sample = part.named(replace(part.source.draw(row, rng), drop=drop))
        return noun_alone(sample) if part.captions == "noun" else sample

    def _place(self, seed: object, index: int) -> tuple[Part, int, random.Random]:
        """Part, subject and the random numbers of sample `index` in the sequence of `seed`."""
        k, ordinal = self.mixture.place(seed, index)
        part = self.mixture.parts[k]
        epoch, place = divmod(ordinal, len(part.source))
        if self._orders.get((seed, k), (-1,))[0] != epoch:
            order = array("I", range(len(part.source)))  # 4 bytes a subject in each loader process
            random.Random(f"{seed}-order-{f'{part.name}-' if part.name else ''}{epoch}").shuffle(order)
            self._orders[seed, k] = (epoch, order)
        return part, self._orders[seed, k][1][place], random.Random(f"{seed}-sample-{index}")


def noun_alone(sample: Sample) -> Sample:
    """The sample with "a bear" for its caption: what a picture without a caption can say of its subject."""
    noun = sample.caption[slice(*sample.noun)]
    text = article(noun)
    return replace(sample, caption=text, noun=(len(text) - len(noun), len(text)))


def draw_drop(rng: random.Random, p: float, branch: float = 0.0) -> str:
    """Drop the text, the subject, or both, each with probability p; S* or the visual branch, each with `branch`."""
    x = rng.random()
    if p > 0 and x < 3 * p:
        return DROPS[1 + int(x / p)]
    x -= 3 * p
    return DROPS[4 + int(x / branch)] if branch > 0 and x < 2 * branch else "none"


class StepSampler(Sampler[list[int]]):
    """Lists of sample indices, one for each micro-step from `start` on; process `rank` of `world` has its own.

    Micro-step k takes indices k·B·W … (k+1)·B·W − 1, of which each process has B in a row: W processes of B samples
    eat the same sequence as one of W·B. pairs: so many pairs in the same way beside them, as negative numbers.
    """

    def __init__(self, batch: int, start: int, stop: int, rank: int = 0, world: int = 1, pairs: int = 0) -> None:
        self.batch, self.start, self.stop, self.rank, self.world = batch, start, stop, rank, world
        self.pairs = pairs

    def __iter__(self) -> Iterator[list[int]]:
        for k in range(self.start, self.stop):
            place = k * self.world + self.rank
            own = range(place * self.batch, (place + 1) * self.batch)
            yield [*own, *(-1 - j for j in range(place * self.pairs, (place + 1) * self.pairs))]

    def __len__(self) -> int:
        return max(0, self.stop - self.start)


def make_loader(samples: Samples, sampler: StepSampler, workers: int = 0) -> DataLoader:
    """Batches in the sampler's order, whatever the number of workers."""
    return DataLoader(
        samples,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def in_order(loader: DataLoader) -> Iterator[Batch]:
    """The loader's batches. What goes wrong in a loader process ends in one sentence.

    Raises ConfigError that a process met, or ChildProcessError when one died.
    """
    try:
        yield from loader
    except ConfigError as error:  # from a loader process it comes with that one's traceback around it
        raise ConfigError(
            str(error).strip().splitlines()[-1].removeprefix("customcontrast.errors.ConfigError: ")
        ) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        why = str(error).strip().splitlines()[0]
        raise ChildProcessError(
            f"data.workers: a loader process died ('{why}'), often for want of memory; the same command goes on from "
            "the last checkpoint, with fewer processes by --set data.workers=N."
        ) from error
