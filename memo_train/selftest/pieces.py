"""Tensors of numbers, whole or a tile of them, on their way to the host and back."""

from __future__ import annotations

from typing import NamedTuple

import torch

from memo_train.device.device import CopyEvent
from memo_train.device.rows import Rows
from memo_train.selftest.place import Place
from memo_train.selftest.scenario import ScenarioFailed

_SHAPE = (3, 40, 64)
_TILE = slice(10, 20)


class Piece(NamedTuple):
    """A tensor [batch, tokens, hidden] int64, and the part of it that is copied: all, or a tile."""

    whole: torch.Tensor
    part: torch.Tensor

    def rows(self) -> Rows:
        """The shape of its copy."""
        part = self.part
        if part.is_contiguous():
            return Rows.one(part.nbytes)
        row_bytes, pitch = part[0].nbytes, self.whole[0].nbytes
        return Rows(
            rows=len(part),
            row_bytes=row_bytes,
            device_pitch_bytes=pitch,
            host_pitch_bytes=row_bytes,
        )


class Round:
    """Round `index` of a scenario on a place: whole tensors if it is even, tiles if it is odd.

    Use as a context manager: whatever happens, its host memory is given back in the end.
    """

    def __init__(self, place: Place, index: int) -> None:
        self.place = place
        self.index = index
        self._hosts: set[int] = set()

    def __enter__(self) -> Round:
        return self

    def __exit__(self, *error: object) -> None:
        if self._hosts:
            self.place.finish()
        for host in tuple(self._hosts):
            self.free(host)

    def numbered(self, number: int = 0) -> Piece:
        """Values that no other round has and no other `number`, which is below 1,000."""
        first = (1000 * self.index + number) * torch.Size(_SHAPE).numel()
        values = torch.arange(torch.Size(_SHAPE).numel(), device=self.place.torch_device)
        return self._piece((values + first).reshape(_SHAPE))

    def filled(self, value: int) -> Piece:
        """One value everywhere."""
        device = self.place.torch_device
        return self._piece(torch.full(_SHAPE, value, dtype=torch.int64, device=device))

    def empty(self) -> Piece:
        """Memory as it was left."""
        device = self.place.torch_device
        return self._piece(torch.empty(_SHAPE, dtype=torch.int64, device=device))

    def send(self, piece: Piece) -> tuple[int, CopyEvent]:
        """Start a copy to a new host range: its address, and the event."""
        device = self.place.device
        host = device.host_alloc(piece.part.nbytes)
        self._hosts.add(host)
        return host, device.copy_rows_to_host(host, piece.part.data_ptr(), piece.rows())

    def fetch(self, piece: Piece, host: int) -> CopyEvent:
        """Start the copy of a host range to where `piece` is."""
        return self.place.device.copy_rows_to_device(piece.part.data_ptr(), host, piece.rows())

    def free(self, host: int) -> None:
        """Give a host range back."""
        self.place.device.host_free(host)
        self._hosts.discard(host)

    def check(self, piece: Piece, expected: torch.Tensor, what: str = "") -> None:
        """Raises: ScenarioFailed, with the round and `what`, unless the part is `expected`."""
        if torch.equal(piece.part, expected):
            return
        num_wrong = int((piece.part != expected).sum())
        raise ScenarioFailed(
            f"round {self.index}{what}: {num_wrong} of {expected.numel()} values are not what was "
            "sent"
        )

    def _piece(self, whole: torch.Tensor) -> Piece:
        return Piece(whole, whole[:, _TILE] if self.index % 2 else whole)
