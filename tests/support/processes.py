"""Several processes on this machine that train together over gloo, and one that is killed."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

# A forked process has everything imported; a GPU's threads would not survive it.
CONTEXT: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")


def _run(act: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, str], failed: Path) -> None:
    """act(*arguments), and the end of this process: 0, act's own exit status, or 1 after a traceback."""
    from accelerate.state import AcceleratorState

    os.environ |= environment
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        act(*arguments)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException:  # noqa: BLE001 - whatever it was, the parent reads it in the file
        failed.write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)  # what the parent registered for its own end is not ours to run


def start(act: Callable[..., None], *arguments: Any, failed: Path, **environment: str) -> BaseProcess:
    """act(*arguments) in a process of its own, which writes its traceback to `failed`."""
    process = CONTEXT.Process(target=_run, args=(act, arguments, environment, failed), daemon=True)
    process.start()
    return process


def together(act: Callable[..., None], *arguments: Any, folder: Path, count: int = 2, limit: float = 60) -> None:
    """act(*arguments) in `count` processes with the environment of torchrun; all must end well within `limit` seconds.

    act: of a module's top level. folder: where tracebacks are written.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    files = [folder / f"process-{rank}.txt" for rank in range(count)]
    processes = [
        start(act, *arguments, failed=file, **common, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank, file in enumerate(files)
    ]
    for process in processes:
        process.join(limit)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    said = "\n".join(file.read_text() for file in files if file.is_file())
    assert not late and all(process.exitcode == 0 for process in processes), said or "a process did not end in time"
