"""From a command line's parsed options to the frozen dataclass that everything below `main` takes."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from train.toyland import World

Config = TypeVar("Config", bound="DataclassInstance")


def from_options(
    kind: type[Config], options: argparse.Namespace, leave: Collection[str] = (), **changes: Any
) -> Config:
    """A `kind` with the values of `options`, but for `changes`; lists become tuples.

    leave: options that are not about `kind`. Raises TypeError for any other that is no field of it.
    """
    given = {name: value for name, value in vars(options).items() if name not in leave} | changes
    strange = sorted(set(given) - {field.name for field in fields(kind)})
    if strange:
        raise TypeError(f"{kind.__name__} has no field {strange[0]!r}; add one, or name it in `leave`")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def minutes(text: str) -> float:
    """What --minutes says. Raises ArgumentTypeError unless it is a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give a number of minutes above 0")
    return value


def world_of(parser: argparse.ArgumentParser, name: str) -> World:
    """The part of Toyland that --world names; ends with one sentence where there is none of that name."""
    from train.toyland import World

    try:
        return World.named(name)
    except ValueError as error:
        parser.error(f"--{error}")
