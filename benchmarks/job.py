"""What a benchmark process is asked to run: a mode, a Llama and its limits."""

import json
from dataclasses import asdict, dataclass

MODES = ("plain", "checkpoint", "checkpoint_offload", "memo")
ALLOCATORS = ("layout", "by size", "torch")
HEAD_DIM = 64
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Job:
    """One mode of training one Hugging Face Llama in fp32 on byte tokens.

    Attributes:
        mode: one of MODES.
        activation_bytes: device memory beyond the model's state (parameters, gradients, AdamW);
            None sets no cap.
        host_bytes: the host pool; None sets no cap.
        tile_tokens: the loss's tile in every mode, and the blocks' tile in mode "memo"; None lets
            the planner choose the blocks' and takes DEFAULT_LOSS_TILE for the others.
        alpha: in mode "memo", the part of the tiles to swap; None lets the planner choose all.
        allocator: who serves tensors, one of ALLOCATORS: the arena, in mode "memo" by a layout or
            only by size, or torch's own; nothing can be swapped or capped then.
    """

    mode: str
    layers: int
    hidden: int
    activation_bytes: int | None = None
    host_bytes: int | None = None
    tile_tokens: int | None = None
    alpha: float | None = None
    allocator: str = "layout"
    vocab: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}, must be one of {', '.join(MODES)}")
        if self.allocator not in ALLOCATORS:
            raise ValueError(f"allocator is {self.allocator!r}, must be one of {ALLOCATORS}")
        if self.hidden % HEAD_DIM:
            raise ValueError(f"hidden is {self.hidden}, must be a multiple of {HEAD_DIM}")

    @property
    def ffn(self) -> int:
        """The usual 8/3 of hidden, rounded up to a multiple of 16."""
        return -(-8 * self.hidden // 3 // 16) * 16

    def to_json(self) -> str:
        """One line that from_json reads."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(line: str) -> "Job":
        """The job of a line that to_json wrote."""
        return Job(**json.loads(line))
