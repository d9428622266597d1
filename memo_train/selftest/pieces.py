"""A tensor of numbers, whole or a tile of it, on its way to the host and back."""

from __future__ import annotations

from typing import NamedTuple

import torch

from memo_train.device.rows import Rows
from memo_train.device.transfers import CopyEvent
from memo_train.selftest.place import Place
from memo_train.selftest.scenario import ScenarioFailed

SHAPE = (3, 40, 64)
_TILE = slice(10, 20)


class Piece(NamedTuple):
    """A tensor and the part of it that is copied: all of it, or a tile."""

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


def piece_of(whole: torch.Tensor, index: int) -> Piece:
    """`whole` [batch, tokens, hidden] in even rounds, a tile of it in odd ones."""
    return Piece(whole, whole[:, _TILE] if index % 2 else whole)


def numbered(place: Place, index: int) -> Piece:
    """Values that no other index has, int64."""
    numel = torch.Size(SHAPE).numel()
    values = torch.arange(index * numel, (index + 1) * numel, device=place.torch_device)
    return piece_of(values.reshape(SHAPE), index)


def zeros(place: Place, index: int) -> Piece:
    """Room for what comes back."""
    return piece_of(torch.zeros(SHAPE, dtype=torch.int64, device=place.torch_device), index)


def send(place: Place, piece: Piece) -> tuple[int, CopyEvent]:
    """Start a copy to a new host range: its address, and the event."""
    device, rows = place.device, piece.rows()
    host = device.host_alloc(piece.part.nbytes)
    return host, device.copy_rows_to_host(host, piece.part.data_ptr(), rows)


def fetch(place: Place, piece: Piece, host: int) -> CopyEvent:
    """Start the copy of a host range to where `piece` is."""
    return place.device.copy_rows_to_device(piece.part.data_ptr(), host, piece.rows())


def check(piece: Piece, expected: torch.Tensor, what: str) -> None:
    """Raises: ScenarioFailed, with `what`, unless the part that was copied is `expected`."""
    if torch.equal(piece.part, expected):
        return
    num_wrong = int((piece.part != expected).sum())
    raise ScenarioFailed(f"{what}: {num_wrong} of {expected.numel()} values are not what was sent")
