"""What the commands of `python -m train.evaluation` share: options of a base, its adapter, its judges, a report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from customcontrast.folders import make_folder
from customcontrast.specs import WEIGHTS

if TYPE_CHECKING:
    from customcontrast.pipeline import CustomContrast

READERS = "readers.safetensors"  # who finds subjects and knows them again (`train.evaluation.readers`)
ATTRIBUTES = "attributes.safetensors"  # who reads attributes off pictures (`train.evaluation.attribute_reader`)


class OnToyland(Protocol):
    """The settings of a command that looks at a base on Toyland."""

    @property
    def base(self) -> str: ...

    @property
    def world(self) -> str: ...

    @property
    def out(self) -> Path: ...


def judge(base: str, name: str) -> Path:
    """The judge that comes with the package for this base: READERS or ATTRIBUTES of its world, or of Toyland's."""
    own = WEIGHTS / base / name
    return own if own.is_file() else WEIGHTS / "toyland" / name


def with_adapter(base: str, weights: str | None, adapter: Path | None) -> CustomContrast:
    """The base with this adapter, or the one beside its weights. Raises ValueError where there is none."""
    from customcontrast.pipeline import CustomContrast  # judges are trained without it

    custom = CustomContrast.load(base, weights, adapter)
    if custom.adapter is None:
        raise ValueError(f"there is no adapter beside the weights of {base!r}; pass --adapter FILE")
    return custom


def add_toyland_options(
    parser: argparse.ArgumentParser, given: OnToyland, bases: Collection[str] | None = None
) -> None:
    """Add --base, --weights, --world and --out with the defaults of `given`.

    bases: those that may be named; None = any.
    """
    parser.add_argument("--base", default=given.base, choices=bases)
    parser.add_argument("--weights", help="folder of the base; default the shipped one")
    parser.add_argument("--world", default=given.world, help="part of Toyland: small, demo or full")
    parser.add_argument("--out", type=Path, default=given.out)


def write_report(out: Path, table: str, name: str, numbers: Any, indent: int | None = 1) -> str:
    """Write table.md and the numbers as the JSON file `name` into the folder of --out; returns the table."""
    make_folder(out, "--out")
    (out / name).write_text(json.dumps(numbers, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")
    (out / "table.md").write_text(table + "\n", encoding="utf-8")
    return table
