"""What one block has on the host, and how it comes back."""

from __future__ import annotations

from dataclasses import dataclass, field

from memo_planner.schedule.builder import ScheduleBuilder


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
