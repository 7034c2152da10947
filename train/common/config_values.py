"""From plain values, as YAML and checkpoints hold them, to frozen dataclasses; and their bounds."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from customcontrast.errors import ConfigError


def at_least(where: str, config: Any, **bounds: float) -> None:
    """Raises ConfigError for a field that is below its bound, or not finite."""
    for name, least in bounds.items():
        value = getattr(config, name)
        if not least <= value < math.inf:
            raise ConfigError(f"{where}.{name} is {value}; it must be {least:g} or more")


def one_of(where: str, config: Any, **choices: tuple[str, ...]) -> None:
    """Raises ConfigError for a field that is none of its choices."""
    for name, known in choices.items():
        value = getattr(config, name)
        if value not in known:
            raise ConfigError(f"{where}.{name} is {value!r}; choose {', '.join(known[:-1])} or {known[-1]}")


def number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; a researcher means the number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def build(cls: type, values: Any, where: str) -> Any:
    """A `cls` of plain values. where: its path from the file's top, for errors; "" = the file itself.

    Raises ConfigError for a field that it does not know, or a wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"config: {where or 'the file'} must be a mapping, not {values!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints), key=str)
    if unknown:
        raise ConfigError(f"config: {where + '.' if where else ''}{unknown[0]} is unknown; fields: {', '.join(hints)}")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}".strip(".")) for key, value in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    if typing.get_origin(kind) is dict and not isinstance(value, dict):
        raise ConfigError(f"config: {where} is {value!r}; it must be a mapping")
    if typing.get_origin(kind) is list and not isinstance(value, list):
        raise ConfigError(f"config: {where} is {value!r}; it must be a list")
    value = number(value) if kind is float else value
    if kind is str and isinstance(value, bool):
        value = "yes" if value else "no"  # YAML 1.1 reads no as false; optim.mixed_precision means the word
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind in (int, float, bool, str) and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise ConfigError(f"config: {where} is {value!r}; it must be of type {kind.__name__}")
    return value
