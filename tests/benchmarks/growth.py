"""How time and memory grow with pictures, subjects, references, steps and pixels: exponents of power laws."""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from customcontrast import CustomContrast, Segmenter
from customcontrast.images.loading import load_picture
from customcontrast.segmentation import Segmentation
from tests.benchmarks.generation import EXAMPLE, ROOT, forget
from tests.benchmarks.memory import forget_peak, peak, resident
from tests.benchmarks.report import Options, Report, table

SIZES = {
    "pictures": (1, 2, 4),
    "subjects": (1, 2, 4),
    "references": (1, 2, 4),
    "steps": (5, 10, 20),
    "pixels": (64 * 64, 96 * 96, 128 * 128),
}
NOUNS = ("bear", "cat", "rabbit", "duck")


@functools.cache
def cut(noun: str) -> Segmentation:
    """An example, cut out once."""
    return Segmenter().auto(load_picture(EXAMPLE.with_name(f"{noun}.png")))


def maker(custom: CustomContrast, kind: str, size: int, steps: int) -> Callable[[], object]:
    """A call that makes pictures at one point of a curve; segmentation is not part of it, encoding is."""
    subjects = size if kind == "subjects" else 1
    references = size if kind == "references" else 1
    nouns = NOUNS[:subjects]
    prompt = " and ".join(f"a {noun}" for noun in nouns) + " on the beach"
    options = {
        "num_inference_steps": size if kind == "steps" else steps,
        "num_images": size if kind == "pictures" else 1,
    }
    if kind == "pixels":
        options |= {"height": round(size**0.5), "width": round(size**0.5)}

    chosen = [[cut(NOUNS[(k + r) % 4]) for r in range(references)] for k in range(subjects)]

    def call() -> object:
        forget(custom)
        people = [custom.subject(pictures, noun) for pictures, noun in zip(chosen, nouns, strict=True)]
        return custom.generate(prompt, people, **options)

    return call


def exponent(sizes: tuple[int, ...], values: list[float]) -> tuple[float, float]:
    """Least squares of log value on log size: (exponent, half-width of its 95 % interval)."""
    x, y = np.log(sizes), np.log(values)
    x = x - x.mean()
    rate = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - rate * x
    error = float(np.sqrt((rest**2).sum() / max(1, len(y) - 2) / (x * x).sum()))
    return rate, 1.96 * error


def peak_of(kind: str, size: int, steps: int, device: str) -> float:
    """MB by which a fresh process's peak RSS exceeds that after loading."""
    command = [sys.executable, "-m", "tests.benchmarks.growth", kind, str(size), str(steps), device]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(options: Options) -> Report:
    custom, rows, figures = CustomContrast.load("toyland", device=options.device), [], {}
    rounds = max(2, options.rounds // 2)
    for kind, sizes in SIZES.items():
        calls = [maker(custom, kind, size, options.steps) for size in sizes]
        times: list[list[float]] = [[] for _ in sizes]
        for turn in range(rounds + 1):
            for call, values in zip(calls, times, strict=True):
                start = time.perf_counter()
                call()
                values.extend([time.perf_counter() - start] * (turn > 0))  # the first turn warms up
        seconds = [statistics.median(values) for values in times]
        ends = (sizes[0], sizes[-1])
        peaks = [peak_of(kind, size, options.steps, options.device) for size in ends]
        (rate, error), memory = exponent(sizes, seconds), exponent(ends, [max(p, 0.1) for p in peaks])[0]
        figures[kind] = {"sizes": sizes, "seconds": seconds, "exponent": rate, "error": error, "peak_mb": peaks}
        rows.append((kind, " ".join(map(str, sizes)), " ".join(f"{s:.2f}" for s in seconds), f"{rate:.2f}",
                     f"{error:.2f}", f"{peaks[0]:.0f} → {peaks[1]:.0f}", f"{memory:.2f}"))  # fmt: skip
    head = ("", "sizes", "seconds", "exponent", "± 95 %", "peak MB over loading", "exponent")
    return Report(
        f"Growth: medians of {rounds} rounds, {options.steps} steps unless they grow", table(head, rows), figures
    )


def main(kind: str, size: str, steps: str, device: str) -> None:
    custom = CustomContrast.load("toyland", device=device)
    call = maker(custom, kind, int(size), int(steps))
    maker(custom, "pixels", 64 * 64, 1)()  # what only the first picture allocates
    forget_peak()
    before = resident()
    call()
    print(peak() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
