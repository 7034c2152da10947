"""`python -m tests.benchmarks [--only NAME …] [--json FILE] [--list]`: ratios side by side, machine, targets."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
from pathlib import Path

import torch

from tests.benchmarks.report import Options, machine

NAMES = (
    "generation",
    "breakdown",
    "growth",
    "training",
    "training_step",
    "page",
    "sd15",
)  # modules with run(Options) -> Report


def present() -> list[str]:
    """The benchmarks that are here."""
    return [name for name in NAMES if importlib.util.find_spec(f"tests.benchmarks.{name}")]


def main() -> None:
    default = Options()
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", choices=present(), action="append", help="this one (may be repeated)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and stop")
    parser.add_argument("--steps", type=int, default=default.steps, help="denoising steps of a picture")
    parser.add_argument("--rounds", type=int, default=default.rounds)
    parser.add_argument("--minutes", type=float, default=default.minutes, help="of each training run")
    parser.add_argument("--pictures", type=Path, help="folder for plots")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if given.list:
        print("\n".join(present()))
        return
    options = Options(given.steps, given.rounds, given.minutes, given.pictures, given.device)
    where = machine()
    print(f"{where}\n{options.steps} denoising steps, {options.rounds} rounds")
    reports = {}
    for name in given.only or present():
        report = importlib.import_module(f"tests.benchmarks.{name}").run(options)
        report.print()
        reports[name] = report.as_dict()
        if given.json:
            figures = {"machine": where, "steps": options.steps, "rounds": options.rounds, "reports": reports}
            given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
