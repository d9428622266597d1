"""Builds a schedule in the order in which a program issues its operations."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from memo_planner.schedule._budget import NO_LIMIT_BYTES
from memo_planner.schedule._schedule import STREAM_OF, Kind, Operation, Phase, Stream


class ScheduleBuilder:
    """Collects operations; every method but `at` returns the id of what it added.

    Copies and collectives are issued by the compute stream, so they wait for its last operation.
    At most so many bytes as `allow_in_flight` said may be on their way to the host when compute
    goes on; beyond that the compute stream waits for the oldest copies.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._in_flight_limit_bytes = NO_LIMIT_BYTES
        self._where: tuple[Phase, int | None, int | None] = (Phase.FORWARD, None, None)
        self._last_compute: tuple[int, ...] = ()
        self._in_flight: deque[tuple[int, int]] = deque()
        self._in_flight_bytes = 0
        self._passed: dict[Stream, int] = {}

    def at(self, phase: Phase, block: int | None = None, tile: int | None = None) -> None:
        """What is added from now on belongs there."""
        self._where = (phase, block, tile)

    def compute(
        self, name: str, seconds: float, *, alloc_bytes: int = 0, free_bytes: int = 0
    ) -> int:
        """Computation; device bytes allocated at its start and freed at its end."""
        return self._add(
            name,
            Kind.COMPUTE,
            seconds=seconds,
            device_alloc_bytes=alloc_bytes,
            device_free_bytes=free_bytes,
        )

    def to_host(self, name: str, num_bytes: int, *, frees_source: bool = True) -> int:
        """A copy to the host; waits for older ones where too many bytes are under way."""
        sent = self._add(
            name,
            Kind.TO_HOST,
            num_bytes=num_bytes,
            device_free_bytes=num_bytes if frees_source else 0,
            host_alloc_bytes=num_bytes,
            waits_for=self._last_compute,
        )
        self._in_flight.append((sent, num_bytes))
        self._in_flight_bytes += num_bytes
        self.allow_in_flight(self._in_flight_limit_bytes)
        return sent

    def allow_in_flight(self, limit_bytes: int) -> None:
        """From now on at most so many bytes may be under way; waits for the oldest beyond."""
        self._in_flight_limit_bytes = limit_bytes
        finished = []
        while self._in_flight and self._in_flight_bytes > limit_bytes:
            oldest, oldest_bytes = self._in_flight.popleft()
            self._in_flight_bytes -= oldest_bytes
            finished.append(oldest)
        # Copies to the host end in order, so the last one stands for all.
        self.wait("room for copies", finished[-1:])

    def to_device(self, name: str, num_bytes: int, sent: int) -> int:
        """A copy back of what `sent` took to the host; compute waits until that is there."""
        self.wait(f"{name} on the host", (sent,))
        return self._add(
            name,
            Kind.TO_DEVICE,
            num_bytes=num_bytes,
            device_alloc_bytes=num_bytes,
            host_free_bytes=num_bytes,
            waits_for=(sent, *self._last_compute),
        )

    def collective(self, name: str, num_bytes: int) -> int:
        """An exchange between ranks; `num_bytes` is what this rank sends."""
        return self._add(name, Kind.COLLECTIVE, num_bytes=num_bytes, waits_for=self._last_compute)

    def wait(self, name: str, waits_for: Iterable[int]) -> None:
        """Hold compute until those are over; nothing is added where it has waited already."""
        # A stream works in order: who has waited for one operation has for all before it.
        new = [one for one in waits_for if one > self._passed.get(self._stream(one), -1)]
        for one in new:
            self._passed[self._stream(one)] = one
        if new:
            self._add(name, Kind.WAIT, waits_for=tuple(new))

    def release(self, name: str, device_bytes: int, waits_for: Iterable[int]) -> int:
        """Free device bytes as soon as those are over, without holding compute."""
        return self._add(
            name, Kind.RELEASE, device_free_bytes=device_bytes, waits_for=tuple(waits_for)
        )

    @property
    def last_compute(self) -> int:
        """The id of the compute stream's last operation."""
        return self._last_compute[0]

    def _stream(self, index: int) -> Stream:
        stream = self.operations[index].stream
        assert stream is not None, f"operation {index} is a release; there is nothing to wait for"
        return stream

    def _add(self, name: str, kind: Kind, **figures: object) -> int:
        phase, block, tile = self._where
        index = len(self.operations)
        self.operations.append(
            Operation(name=name, kind=kind, phase=phase, block=block, tile=tile, **figures)  # type: ignore[arg-type]
        )
        if STREAM_OF.get(kind) is Stream.COMPUTE:
            self._last_compute = (index,)
        return index


@dataclass(kw_only=True)
class Swapped:
    """A tensor on the host: `fetch` starts its way back once, `take` also waits for it."""

    name: str
    num_bytes: int
    sent: int
    fetched: int | None = None
    taken: bool = False

    def fetch(self, build: ScheduleBuilder) -> None:
        """Allocate it on the device and start the copy back, unless that has been done."""
        if self.fetched is None:
            self.fetched = build.to_device(self.name, self.num_bytes, self.sent)

    def take(self, build: ScheduleBuilder) -> None:
        """Have it on the device when compute goes on."""
        self.fetch(build)
        assert self.fetched is not None
        build.wait(self.name, (self.fetched,))
        self.taken = True


@dataclass(kw_only=True)
class BlockOnHost:
    """Everything of one block that forward sent to the host; None or absent: not swapped."""

    x: Swapped | None = None
    o: Swapped | None = None
    attention: Swapped | None = None
    qkv: dict[int, Swapped] = field(default_factory=dict)
    pre: dict[int, Swapped] = field(default_factory=dict)
    post: dict[int, Swapped] = field(default_factory=dict)

    def of_tile(self, tile: int) -> list[Swapped]:
        """What post's backward and attention's need of a tile."""
        found = (self.qkv.get(tile), self.post.get(tile))
        return [one for one in found if one is not None]

    def prefetch(self, build: ScheduleBuilder, limit_bytes: int, num_tiles: int) -> None:
        """Start copies back in the order of backward: x, o, tiles from the last; pre stays."""
        wholes = [[one] for one in (self.x, self.o) if one is not None]
        for group in (*wholes, *(self.of_tile(t) for t in reversed(range(num_tiles)))):
            limit_bytes -= sum(one.num_bytes for one in group if not one.taken)
            if limit_bytes < 0:
                return
            for one in group:
                one.fetch(build)


def take(build: ScheduleBuilder, one: Swapped | None) -> None:
    """Have a tensor on the device, if it left at all."""
    if one is not None:
        one.take(build)


def fetch(build: ScheduleBuilder, one: Swapped | None) -> None:
    """Start a tensor's way back, if it left at all."""
    if one is not None:
        one.fetch(build)


def send(build: ScheduleBuilder, name: str, num_bytes: int) -> Swapped | None:
    """Send a tensor to the host, and free it there; None if it is empty."""
    if not num_bytes:
        return None
    return Swapped(name=name, num_bytes=num_bytes, sent=build.to_host(name, num_bytes))
