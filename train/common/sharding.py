"""FSDP2: the adapter's weights and averages, gradients and AdamW moments in slices, one a process.

The frozen base stays whole on every process: nothing of it is optimised, so 16 bits a weight are all it takes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from customcontrast.errors import ConfigError


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Slice the parameters of `model` over all processes, in place; make the optimiser afterwards.

    Raises ConfigError in a single process.
    """
    if not dist.is_initialized():
        raise ConfigError(
            "config: optim.sharding is full, but this is one process; start several with accelerate launch, or set "
            "optim.sharding=none"
        )
    fully_shard(model, mesh=init_device_mesh(accelerator.device.type, (accelerator.num_processes,)))


def whole(tensor: Tensor) -> Tensor:
    """A sliced tensor joined, on every process at once (a collective); any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This process's slices, as plain tensors that share memory with them."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, sliced and placed as `other` is."""
    tensor = tensor.to(other.device)
    return distribute_tensor(tensor, other.device_mesh, other.placements) if isinstance(other, DTensor) else tensor
