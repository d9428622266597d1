"""Notes between ranks about steps that failed, so that nobody waits for a rank that will not come.

A rank whose step fails may stay alive: its program catches the error, or takes its time to end.
Others then wait in an exchange that it never enters. So it leaves a note in the store that all
ranks share, and who has waited for a while reads there. Who gave up waiting has left an exchange
open and cannot join another: its group is of no use any more, and it says so to the others.

Only on CPUs, where a wait can be broken off; on GPUs NCCL's watchdog and torchrun see to it.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from memo_train.errors import RanksDiffer

_PATIENCE = timedelta(seconds=1)
"""Between two looks at the notes; exchanges that take no longer never look."""
_SEVERED = timedelta(seconds=3)
"""For a note, once a connection has broken: whoever broke it may be about to write one."""
_GAVE_UP = "gave up"


class FailureNotes:
    """The notes of one process group. are_read: whether waits look at them.

    All models of a group share them, so that a step has one number.
    """

    @classmethod
    def of(cls, group: dist.ProcessGroup) -> FailureNotes:
        """Those that there are, or new ones."""
        notes = _notes.get(group)
        if notes is None:
            notes = _notes[group] = cls(group)
        return notes

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.are_read = dist.get_backend(group) == "gloo"
        self._rank = dist.get_rank(group)
        self._size = dist.get_world_size(group)
        self._name = group.group_name
        self._store: Any = None
        self._step = 0
        self._gave_up: str | None = None

    @property
    def are_open(self) -> bool:
        """Whether there is a place for them."""
        return self._store is not None

    def open(self, run: str) -> None:
        """Keep them under a name that all ranks have, and no run before: torchrun's restarts share
        one store."""
        # No public way leads to it.
        store = dist.distributed_c10d._get_default_store()
        self._store = PrefixStore(f"memo_train/{run}/{self._name}", store)

    def begin_step(self) -> None:
        """Later notes are of the next step. Raises: RanksDiffer if this rank gave up waiting."""
        self._step += 1
        if self._gave_up is not None:
            raise RanksDiffer(
                f"{self._gave_up}. These ranks cannot go on together: end the processes and begin "
                "again from the last checkpoint (torchrun does, with --max-restarts)"
            )

    def write(self, error: BaseException) -> None:
        """Note that the step has failed on this rank, unless because of another."""
        if self.are_open and not isinstance(error, RanksDiffer):
            what = f"rank {self._rank} of {self._size} failed in mid-step: "
            self._store.set(self._failed_key, f"{what}{type(error).__name__}: {error}")

    def wait(self, work: Any) -> None:
        """Until a collective is over. Raises: RanksDiffer if a rank will not take part in it."""
        if not self.are_read:
            work.wait()
            return
        while not self._is_over(work):
            why = self._read()
            if why is not None:
                raise self._give_up(why)

    def _is_over(self, work: Any) -> bool:
        """Wait for a while. Raises: RanksDiffer if the collective has failed."""
        try:
            work.wait(_PATIENCE)
            return True
        except RuntimeError:  # it takes longer, or it failed
            if not work.is_completed():
                return False
        try:
            work.wait()
            return True
        except RuntimeError as error:
            why = self._read_when_severed() or f"a rank that shares sequences has left: {error}"
            raise self._give_up(why) from error

    def _give_up(self, why: str) -> RanksDiffer:
        self._gave_up = why
        if self.are_open:
            self._store.set(_GAVE_UP, why)
        return RanksDiffer(why)

    def _read_when_severed(self) -> str | None:
        if not self.are_open:
            return None
        # The store raises what it likes where nobody writes in time.
        with suppress(RuntimeError):
            self._store.wait([self._failed_key], _SEVERED)
        return self._read()

    def _read(self) -> str | None:
        for key in (self._failed_key, _GAVE_UP):
            if self.are_open and self._store.check([key]):
                return str(self._store.get(key).decode())
        return None

    @property
    def _failed_key(self) -> str:
        return f"step {self._step}"


_notes: WeakKeyDictionary[dist.ProcessGroup, FailureNotes] = WeakKeyDictionary()
