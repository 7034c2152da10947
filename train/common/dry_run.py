"""How much memory a computation would take, found by running it on the meta device: shapes, no numbers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class DryRun(TorchDispatchMode):
    """Bytes of all tensors on the meta device that are alive at once, and the highest that they came to.

    Counted are the tensors that operators make while the mode is on, each from its making until its last reference is
    gone, as an allocator without fragments would see it; weights and inputs made before are not counted. In-place
    results and views take nothing. convolution_copies: count what a CPU's convolution (oneDNN) needs beside its result:
    its weights and its input once more, in its own order. (What cuDNN takes as workspace is not known beforehand.)

        with DryRun() as dry:
            with dry.phase("UNet"):
                unet(...)
        dry.peaks["UNet"]
    """

    def __init__(self, convolution_copies: bool = False) -> None:
        super().__init__()
        self.copies = convolution_copies
        self.now = 0  # bytes alive
        self.highest = 0  # bytes alive at once in the present phase
        self.peaks: dict[str, int] = {}  # of each phase
        self.shapes: set[tuple[int, ...]] = set()  # of everything made
        self._alive: dict[int, weakref.ref] = {}
        self._fused = _FusedAttention()

    def __enter__(self) -> DryRun:
        self._fused.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fused.__exit__(*error)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note the most alive at once inside as `peaks[name]`; of several phases of one name, the highest."""
        self.highest = self.now
        yield
        self.peaks[name] = max(self.highest, self.peaks.get(name, 0))

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {_place(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.device.type == "meta" and _place(x) not in given:
                self._hold(x)
        if self.copies and func is torch.ops.aten.convolution.default:
            self.highest = max(self.highest, self.now + sum(x.nbytes for x in args[:2]))
        return out

    def _hold(self, x: Tensor) -> None:
        storage, place = x.untyped_storage(), _place(x)
        self.shapes.add(tuple(x.shape))
        if place in self._alive:
            return
        size = storage.nbytes()

        def gone(_: weakref.ref) -> None:
            del self._alive[place]
            self.now -= size

        self._alive[place] = weakref.ref(storage, gone)
        self.now += size
        self.highest = max(self.highest, self.now)


def _place(x: Tensor) -> int:
    """Which memory a tensor lies in."""
    return x.untyped_storage()._cdata


class _FusedAttention(TorchFunctionMode):
    """Attention as the fused kernels of CPU and GPU do it: the result and a log-sum for each row, no probabilities.

    (On the meta device torch would write out the probabilities, which at 1024² are gigabytes.)
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        Q, _, V = args[:3]
        if Q.device.type != "meta":
            return func(*args, **(kwargs or {}))
        sums = Q.new_empty(Q.shape[:-1], dtype=torch.float32)
        out = Q.new_empty((*Q.shape[:-1], V.shape[-1]))
        del sums
        return out
