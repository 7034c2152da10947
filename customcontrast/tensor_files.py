"""Safetensors files: written whole or not at all, and readable by whom the umask allows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors

__all__ = ["SafetensorError", "remove_parts", "share_with_umask", "write_tensors"]


def write_tensors(tensors: Mapping, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write tensors (all torch's, or all NumPy's) beside `path`, then rename: what was there stays until then.

    The writer's own mode is for the owner alone; here it is what the umask leaves, as of any file. Returns the path.
    Raises SafetensorError or OSError where it cannot be written; nothing is left behind then.
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part")
    arrays = any(isinstance(value, np.ndarray) for value in tensors.values())
    try:
        (save_arrays if arrays else save_tensors)(dict(tensors), str(part), metadata=dict(metadata or {}))
        share_with_umask(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # there only where something failed
    return path


def remove_parts(*folders: Path, stem: str = "") -> None:
    """Remove what writers that were killed have left; only for files that one run at a time writes.

    stem: of the file, where others in its folder have writers of their own.
    """
    for folder in folders:
        for part in folder.glob(f".{stem}.*.part" if stem else ".*.part"):
            part.unlink(missing_ok=True)


def share_with_umask(*paths: Path) -> None:
    """Give files the mode that a new file has under this process's umask."""
    umask = os.umask(0)
    os.umask(umask)
    for path in paths:
        path.chmod(0o666 & ~umask)
