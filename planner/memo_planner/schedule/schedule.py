"""A schedule: a step as an ordered list of operations, and its file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memo_planner.checks import check_int, check_number, check_text
from memo_planner.codec import decode, encode, read_document, write_document
from memo_planner.errors import InvalidInput, PlanFileError
from memo_planner.schedule.operation import Operation

FORMAT = "memo-schedule"
VERSION = 1
_LARGEST_TOTAL_BYTES = 2**62
_MOST_FLOPS = 2.0**120


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
        document = read_document(Path(path))
        for key, value in (("format", FORMAT), ("version", VERSION)):
            if document.get(key) != value or isinstance(document.get(key), bool):
                raise PlanFileError(f"{path}: {key} is {document.get(key)!r}, expected {value!r}")
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
