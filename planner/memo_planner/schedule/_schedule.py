"""A schedule: a step as an ordered list of operations, and its file.

An operation says what is done, where, for how long, and with which bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from memo_planner.checks import check_int, check_number, check_text
from memo_planner.codec import decode, encode, read_document, write_document
from memo_planner.errors import InvalidInput, PlanFileError

_BYTES = (
    "num_bytes",
    "device_alloc_bytes",
    "device_free_bytes",
    "host_alloc_bytes",
    "host_free_bytes",
)
FORMAT = "memo-schedule"
VERSION = 1
# The clock adds them up in int64.
_LARGEST_TOTAL_BYTES = 2**62
_MOST_FLOPS = 2.0**120


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


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One rank's step. All ranks run the same; a stream runs its operations in list order.

    Attributes:
        strategy: how the step handles activations, e.g. `tiles`. model: name for people.
        tokens: length of the rank's sequence. state_bytes: on the device all the time.
        flops: floating-point operations of the model in this step on this rank; None: unknown.
        inputs_hash: sha256, hexadecimal, of what the schedule was made from.

    Raises: InvalidInput if an operation waits for itself or for one that does not exist, or if
        what is allocated is not all freed.
    """

    version: int
    strategy: str
    model: str
    tokens: int
    state_bytes: int
    flops: float | None
    inputs_hash: str
    operations: tuple[Operation, ...]

    def __post_init__(self) -> None:
        check_int("Schedule.version", self.version, VERSION, VERSION)
        for name in ("strategy", "model", "inputs_hash"):
            check_text(f"Schedule.{name}", getattr(self, name))
        check_int("Schedule.tokens", self.tokens, 1)
        check_int("Schedule.state_bytes", self.state_bytes, 0)
        if self.flops is not None:
            check_number("Schedule.flops", self.flops, most=_MOST_FLOPS)
        if not self.operations:
            raise InvalidInput("Schedule.operations is empty; a step needs at least one")
        self._check_waits()
        for where in ("device", "host"):
            self._check_balance(where)

    def _check_waits(self) -> None:
        num_operations = len(self.operations)
        for index, operation in enumerate(self.operations):
            for waited in operation.waits_for:
                if waited >= num_operations or waited == index:
                    raise InvalidInput(
                        f"operation {index} ({operation}) waits for operation {waited}; the "
                        f"others are 0 to {num_operations - 1}"
                    )

    def _check_balance(self, where: str) -> None:
        took = sum(getattr(one, f"{where}_alloc_bytes") for one in self.operations)
        gave = sum(getattr(one, f"{where}_free_bytes") for one in self.operations)
        if took != gave:
            raise InvalidInput(
                f"the schedule allocates {took:,} bytes on the {where} and frees {gave:,}; "
                "a step must free what it allocates"
            )
        check_int(
            f"bytes allocated on the {where}", took + self.state_bytes, 0, _LARGEST_TOTAL_BYTES
        )

    def save(self, path: str | Path) -> None:
        """Write the schedule as JSON (docs/formats.md). Raises: OSError."""
        write_document(Path(path), {"format": FORMAT, **encode(self)})

    @classmethod
    def load(cls, path: str | Path, *, inputs_hash: str | None = None) -> Schedule:
        """Read a schedule and check it; with `inputs_hash` given, also what it was made from.

        Raises: PlanFileError naming the file, what is wrong, and both values where two disagree.
        """
        document = read_document(Path(path), format=FORMAT, version=VERSION)
        del document["format"]
        try:
            schedule = decode(cls, document, "schedule")
        except InvalidInput as error:
            raise PlanFileError(f"{path}: {error}") from error
        if inputs_hash not in (None, schedule.inputs_hash):
            raise PlanFileError(
                f"{path}: inputs_hash is {schedule.inputs_hash}, its inputs give {inputs_hash}"
            )
        return schedule
