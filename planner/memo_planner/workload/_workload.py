"""What is trained: a model, a sequence length, a batch, and how it is spread over devices."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from memo_planner.checks import check_int
from memo_planner.errors import InvalidInput
from memo_planner.policy import MAX_TOKENS
from memo_planner.workload._model import ModelDims

_UNITS = {"": 1, "k": 2**10, "m": 2**20}


def parse_tokens(text: str) -> int:
    """Tokens of a length such as `65536`, `64K` or `1M` (1,048,576). Raises: InvalidInput."""
    match = re.fullmatch(r"([0-9][0-9_,]{0,20}(?:\.[0-9]{1,9})?)([kKmM]?)", text.strip())
    if match is None:
        raise InvalidInput(f"length {text!r} is not a number of tokens such as 65536, 64K or 1M")
    tokens = float(match[1].replace(",", "").replace("_", "")) * _UNITS[match[2].lower()]
    if tokens != int(tokens) or not 1 <= tokens <= MAX_TOKENS:
        raise InvalidInput(
            f"length {text!r} is {tokens:,} tokens; it must be a whole number from 1 to "
            f"{MAX_TOKENS:,}"
        )
    return int(tokens)


def format_tokens(tokens: int) -> str:
    """`1M` or `64K` where that is exact, else the number."""
    if tokens and tokens % _UNITS["m"] == 0:
        return f"{tokens // _UNITS['m']}M"
    if tokens and tokens % _UNITS["k"] == 0:
        return f"{tokens // _UNITS['k']}K"
    return f"{tokens:,}"


MOST_GPUS = 1_000_000


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
    def split_heads(self) -> int:
        """Ranks that share the heads of attention."""
        return self.tensor * self.sequence

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


GRADIENT_BYTES = 4
"""Of one gradient: accumulated in fp32. Source: Megatron-LM, DeepSpeed with fp32 accumulation."""
OPTIMIZER_BYTES = 12
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
        self._check_kinds()
        split_heads = parallel.split_heads
        if model.num_heads % split_heads:
            raise InvalidInput(
                f"{model.name}: {model.num_heads} heads cannot be split over tensor "
                f"{parallel.tensor} x sequence {parallel.sequence} ranks; use context parallelism"
            )

    def _check_kinds(self) -> None:
        """Raises: InvalidInput if a kind of block, or the length, is beyond what is planned."""
        model = self.model
        others = [f"{kind.count} x {kind.name}" for kind in model.kinds if not kind.attends]
        if others:
            raise InvalidInput(
                f"{model.name}: of {model.num_blocks} blocks, {', '.join(others)} mix tokens "
                "elsewhere than in one attention call, and their cost depends on kernels; plan it "
                "where it runs, with memo_train.wrap, which measures them"
            )
        if model.max_tokens is not None and self.tokens > model.max_tokens:
            raise InvalidInput(
                f"{model.name}: its table of positions has {model.max_tokens:,} rows, "
                f"{self.tokens:,} tokens are asked; enlarge it in the config.json"
            )

    def with_tokens(self, tokens: int) -> Workload:
        """The same with sequences of another length."""
        return replace(self, tokens=tokens)

    @property
    def padded_tokens(self) -> int:
        """Tokens of a sequence with padding, of which every rank holds the same number."""
        ranks = self.parallel.ranks_of_sequence
        return -(-self.tokens // ranks) * ranks

    def described(self) -> str:
        """Such as `SP 8, ZeRO 3`, and what is padded."""
        text, padded = self.parallel.described(), self.padded_tokens
        if padded == self.tokens:
            return text
        ranks = self.parallel.ranks_of_sequence
        return f"{text}; {self.tokens:,} tokens padded to {padded:,}, a multiple of {ranks} ranks"

    @property
    def micro_steps(self) -> int:
        """Forward and backward passes of a rank in one optimiser step, one sequence each."""
        # A last pass with work for some ranks only takes as long as the others.
        return math.ceil(self.batch / self.parallel.data)

    def ranks_on_node(self, gpus_per_node: int) -> int:
        """Ranks that share one node's memory."""
        return min(self.parallel.gpus, gpus_per_node)

    @property
    def state_bytes(self) -> int:
        """Parameters, gradients and optimiser state of one rank, by ZeRO stage."""
        parallel = self.parallel
        ranks, stage = parallel.state_ranks, parallel.zero_stage
        # In fp32 AdamW's two moments alone.
        optimiser = OPTIMIZER_BYTES if self.dtype_bytes == 2 else 8
        per_parameter = (
            self.dtype_bytes / (ranks if stage >= 3 else 1)
            + GRADIENT_BYTES / (ranks if stage >= 2 else 1)
            + optimiser / (ranks if stage >= 1 else 1)
        )
        return math.ceil(self._rank_parameters * per_parameter)

    @property
    def _rank_parameters(self) -> float:
        """Of one tensor rank; those of key-value heads that several ranks read are in each."""
        model, degree = self.model, self.parallel.tensor
        again = sum(
            kind.count * (kind.kv_copies(degree) - 1) * model.hidden * kind.kv_width
            for kind in model.kinds
        )
        return (model.parameters + again) / degree
