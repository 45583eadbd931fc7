"""The processes of one training run, and the communication between them."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def least(self, value: int) -> int:
        """Return the minimum over all ranks' values."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value)
        distributed.all_reduce(tensor, distributed.ReduceOp.MIN)
        return int(tensor)

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors by their sums over all ranks, in a single all-reduce."""
        if self.world == 1:
            return
        held = list(tensors)
        flat = torch.cat([tensor.reshape(-1).float() for tensor in held])
        distributed.all_reduce(flat)
        for tensor, part in zip(held, torch.split(flat, [tensor.numel() for tensor in held]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def share(self, value: object) -> object:
        """Return the value of rank 0."""
        if self.world == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]


def join(device: str, timeout_seconds: float = 1800) -> Ranks:
    """Join the run given by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; if unset, run alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    return Ranks(distributed.get_rank(), world)


def leave(ranks: Ranks) -> None:
    """Leave the run."""
    if ranks.world > 1:
        distributed.destroy_process_group()
