"""`python -m tests.benchmarks [--only NAME] [--json FILE] [--list]`: a table of ratios, on CPU."""

from __future__ import annotations

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import torch

from tests.benchmarks.generation import contenders
from tests.benchmarks.timing import interleave, summarize

NAMES = ("generation",)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--only", choices=NAMES, default=NAMES[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and stop")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps of a picture")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.list:
        print("\n".join(NAMES))
        return
    machine = f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{options.only}: Toyland, {options.steps} steps, {options.rounds} rounds; {machine}")
    rows = summarize(interleave(contenders(options.steps), options.rounds))
    for row in rows:
        print(f"{row.name:28} {row.seconds:7.3f} s ± {row.iqr:.3f}   {row.ratio:5.2f} × ± {row.ratio_iqr:.2f}")
    if options.json:
        figures = {"machine": machine, "steps": options.steps, "rows": [row.as_dict() for row in rows]}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
