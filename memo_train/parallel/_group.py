"""The ranks that share sequences, and how they come to one mind before they exchange tensors.

A rank that fails alone would leave the others waiting. So whatever may fail on one rank is checked
by `agree`: every rank then knows what all found, and all of them raise or none does.
"""

from __future__ import annotations

import pickle
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from memo_train.errors import InvalidInput, MemoError, RanksDiffer
from memo_train.parallel._notes import FailureNotes

_DIMENSIONS = ("cp", "sp")
"""Names of the dimensions of ranks that share sequences, as Accelerate has them.

Where both are wide, keys and values go around "cp", and ranks of "sp" exchange tokens for heads.
"""
_WAYS = ("auto", "ulysses", "ring")
_LONGEST_HOLD_S = 0.1
"""On a machine with more ranks than cores, gloo's thread may have to wait for its turn."""


class Exchanging(Protocol):
    """`size` ranks, this one the `rank`-th, that hand rows of tensors to each other."""

    size: int
    rank: int

    def exchange(
        self, rows: torch.Tensor, to: list[int] | None = None, by: list[int] | None = None
    ) -> torch.Tensor:
        """As `SequenceGroup.exchange`."""


class SequenceGroup:
    """`size` ranks, this one the `rank`-th: it holds the `rank`-th range of each sequence.

    inside: how many that follow each other are to exchange tokens for heads, while keys and values
    go around; None leaves it open.
    """

    def __init__(self, group: dist.ProcessGroup, inside: int | None = None) -> None:
        self.group = group
        self.inside = inside
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self._notes = FailureNotes.of(group)

    def begin_step(self) -> None:
        """What is noted from now on is of the next step, on all ranks alike. A collective call.

        Raises: RanksDiffer if this rank has given up waiting in an earlier one.
        """
        self._notes.begin_step()
        if not self._notes.are_open:
            self._notes.open(self.gather(uuid.uuid4().hex)[0])

    def note_failure(self, error: BaseException) -> None:
        """Let ranks that wait in an exchange of this step know that it has failed on this one."""
        self._notes.write(error)

    def gather(self, mine: Any) -> list[Any]:
        """What every rank gave, in their order, on every rank. A collective call."""
        every: list[Any] = [None] * self.size
        if not self._notes.are_read:
            dist.all_gather_object(every, mine, group=self.group)
            return every
        text = torch.frombuffer(bytearray(pickle.dumps(mine)), dtype=torch.uint8)
        lengths = [int(n) for n in self.gather_tensors(torch.tensor(len(text)))]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(text)] = text
        found = self.gather_tensors(padded)
        return [pickle.loads(t[:n].numpy().tobytes()) for t, n in zip(found, lengths, strict=True)]

    def gather_tensors(self, mine: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all ranks, equal in shape and dtype, in their order. A collective call."""
        every = [torch.empty_like(mine) for _ in range(self.size)]
        self._notes.wait(dist.all_gather(every, mine, group=self.group, async_op=True))
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
        self._notes.wait(
            dist.all_to_all_single(received, rows, by, to, group=self.group, async_op=True)
        )
        _wait_for_its_thread(rows, received)
        return received

    def add(self, total: torch.Tensor) -> None:
        """Put the sum over all ranks in the place of each one's `total`. A collective call."""
        self._notes.wait(dist.all_reduce(total, group=self.group, async_op=True))

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


class Rehearsal(SequenceGroup):
    """This rank of `group` without the others: it is handed back what it gives them.

    So whatever attends with it takes the bytes and does the work of a rank, alone, on numbers that
    mean nothing. sent_bytes: handed to others so far.
    """

    def __init__(self, group: SequenceGroup) -> None:
        super().__init__(group.group, group.inside)
        self.sent_bytes = 0

    def exchange(
        self,
        rows: torch.Tensor,
        to: list[int] | None = None,
        by: list[int] | None = None,
    ) -> torch.Tensor:
        """As many rows as would come; no collective call."""
        rows = rows.contiguous()
        to = [len(rows) // self.size] * self.size if to is None else to
        received = rows.new_empty(len(rows) if by is None else sum(by), *rows.shape[1:])
        assert len(received) == len(rows), "every rank gets as much as it gives"
        received.copy_(rows)
        self.sent_bytes += (sum(to) - to[self.rank]) * rows[:1].nbytes
        return received

    def add(self, total: torch.Tensor) -> None:
        """Nothing is added; no collective call."""

    def note_failure(self, error: BaseException) -> None:
        """Nobody waits for it."""


class Some:
    """Some ranks of a group, in its order. Their exchanges are its own: it has but one to wait for.

    All ranks of the group call alike, in as many parts as there are.
    """

    def __init__(self, whole: SequenceGroup, ranks: Sequence[int]) -> None:
        self._whole, self._ranks = whole, ranks
        self.size, self.rank = len(ranks), ranks.index(whole.rank)

    def exchange(
        self, rows: torch.Tensor, to: list[int] | None = None, by: list[int] | None = None
    ) -> torch.Tensor:
        """As `SequenceGroup.exchange`."""
        equal = [len(rows) // self.size] * self.size
        return self._whole.exchange(rows, self._of_all(to or equal), self._of_all(by or equal))

    def _of_all(self, counts: list[int]) -> list[int]:
        every = [0] * self._whole.size
        for rank, count in zip(self._ranks, counts, strict=True):
            every[rank] = count
        return every


def join(mesh: DeviceMesh, sp: str = "auto") -> SequenceGroup:
    """The group of this rank in `mesh`: its only dimension, or that named "sp" or "cp", or both.

    sp: how ranks are to share attention, as in `wrap`. A collective call the first time that both
    dimensions are wide. Raises: InvalidInput.
    """
    if not isinstance(mesh, DeviceMesh):
        raise InvalidInput(
            f"mesh must be a torch.distributed DeviceMesh, got {type(mesh).__name__}; make one "
            'with torch.distributed.init_device_mesh("cpu", (num_ranks,), mesh_dim_names=("sp",))'
        )
    if sp not in _WAYS:
        raise InvalidInput(f"sp must be one of {', '.join(map(repr, _WAYS))}, got {sp!r}")
    names = mesh.mesh_dim_names or ()
    found = [name for name in names if name in _DIMENSIONS]
    if mesh.ndim > 1 and not found:
        raise InvalidInput(
            f'a mesh of {mesh.ndim} dimensions needs one named "sp" (or "cp"), got '
            f"{names or 'no names'}"
        )
    wide = [name for name in found if mesh[name].size() > 1]
    if len(wide) > 1:
        return _both(mesh, tuple(wide), sp)
    return SequenceGroup(mesh.get_group((wide or found)[0] if mesh.ndim > 1 else 0))


def _both(mesh: DeviceMesh, names: tuple[str, ...], sp: str) -> SequenceGroup:
    """The ranks of two dimensions as one group. Raises: InvalidInput."""
    sizes = " and ".join(f"{mesh[name].size()} ranks in {name!r}" for name in names)
    if names != _DIMENSIONS:
        raise InvalidInput(
            f'the mesh has {sizes}; name "cp" before "sp", so that ranks which exchange tokens '
            "for heads follow each other"
        )
    if sp != "auto":
        raise InvalidInput(
            f'the mesh has {sizes}, which is a ring of all-to-alls; give sp="auto", or one '
            f"dimension of ranks for sp={sp!r}"
        )
    flat = mesh[names]._flatten()  # one group for each mesh: it is made once
    return SequenceGroup(flat.get_group(), inside=mesh[names[-1]].size())


def _wait_for_its_thread(*tensors: torch.Tensor) -> None:
    """Wait until nobody else holds the tensors of an exchange that is done.

    The thread that gloo ran it on lets go of them a moment after it says so. Memory that is planned
    by recorded lifetimes must not hang on that moment.
    """
    ends_s = time.monotonic() + _LONGEST_HOLD_S
    while any(t._use_count() > 1 for t in tensors) and time.monotonic() < ends_s:  # type: ignore[attr-defined]
        time.sleep(0)
