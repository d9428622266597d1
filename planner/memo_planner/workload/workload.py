"""What is trained: a model, a sequence length, a batch, and how it is spread over devices."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from memo_planner.checks import check_int
from memo_planner.errors import InvalidInput
from memo_planner.policy import MAX_TOKENS
from memo_planner.workload.model import ModelDims
from memo_planner.workload.parallel import Parallel

GRADIENT_BYTES = 4
"""Of one gradient: accumulated in fp32. Source: Megatron-LM, DeepSpeed with fp32 accumulation."""
OPTIMISER_BYTES = 12
"""Of one parameter: fp32 copy and AdamW's two moments. In fp32 training the copy is not there."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One training step.

    Attributes:
        tokens: length of every sequence. batch: sequences of one optimiser step.
        dtype_bytes: of activations and parameters: 2 (bf16) or 4 (fp32).

    Raises: InvalidInput.
    """

    model: ModelDims
    tokens: int
    batch: int
    parallel: Parallel
    dtype_bytes: int = 2

    def __post_init__(self) -> None:
        check_int("Workload.tokens", self.tokens, 1, MAX_TOKENS)
        check_int("Workload.batch", self.batch, 1, 2**30)
        if self.dtype_bytes not in (2, 4):
            raise InvalidInput(f"Workload.dtype_bytes is {self.dtype_bytes}; it is 2 or 4")
        model, parallel = self.model, self.parallel
        split_heads = parallel.tensor * parallel.sequence
        if model.num_heads % split_heads:
            raise InvalidInput(
                f"{model.name}: {model.num_heads} heads cannot be split over tensor "
                f"{parallel.tensor} x sequence {parallel.sequence} ranks; use context parallelism"
            )

    def with_tokens(self, tokens: int) -> Workload:
        """The same with sequences of another length."""
        return replace(self, tokens=tokens)

    @property
    def micro_steps(self) -> int:
        """Forward and backward passes of a rank in one optimiser step, one sequence each."""
        return math.ceil(self.batch / self.parallel.data)

    def ranks_on_node(self, gpus_per_node: int) -> int:
        """Ranks that share one node's memory."""
        return min(self.parallel.gpus, gpus_per_node)

    @property
    def state_bytes(self) -> int:
        """Parameters, gradients and optimiser state of one rank, by ZeRO stage."""
        parallel = self.parallel
        ranks, stage = parallel.state_ranks, parallel.zero_stage
        optimiser = OPTIMISER_BYTES if self.dtype_bytes == 2 else 8
        per_parameter = (
            self.dtype_bytes / (ranks if stage >= 3 else 1)
            + GRADIENT_BYTES / (ranks if stage >= 2 else 1)
            + optimiser / (ranks if stage >= 1 else 1)
        )
        return math.ceil(self.model.parameters / parallel.tensor * per_parameter)
