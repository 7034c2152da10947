"""Folders that results are written to, checked before work begins and made with a sentence where that fails."""

from __future__ import annotations

from pathlib import Path

from customcontrast.errors import ConfigError


def check_folder(path: Path, option: str) -> None:
    """Raises ConfigError, which names the option, where `path` cannot be a folder; makes nothing."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ConfigError(f"{option}: {str(there)!r} is a file; give a folder.", option)


def make_folder(path: Path, option: str) -> Path:
    """Make a folder, with those above it. Raises ConfigError, which names the option, where it cannot be made."""
    check_folder(path, option)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or "no folder can be there"
        raise ConfigError(f"{option}: {str(path)!r} cannot be made ({why}); give another folder.", option) from error
    return path
