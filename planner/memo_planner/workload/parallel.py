"""How a step's work and state are spread over devices."""

from __future__ import annotations

from dataclasses import dataclass

from memo_planner.checks import check_int
from memo_planner.errors import InvalidInput

MOST_GPUS = 1_000_000
ZERO_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Degrees of parallelism; what is left over of `gpus` is data parallel.

    Attributes:
        gpus: devices of the job.
        tensor: ranks that split a block's matrices, with sequence parallelism between them
            (norms and residuals are split by tokens). Source: Megatron-LM.
        context: ranks that split the tokens and pass k and v round a ring.
        sequence: ranks that split the tokens and swap tokens for heads around attention
            (DeepSpeed-Ulysses).
        zero_stage: over all ranks that hold the same parameters, 1 splits the optimiser's state,
            2 also gradients, 3 also parameters (FSDP's full shard). 0 splits nothing.

    Raises: InvalidInput if the degrees do not divide `gpus`.
    """

    gpus: int
    tensor: int = 1
    context: int = 1
    sequence: int = 1
    zero_stage: int = 0

    def __post_init__(self) -> None:
        for name in ("gpus", "tensor", "context", "sequence"):
            check_int(f"Parallel.{name}", getattr(self, name), 1, MOST_GPUS)
        check_int("Parallel.zero_stage", self.zero_stage, 0, 3)
        if self.gpus % self.ranks_of_sequence:
            raise InvalidInput(
                f"{self.gpus} GPUs cannot hold tensor {self.tensor} x context {self.context} x "
                f"sequence {self.sequence} = {self.ranks_of_sequence} ranks a whole number of times"
            )

    @property
    def ranks_of_sequence(self) -> int:
        """Ranks that share one sequence: each holds this part of every activation."""
        return self.tensor * self.context * self.sequence

    @property
    def data(self) -> int:
        """Sequences in work at once."""
        return self.gpus // self.ranks_of_sequence

    @property
    def state_ranks(self) -> int:
        """Ranks that hold the same parameters, over which ZeRO splits."""
        return self.gpus // self.tensor

    def described(self) -> str:
        """Such as `TP 4, CP 2, ZeRO 1`."""
        degrees = (("TP", self.tensor), ("CP", self.context), ("SP", self.sequence))
        parts = [f"{name} {degree}" for name, degree in degrees if degree > 1]
        parts += [f"DP {self.data}"] if self.data > 1 else []
        return ", ".join([*parts, f"ZeRO {self.zero_stage}"])
