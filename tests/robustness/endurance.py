"""Hundreds of pictures in a row through the real page: does its memory grow, do its temporary files?

    python -m tests.robustness.endurance --count 300 [--clients 20] [--json FILE]

Each picture has another prompt and seed, every third another reference, so that caches turn over; with several clients
each waits for its own picture and asks for the next. They are a process of their own (tests.robustness.visitors), whose
memory is not the server's. Printed: pictures that failed or were another client's; the server's memory (RSS) at the
start, middle and end, its slope by least squares in MB per picture over the second half with a 95 % interval; the
clients' memory at the start and end; and the files of the page's cache before and after its cleaning.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE

import numpy as np
from gradio.route_utils import delete_files_created_by_app

from tests.robustness.page import ROOT, Served, served


def resident(process: int | str = "self") -> float:
    """Memory of a process in MB, by its id."""
    with open(f"/proc/{process}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def files(folder: Path) -> tuple[int, float]:
    """How many files, and their MB."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return len(found), sum(path.stat().st_size for path in found) / 2**20


def slope(values: list[float]) -> tuple[float, float]:
    """Least-squares slope per index, and the half-width of its 95 % interval."""
    y = np.array(values)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    rate = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - rate * x
    error = float(np.sqrt((rest**2).sum() / max(1, len(y) - 2) / (x * x).sum()))
    return rate, 1.96 * error


def measure(page: Served, count: int, warm: int = 20, tell: bool = False, clients: int = 1) -> dict[str, float]:
    """Make `count` pictures after `warm` ones, for so many clients at once; figures as main prints them."""
    begun, failed, mixed, memory, theirs = files(page.cache), [], [], [], []
    visitors = subprocess.Popen(
        [sys.executable, "-m", "tests.robustness.visitors"], cwd=ROOT, text=True, stdin=PIPE, stdout=PIPE
    )
    assert visitors.stdin is not None and visitors.stdout is not None
    told = {"url": page.url, "folder": str(page.folder / "visitors"), "clients": clients, "count": count, "warm": warm}
    with visitors, visitors.stdin as order:
        order.write(json.dumps(told))
        order.close()
        for line in visitors.stdout:
            answer = json.loads(line)
            if answer["error"]:
                failed.append(answer["number"])
                print(f"picture {answer['number']}: {answer['error']}", file=sys.stderr)
            mixed.extend([answer["number"]] if answer["mixed"] else [])
            if answer["number"] < 0:
                continue
            memory.append(resident())
            theirs.append(resident(visitors.pid))
            if tell and len(memory) % 25 == 0:
                print(f"{len(memory):4} pictures: {memory[-1]:7.1f} MB, {files(page.cache)[0]} files", flush=True)
    if len(memory) < count:
        raise RuntimeError(f"endurance: the clients ended after {len(memory)} of {count} pictures: see above.")
    rate, error = slope(memory[len(memory) // 2 :])
    full = files(page.cache)
    delete_files_created_by_app(page.demo, age=None)  # what the page does by itself to files older than an hour
    cleaned = files(page.cache)
    return {
        "pictures": count, "clients": clients, "failed": len(failed), "mixed up": len(mixed),
        "first_mb": memory[0], "middle_mb": memory[len(memory) // 2],
        "last_mb": memory[-1], "most_mb": max(memory), "slope_mb": rate, "slope_error_mb": error,
        "clients_first_mb": theirs[0], "clients_last_mb": theirs[-1],
        "files before": begun[0], "files": full[0], "files_mb": full[1], "files after cleaning": cleaned[0],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.endurance", description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as page:
        figures = measure(page, options.count, tell=True, clients=options.clients)
    for key, value in figures.items():
        print(f"{key:22} {value:10.3f}" if isinstance(value, float) else f"{key:22} {value:10}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(figures["failed"] + figures["mixed up"] > 0)


if __name__ == "__main__":
    sys.exit(main())
