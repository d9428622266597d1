"""Copies of a device while compute or other copies are late: no byte may be another.

Compute is late behind a kernel that spins; copies are late behind large copies of both directions.
In turn a round copies a whole tensor or a tile of it, on the current stream or on a new one. With
several devices in one process, what one of them does must not be noticed by the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch

from memo_train.device import CopyEvent, Rows
from memo_train.selftest._place import Place
from memo_train.selftest._scenario import Figures, NotSupported, Scenario, ScenarioFailed

_SHAPE = (3, 40, 64)
_TILE = slice(10, 20)
_NUM_ROUNDS = 20
_NUM_PREFETCHED = 3
_ROUNDS_TOGETHER = 10
_HOST_BYTES = 1 << 20
"""More than the tensors of a round."""


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
        # A copy: `free` takes each out.
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


Delay = Callable[[], object]


def swap(rnd: Round, delay: Delay) -> bool:
    """To the host and back; compute overwrites the source as soon as it may.

    Whether the copy to the host was late.
    """
    delay()
    source, target = rnd.numbered(), rnd.filled(0)
    expected = source.part.clone()
    host, sent = rnd.send(source)
    late = not sent.done()
    sent.wait()
    source.whole.fill_(-1)
    rnd.fetch(target, host).wait()
    rnd.free(host)
    rnd.check(target, expected)
    return late


def prefetch(rnd: Round, delay: Delay) -> bool:
    """Several come back ahead of their use, the first into memory that compute has just left.

    Whether the copies to the device were late.
    """
    sources = [rnd.numbered(number) for number in range(_NUM_PREFETCHED)]
    expected = [source.part.clone() for source in sources]
    hosts = [rnd.send(source) for source in sources]
    rnd.place.finish()
    delay()
    left = rnd.numbered(_NUM_PREFETCHED)
    left.whole.mul_(-3)
    # Its memory goes to the next tensors, which copies write.
    del left
    targets = [rnd.empty() for _ in sources]
    backs = [rnd.fetch(t, host) for t, (host, _) in zip(targets, hosts, strict=True)]
    late = not backs[-1].done()
    for number, (target, back) in enumerate(zip(targets, backs, strict=True)):
        sources[number].whole.mul_(2)
        back.wait()
        rnd.check(target, expected[number], f", tensor {number}")
        rnd.free(hosts[number][0])
    return late


def release(rnd: Round, delay: Delay) -> bool:
    """Device and host memory go to the next tensor as soon as compute has been told to wait.

    Whether the copy to the host was late.
    """
    target = rnd.filled(0)
    delay()
    source = rnd.numbered()
    expected = source.part.clone()
    host, sent = rnd.send(source)
    late = not sent.done()
    sent.wait()
    del source
    other = rnd.filled(-2)
    rnd.fetch(target, host).wait()
    rnd.free(host)
    _, next_sent = rnd.send(other)
    rnd.check(target, expected)
    next_sent.wait()
    return late


def _rounds(way: Callable[[Round, Delay], bool], place: Place, late: str) -> Figures:
    if late == "compute" and not place.on_gpu:
        raise NotSupported("the CPU computes on the calling thread, which cannot be late")
    num_late = 0
    # As before a planned step: pinning memory in the middle of one would wait for what is late.
    place.device.reserve_host(_HOST_BYTES)
    with place.backlog() as backlog:
        delays: dict[str, Delay] = {
            "compute": place.delay_compute,
            "copies": lambda: (backlog.to_host(), backlog.to_device()),
        }
        for index in range(_NUM_ROUNDS):
            # Tiles alternate by index % 2, so each kind comes on each kind of stream.
            with place.here(own_stream=index % 4 > 1), Round(place, index) as rnd:
                num_late += way(rnd, delays[late])
    figures = {"rounds": _NUM_ROUNDS, "late_rounds": num_late}
    if num_late == 0:
        raise ScenarioFailed(f"{late} was never late, so nothing is shown", figures)
    return figures


COPY_SCENARIOS = tuple(
    Scenario(f"{way.__name__} behind late {late}", partial(_rounds, way, late=late))
    for way in (swap, prefetch, release)
    for late in ("compute", "copies")
)


def side_by_side(places: Sequence[Place]) -> Figures:
    """Swap on all devices at once, compute late where it can be.

    Raises: ScenarioFailed; NotSupported if there is one device only.
    """
    if len(places) == 1:
        raise NotSupported("this process has one device only")
    for index in range(_ROUNDS_TOGETHER):
        _swap_on_all(places, index)
    return {"rounds": _ROUNDS_TOGETHER, "devices": len(places)}


def _swap_on_all(places: Sequence[Place], index: int) -> None:
    with ExitStack() as stack:
        rounds = [stack.enter_context(Round(place, index)) for place in places]
        under_way = [_send(rnd, number) for number, rnd in enumerate(rounds)]
        for rnd, (source, _, target, host, sent) in zip(rounds, under_way, strict=True):
            with rnd.place.here():
                sent.wait()
                source.whole.fill_(-1)
                rnd.fetch(target, host).wait()
        for number, (_, expected, target, _, _) in enumerate(under_way):
            with places[number].here():
                rounds[number].check(target, expected, f", device {number}")


def _send(rnd: Round, number: int) -> tuple[Piece, torch.Tensor, Piece, int, CopyEvent]:
    """Source, its values, room for them, host range, and the copy to it."""
    with rnd.place.here():
        rnd.place.delay_compute()
        source = rnd.numbered(number)
        return source, source.part.clone(), rnd.filled(0), *rnd.send(source)
