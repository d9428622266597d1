"""A language model's dimensions, and the parameters and FLOPs that follow from them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from memo_planner.checks import check_int, check_text
from memo_planner.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class ModelDims:
    """A dense causal language model of `num_blocks` equal blocks.

    Attributes:
        hidden, ffn, vocab: widths. num_heads, num_kv_heads, head_dim: of attention.
        gated: the MLP is down(act(gate(x)) * up(x)), else down(act(up(x))).
        tied: the head shares the embedding's matrix.
        fused: norms and activations save their input or output once, as fused kernels and the
            paper's accounting do; else as PyTorch's separate operations do.

    Raises: InvalidInput.
    """

    name: str
    num_blocks: int
    hidden: int
    ffn: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    gated: bool
    tied: bool
    fused: bool = False

    def __post_init__(self) -> None:
        check_text("ModelDims.name", self.name)
        for name in ("hidden", "ffn", "num_heads", "num_kv_heads", "head_dim", "vocab"):
            check_int(f"ModelDims.{name}", getattr(self, name), 1, 2**30)
        check_int("ModelDims.num_blocks", self.num_blocks, 1, 100_000)
        if self.num_heads % self.num_kv_heads:
            raise InvalidInput(
                f"{self.name}: {self.num_heads} heads share {self.num_kv_heads} key-value heads; "
                "the one must be a multiple of the other"
            )

    @property
    def q_width(self) -> int:
        """Numbers of one token's q, and of its o."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Numbers of one token's k, and of its v."""
        return self.num_kv_heads * self.head_dim

    @property
    def pre_parameters(self) -> int:
        """Of the q, k, v projections of one block."""
        return self.hidden * (self.q_width + 2 * self.kv_width)

    @property
    def post_parameters(self) -> int:
        """Of the output projection and the MLP of one block."""
        return self.hidden * (self.q_width + (3 if self.gated else 2) * self.ffn)

    @property
    def block_parameters(self) -> int:
        """Of one block, norms and biases (under a thousandth) left out."""
        return self.pre_parameters + self.post_parameters

    @property
    def parameters(self) -> int:
        """Of the model: blocks, embedding, and the head where it has a matrix of its own."""
        tables = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.num_blocks * self.block_parameters + tables

    def step_flops(self, tokens: int) -> float:
        """FLOPs of one sequence's forward and backward as MFU counts them.

        6 s P + 6 n w s**2, P the parameters that multiply, w the width of q: attention is causal,
        nothing is computed twice. Source: MEMO, set-up of the experiments.
        """
        multiplying = self.num_blocks * self.block_parameters + self.vocab * self.hidden
        attention = 6.0 * self.num_blocks * self.q_width * float(tokens) ** 2
        return 6.0 * tokens * multiplying + attention

    def digest(self) -> str:
        """sha256, hexadecimal, of the dimensions."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
