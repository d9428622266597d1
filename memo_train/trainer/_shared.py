"""Ranks of a trainer that share every sequence: who gets which batch, and what the loss is.

Ranks that follow each other share: rank r of n is the (r % sp)-th of its group, and its group
the (r // sp)-th of n // sp that have batches of their own. A wrapped model's own loss is that of
all tokens of its group, and its backward gives sp times each rank's share; DDP and FSDP2 take the
mean over all n ranks. TRL's SFTTrainer sums the log-probabilities of a rank's own labels instead,
and divides by the labels of all: of that the mean over ranks is right, values and gradients, where
labels that count for sp ranks each are divided by sp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from memo_train.errors import InvalidInput, UnsupportedModel
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
        """This rank's tokens of its group's batch. Raises: InvalidInput."""
        # Which document a token is of, for recurrences alone, and those ranks do not share.
        batch = {name: value for name, value in inputs.items() if name != "seq_idx"}
        return shard_batch(batch, self.mesh)

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


_OF_MODEL = ("transformers.trainer", "Trainer.compute_loss")
_OF_OWN_LABELS = ("trl.trainer.sft_trainer", "SFTTrainer.compute_loss")


class SharedLoss:
    """`compute_loss` of a trainer whose ranks share sequences, on this rank's tokens."""

    def __init__(self, trainer: Any, compute_loss: Callable[..., Any]) -> None:
        """compute_loss: the trainer's own, a bound method. Raises: UnsupportedModel."""
        self._trainer, self._compute_loss = trainer, compute_loss
        self._sums = _place(compute_loss) == _OF_OWN_LABELS
        if not self._sums and _place(compute_loss) != _OF_MODEL:
            raise UnsupportedModel(
                f"sp={trainer.memo.sp} is for memo_train.Trainer and memo_train.trl.SFTTrainer: "
                f"{type(trainer).__name__} computes its loss from tokens that other ranks would "
                "have; train it with data parallel ranks"
            )

    def __call__(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `compute_loss`; inputs are the group's. Raises: InvalidInput, UnsupportedModel."""
        shared = self._trainer._shared
        part = shared.part_of(inputs)
        if self._sums:
            return self._of_own_labels(model, inputs, part, *args, **kwargs)
        found = self._compute_loss(model, part, *args, **kwargs)
        loss, *rest = found if isinstance(found, tuple) else (found,)
        if kwargs.get("num_items_in_batch") is not None:
            # Transformers has divided the labels by sp, as if the loss were of a rank's own.
            loss = loss / shared.sp
        return (loss, *rest) if rest else loss

    def _of_own_labels(self, model: Any, inputs: Any, part: Any, *args: Any, **kwargs: Any) -> Any:
        trainer, sp = self._trainer, self._trainer._shared.sp
        if trainer.aux_loss_enabled:
            raise UnsupportedModel(
                f"sp={sp}: the balance of experts that router_aux_loss_coef asks for is one of "
                "all tokens, and a rank has its own; set router_aux_loss_coef to 0"
            )
        if kwargs.get("num_items_in_batch") is None:
            num_labels = _num_labels(inputs) / sp
            if trainer.args.average_tokens_across_devices:
                num_labels = num_labels * trainer.args.world_size  # by which it will multiply
            kwargs["num_items_in_batch"] = num_labels
        before = trainer._total_train_tokens
        found = self._compute_loss(model, part, *args, **kwargs)
        if trainer.model.training:
            # Not as it counts: a mask is of all tokens of the group, positions are a rank's.
            mask, ids = inputs.get("attention_mask"), inputs["input_ids"]
            own = ids.new_tensor(ids.numel()) if mask is None else mask.sum()
            total = int(trainer.accelerator.gather(own).sum()) // sp
            trainer._total_train_tokens = before + total
            trainer._metrics["train"]["num_tokens"] = [before + total]
        return found


def _place(method: Callable[..., Any]) -> tuple[str, str]:
    """The module and the class in which it is written."""
    return method.__module__, method.__qualname__


def _num_labels(inputs: dict[str, Any]) -> torch.Tensor:
    """How many labels of a batch count."""
    shifted = inputs.get("shift_labels")
    labels: torch.Tensor = inputs["labels"][:, 1:] if shifted is None else shifted
    return labels.ne(-100).sum()
