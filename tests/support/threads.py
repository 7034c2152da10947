"""Several threads that begin together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def at_once(work: Callable[[int], Found], count: int) -> list[Found]:
    """work(0) … work(count − 1), each in a thread of its own, all begun at the same moment."""
    found: dict[int, Found] = {}
    start = threading.Barrier(count)

    def run(i: int) -> None:
        start.wait()
        found[i] = work(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[i] for i in range(count)]
