"""Ranks of a trainer that share every sequence: who gets which batch, and what the loss is.

Ranks that follow each other share: rank r of n is the (r % sp)-th of its group, and its group
the (r // sp)-th of n // sp that have batches of their own. A group's loss is that of all its
tokens, and its backward gives sp times each rank's share; DDP takes the mean over all n ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from memo_train.errors import InvalidInput
from memo_train.parallel import shard_batch


@dataclass(frozen=True, kw_only=True)
class SharedSequences:
    """`sp` ranks for each of `num_groups` batches; the mesh's "sp" is this rank's own group."""

    mesh: DeviceMesh
    sp: int
    num_groups: int
    group: int

    @classmethod
    def of(cls, sp: int, device_type: str) -> SharedSequences:
        """Raises: InvalidInput if the ranks cannot be divided so."""
        num_ranks = dist.get_world_size() if dist.is_initialized() else 1
        if type(sp) is not int or sp < 1 or num_ranks % sp:
            raise InvalidInput(
                f"sp is {sp!r}, of {num_ranks} ranks; it must divide them: start the script with "
                "torchrun --nproc-per-node and a multiple of sp"
            )
        sizes = (num_ranks // sp, sp)
        mesh = init_device_mesh(device_type, sizes, mesh_dim_names=("groups", "sp"))
        return cls(mesh=mesh, sp=sp, num_groups=sizes[0], group=dist.get_rank() // sp)

    def give_batches(self, loader: Any) -> Any:
        """Let a loader that Accelerate has prepared give all ranks of a group the same batches.

        Raises: InvalidInput.
        """
        sampler: Any = getattr(loader, "batch_sampler", None)
        if not hasattr(sampler, "process_index"):
            raise InvalidInput(
                "sp needs a dataset with a length, from which each group of ranks takes its own "
                f"batches; {type(getattr(loader, 'dataset', loader)).__name__} has none"
            )
        sampler.num_processes, sampler.process_index = self.num_groups, self.group
        return loader

    def part_of(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """This rank's tokens of its group's batch."""
        return shard_batch(inputs, self.mesh)

    def check_evaluated(self, num_rows: int, batch_rows: int) -> None:
        """Refuse a last batch that is not full: its mean would not count as its rows do.

        Raises: InvalidInput.
        """
        if num_rows % (batch_rows * self.num_groups):
            raise InvalidInput(
                f"evaluation with sp={self.sp} takes full batches: {num_rows} rows are no multiple "
                f"of {batch_rows * self.num_groups}; set per_device_eval_batch_size so, or give "
                "other rows"
            )
