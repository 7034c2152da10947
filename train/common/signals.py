"""Graceful shutdown of a training run: SIGTERM and Ctrl-C end it after the step, with a checkpoint."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None  # as `signal.signal` has it


class Stopped(Exception):
    """Raised where a run that others depend on was requested to stop; its checkpoint is written."""


class StopSignal:
    """Turns SIGTERM or Ctrl-C into a request to stop at the end of the step; a second one interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Handler] = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # not in the main thread: no signal arrives here
                self._before[number] = signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
