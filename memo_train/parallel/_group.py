"""The ranks that share sequences, and how they come to one mind before they exchange tensors.

A rank that fails alone would leave the others waiting. So whatever may fail on one rank is checked
by `agree`: every rank then knows what all found, and all of them raise or none does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from memo_train.errors import InvalidInput, MemoError, RanksDiffer

_DIMENSION = "sp"
_WAYS = ("auto", "ulysses", "ring")
_LONGEST_HOLD_S = 0.01


class SequenceGroup:
    """`size` ranks, this one the `rank`-th: it holds the `rank`-th range of each sequence."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    def gather(self, mine: Any) -> list[Any]:
        """What every rank gave, in their order, on every rank. A collective call."""
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, mine, group=self.group)
        return every

    def agree(self, look: Callable[[], tuple[dict[str, Any], Any]]) -> list[Any]:
        """See that all ranks found the same. A collective call.

        look: gives facts by name, which must be equal on all ranks, and what may differ.
        Returns what may differ, of every rank. Raises: what `look` raised on this rank; RanksDiffer
        where it raised on another, or facts differ.
        """
        error: Exception | None = None
        facts: dict[str, Any] = {}
        own: Any = None
        try:
            facts, own = look()
        # Whatever it is: the other ranks wait in the collective below.
        except Exception as raised:
            error = raised
        every = self.gather((facts, own, error and f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        for rank, (_, _, failed) in enumerate(every):
            if failed:
                raise RanksDiffer(f"rank {rank} of {self.size} failed: {failed}")
        for name in dict.fromkeys(name for found, _, _ in every for name in found):
            # A fact that a rank does not give does not count.
            self._check_equal(name, {r: f[name] for r, (f, _, _) in enumerate(every) if name in f})
        return [own for _, own, _ in every]

    def decide(self, make: Callable[[], Any]) -> Any:
        """What `make` gives on rank 0, on every rank. A collective call.

        Raises: what it raises there, on every rank.
        """
        made: list[Any] = [None, None]
        if self.rank == 0:
            try:
                made[0] = make()
            except MemoError as error:
                made[1] = error
            # Others may not survive the way to the other ranks.
            except Exception as error:
                self._broadcast([None, RanksDiffer(f"rank 0 failed: {error}")])
                raise
        self._broadcast(made)
        if made[1] is not None:
            raise made[1]
        return made[0]

    def exchange(
        self,
        rows: torch.Tensor,
        to: list[int] | None = None,
        by: list[int] | None = None,
    ) -> torch.Tensor:
        """Rows for each rank, by their order -> rows from each. A collective call.

        to, by: how many rows go to each rank and come from it; equally many if left out.
        """
        rows = rows.contiguous()
        received = (
            torch.empty_like(rows) if by is None else rows.new_empty(sum(by), *rows.shape[1:])
        )
        dist.all_to_all_single(received, rows, by, to, group=self.group)
        _wait_for_its_thread(rows, received)
        return received

    def _broadcast(self, values: list[Any]) -> None:
        dist.broadcast_object_list(values, group=self.group, group_src=0)

    def _check_equal(self, name: str, values: dict[int, Any]) -> None:
        ranks_of: dict[str, list[int]] = {}
        for rank, value in values.items():
            ranks_of.setdefault(repr(value), []).append(rank)
        if len(ranks_of) == 1:
            return
        shown = "; ".join(
            f"{value} on rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
            for value, ranks in ranks_of.items()
        )
        raise RanksDiffer(
            f"{name} must be the same on all {self.size} ranks that share a sequence: {shown}"
        )


def join(mesh: DeviceMesh, sp: str = "auto") -> SequenceGroup:
    """The group of this rank in `mesh`: its only dimension, or that named "sp".

    sp: how ranks are to share attention, as in `wrap`.
    Raises: InvalidInput.
    """
    if not isinstance(mesh, DeviceMesh):
        raise InvalidInput(
            f"mesh must be a torch.distributed DeviceMesh, got {type(mesh).__name__}; make one "
            'with torch.distributed.init_device_mesh("cpu", (num_ranks,), mesh_dim_names=("sp",))'
        )
    if sp not in _WAYS:
        raise InvalidInput(f"sp must be one of {', '.join(map(repr, _WAYS))}, got {sp!r}")
    names = mesh.mesh_dim_names or ()
    if mesh.ndim > 1 and _DIMENSION not in names:
        raise InvalidInput(
            f'a mesh of {mesh.ndim} dimensions needs one named "sp", got {names or "no names"}'
        )
    return SequenceGroup(mesh.get_group(_DIMENSION if mesh.ndim > 1 else 0))


def _wait_for_its_thread(*tensors: torch.Tensor) -> None:
    """Wait until nobody else holds the tensors of an exchange that is done.

    The thread that gloo ran it on lets go of them a moment after it says so. Memory that is planned
    by recorded lifetimes must not hang on that moment.
    """
    ends_s = time.monotonic() + _LONGEST_HOLD_S
    while any(t._use_count() > 1 for t in tensors) and time.monotonic() < ends_s:  # type: ignore[attr-defined]
        time.sleep(0)
