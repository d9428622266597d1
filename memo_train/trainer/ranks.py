"""The processes of one data-parallel run."""

import atexit
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from memo_train.trainer.errors import TrainerError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's number among how many; a run without torchrun is rank 0 of 1."""

    rank: int
    world_size: int

    @staticmethod
    def join() -> "Ranks":
        """Join torchrun's run, over gloo unless the caller has made a process group."""
        if not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) == 1:
                return Ranks(rank=0, world_size=1)
            dist.init_process_group("gloo")
            atexit.register(_leave)
        return Ranks(rank=dist.get_rank(), world_size=dist.get_world_size())

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward averages gradients over all ranks; itself if there is one."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def part_of(self, rows: Tensor) -> Tensor:
        """This rank's contiguous rows of a global batch [rows, tokens]; sizes differ by 1 at most.

        Raises:
            TrainerError: there are fewer rows than ranks.
        """
        if rows.shape[0] < self.world_size:
            raise TrainerError(
                f"the batch has {rows.shape[0]} rows for {self.world_size} ranks; "
                "give at least one row a rank or start fewer ranks"
            )
        return rows.tensor_split(self.world_size)[self.rank]

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        total = value.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def sum_count(self, count: int) -> int:
        """The sum of an integer over all ranks."""
        return int(self.sum(torch.tensor(count, dtype=torch.int64)))


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
