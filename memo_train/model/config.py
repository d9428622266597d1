"""The shape of a Llama."""

from dataclasses import dataclass

from memo_planner.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of a Llama; ``ffn_size`` is the width of the SwiGLU's hidden layer.

    Raises:
        InvalidInput: a size below 1, or heads that do not divide what they share.
    """

    vocab_size: int
    hidden_size: int
    ffn_size: int
    num_blocks: int
    num_heads: int
    num_kv_heads: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "ffn_size", "num_blocks", "num_heads"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.num_kv_heads >= 1, "num_kv_heads", self.num_kv_heads, "at least 1")
        _require(self.rope_theta > 0, "rope_theta", self.rope_theta, "above 0")
        _require(self.norm_eps > 0, "norm_eps", self.norm_eps, "above 0")
        hidden, heads, kv_heads = self.hidden_size, self.num_heads, self.num_kv_heads
        _require(hidden % heads == 0, "hidden_size", hidden, f"a multiple of num_heads={heads}")
        _require(
            heads % kv_heads == 0, "num_heads", heads, f"a multiple of num_kv_heads={kv_heads}"
        )
        _require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "even, for RoPE")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads


def _require(condition: bool, name: str, value: float, wanted: str) -> None:
    if not condition:
        raise InvalidInput(f"LlamaConfig: {name} is {value}, must be {wanted}")
