"""Training in several processes that torchrun starts: each takes its own part of every batch.

torch's DistributedDataParallel averages gradients. Two layers look at a whole batch at once, batch normalization and
the running max of raw values, and here they see the rows of all processes. So a step is the one that a single process
takes on the union of their rows, but for rounding and for dropout, which every process draws for itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model_export.first_layer import FirstLayer
from model_export.network import Network

T = TypeVar("T")

# How long processes wait for the first one, which does all other steps alone.
_WAIT = timedelta(days=7)


@dataclass(frozen=True)
class Peers:
    """The processes that train together.

    Attributes:
        rank: This one's number, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def shared(self, network: Network) -> nn.Module:
        """What to call instead of the network while training; the network's own weights are what is trained.

        Its batch normalization is replaced, so optimizers want its parameters after this.
        """
        if self.count == 1:
            return network
        if network.norm is not None:
            network.norm = _SharedBatchNorm.of(network.norm)
        network.first.register_forward_pre_hook(_share_running_max)
        # All processes have the same buffers already.
        return DistributedDataParallel(network, forward_sync_buffers=False)

    def mean(self, value: float) -> float:
        """Of a number of each process, the same in all."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item() / self.count

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, in all of them."""
        if self.count == 1:
            return make()
        made: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(made)
        value: T = made[0]
        return value


ALONE = Peers()


def peers() -> Peers:
    """The processes of the group that this one is in; itself alone where there is none."""
    return Peers(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


@contextmanager
def process_group() -> Iterator[Peers]:
    """Joins the group that torchrun describes in the environment; alone where it does not."""
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield ALONE
        return
    dist.init_process_group("gloo", timeout=_WAIT)
    try:
        yield peers()
    finally:
        dist.destroy_process_group()


class _Summed(torch.autograd.Function):
    """The sum of a tensor of each process; a gradient by it is one by each of them."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _summed(x: Tensor) -> Tensor:
    total: Tensor = _Summed.apply(x)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return total


class _SharedBatchNorm(nn.BatchNorm1d):
    """Batch normalization over the rows of all processes, as many in each (torch's SyncBatchNorm wants a GPU)."""

    @staticmethod
    def of(norm: nn.BatchNorm1d) -> _SharedBatchNorm:
        """With the state of a usual one."""
        shared = _SharedBatchNorm(norm.num_features, norm.eps, norm.momentum)
        shared.load_state_dict(norm.state_dict())
        return shared

    def forward(self, x: Tensor) -> Tensor:
        """[n, K] -> [n, K]."""
        if not self.training:
            return super().forward(x)
        rows = len(x) * dist.get_world_size()
        mean = _summed(x.sum(dim=0)) / rows
        centered = x - mean
        variance = _summed((centered**2).sum(dim=0)) / rows
        self._move(mean.detach(), variance.detach() * rows / (rows - 1))
        return centered * torch.rsqrt(variance + self.eps) * self.weight + self.bias

    def _move(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            raise AssertionError("unreachable: made with running statistics")
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def _share_running_max(layer: FirstLayer, inputs: tuple[Any, Tensor]) -> None:
    """Moves the running max by the batch of all processes, before any of its values is scaled."""
    if layer.training:
        largest = inputs[1].nan_to_num(nan=0.0).abs().amax(dim=0)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        torch.maximum(layer.running_max, largest, out=layer.running_max)
