"""One operation of a schedule: what is done, where, for how long, and with which bytes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from memo_planner.checks import check_int, check_number, check_text
from memo_planner.errors import InvalidInput


class Stream(Enum):
    """What carries out operations one after another, in the order of the schedule."""

    COMPUTE = "compute"
    D2H = "d2h"
    H2D = "h2d"
    COLLECTIVE = "collective"


class Kind(Enum):
    """What an operation does."""

    COMPUTE = "compute"
    TO_HOST = "copy to host"
    TO_DEVICE = "copy to device"
    COLLECTIVE = "collective"
    WAIT = "wait"
    RELEASE = "release"


class Phase(Enum):
    """The part of a step that an operation belongs to."""

    FORWARD = "forward"
    LOSS = "loss"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


STREAM_OF = {
    Kind.COMPUTE: Stream.COMPUTE,
    Kind.WAIT: Stream.COMPUTE,
    Kind.TO_HOST: Stream.D2H,
    Kind.TO_DEVICE: Stream.H2D,
    Kind.COLLECTIVE: Stream.COLLECTIVE,
}
"""The stream of each kind; a release has none."""

_MOVES = (Kind.TO_HOST, Kind.TO_DEVICE, Kind.COLLECTIVE)
_BYTES = (
    "num_bytes",
    "device_alloc_bytes",
    "device_free_bytes",
    "host_alloc_bytes",
    "host_free_bytes",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One entry of a schedule; its id is its position there.

    Only compute takes `seconds`, only copies and collectives move `num_bytes`. A wait holds the
    compute stream until what it waits for is over; a release gives memory back at that moment and
    holds nothing. Bytes are allocated when the operation is issued: on the compute stream at its
    start, elsewhere once all it waits for is over. They are freed at its end.

    Attributes:
        name: for people, e.g. `pre`. block, tile: which, or None if it belongs to none.
        waits_for: ids of the operations that must be over before this one starts.

    Raises: InvalidInput.
    """

    name: str
    kind: Kind
    phase: Phase
    block: int | None = None
    tile: int | None = None
    seconds: float = 0.0
    num_bytes: int = 0
    device_alloc_bytes: int = 0
    device_free_bytes: int = 0
    host_alloc_bytes: int = 0
    host_free_bytes: int = 0
    waits_for: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_text("Operation.name", self.name)
        for name in _BYTES:
            value = getattr(self, name)
            # Most are 0, and there are many operations.
            if type(value) is not int or value != 0:
                check_int(f"Operation.{name}", value, 0)
        for name in ("block", "tile"):
            if getattr(self, name) is not None:
                check_int(f"Operation.{name}", getattr(self, name), 0)
        check_number("Operation.seconds", self.seconds)
        if self.seconds and self.kind is not Kind.COMPUTE:
            raise InvalidInput(f"a {self.kind.value} has {self.seconds} s; only compute takes time")
        if self.num_bytes and self.kind not in _MOVES:
            raise InvalidInput(f"a {self.kind.value} has {self.num_bytes} bytes; it moves none")
        for waited in self.waits_for:
            check_int("Operation.waits_for", waited, 0)

    @property
    def stream(self) -> Stream | None:
        """What carries it out; None for a release."""
        return STREAM_OF.get(self.kind)

    def __str__(self) -> str:
        """`backward block 3 tile 2: copy to device q, k, v 4,096 B, waits for 17`."""
        parts = [self.phase.value]
        parts += [] if self.block is None else [f"block {self.block}"]
        parts += [] if self.tile is None else [f"tile {self.tile}"]
        text = f"{' '.join(parts)}: {self.kind.value} {self.name}"
        text += f" {self.seconds:.4g} s" if self.seconds else ""
        text += f" {self.num_bytes:,} B" if self.num_bytes else ""
        waited = ", ".join(str(one) for one in self.waits_for)
        return text + (f", waits for {waited}" if waited else "")
