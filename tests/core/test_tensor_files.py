"""Safetensors files: whole or not at all, with the mode that the umask leaves."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from customcontrast.tensor_files import write_tensors


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_is_what_the_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        path = write_tensors({"a": torch.ones(3)}, tmp_path / "a.safetensors", {"step": "4"})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"step": "4"}


def test_arrays_too(tmp_path: Path) -> None:
    path = write_tensors({"a": np.arange(4)}, tmp_path / "a.safetensors")
    assert load_file(path)["a"].tolist() == [0, 1, 2, 3]


def test_what_fails_leaves_the_last_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_tensors({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    shared = torch.ones(4)
    with pytest.raises(Exception, match="share memory"):
        write_tensors({"a": shared, "b": shared}, path)
    with pytest.raises((OSError, SafetensorError), match="No such file"):
        write_tensors({"a": shared}, tmp_path / "nowhere" / "b.safetensors")
    assert load_file(path)["a"].tolist() == [1, 1, 1] and list(tmp_path.iterdir()) == [path]
