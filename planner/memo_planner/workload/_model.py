"""A language model's dimensions, and the parameters and FLOPs that follow from them.

A model is its kinds of blocks and how many there are of each. The paper's four and Llama 3 8B have
names; others are read from a Hugging Face config.json.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass

from memo_planner.checks import check_fields, check_int, check_text
from memo_planner.errors import InvalidInput

_MOST_PARAMETERS = 2**50


@dataclass(frozen=True, kw_only=True)
class BlockKind:
    """Blocks of one kind. Widths are numbers per token; experts count as balanced routing has it.

    Attributes:
        name: for people. count: blocks of this kind.
        parameters: of one block, idle experts included; active_parameters: those that a token
            meets, so of the experts as many as it is sent to.
        pre_parameters, post_parameters: matrix numbers that multiply a token before attention
            and after it: half the FLOPs of a token, forward.
        num_heads, num_kv_heads: of attention; both 0 where the block has none that is planned.
        head_dim, v_head_dim: numbers of a head's q and k, and of its v and o.
        window: tokens that a token attends to at most, itself included; None: all before it.
        mlp_width: of the MLP, active and shared experts together. gated: the MLP is
            down(act(gate(x)) * up(x)), else down(act(up(x))).
        pre_width, post_width: saved for backward besides x, q, k, v and o.

    Raises: InvalidInput.
    """

    name: str
    count: int
    parameters: int
    active_parameters: int
    pre_parameters: int
    post_parameters: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None
    mlp_width: int
    gated: bool
    pre_width: float
    post_width: float

    def __post_init__(self) -> None:
        check_text("BlockKind.name", self.name)
        check_int("BlockKind.count", self.count, 1, 100_000)
        for name in self.__dataclass_fields__:
            if name.endswith("parameters"):
                check_int(f"BlockKind.{name}", getattr(self, name), 0, _MOST_PARAMETERS)
        for name in ("num_heads", "num_kv_heads", "head_dim", "v_head_dim", "mlp_width"):
            check_int(f"BlockKind.{name}", getattr(self, name), 0, 2**30)
        if self.window is not None:
            check_int("BlockKind.window", self.window, 1)
        check_fields(self, ("pre_width", "post_width"))
        # Both are 0 in a block without attention.
        if self.num_heads % max(self.num_kv_heads, 1):
            raise InvalidInput(
                f"{self.num_heads} heads share {self.num_kv_heads} key-value heads; the one must "
                "be a multiple of the other"
            )

    @property
    def attends(self) -> bool:
        """Whether the block has an attention call, at which it can be cut."""
        return self.num_heads > 0

    @property
    def q_width(self) -> int:
        """Numbers of one token's q."""
        return self.num_heads * self.head_dim

    @property
    def o_width(self) -> int:
        """Numbers of one token's attention output."""
        return self.num_heads * self.v_head_dim

    @property
    def kv_width(self) -> int:
        """Numbers of one token's k and v together."""
        return self.num_kv_heads * (self.head_dim + self.v_head_dim)

    def pairs(self, tokens: int) -> float:
        """Pairs of tokens that causal attention scores, half of the diagonal counted."""
        reach = float(min(tokens, self.window or tokens))
        # Every token sees `reach`, less the triangle that the first ones do not have before them.
        return reach * tokens - reach**2 / 2

    def kv_copies(self, ranks: int) -> float:
        """Bytes of k and v on all of `ranks` that split the heads, over those of one copy.

        A rank holds each key-value head that one of its heads reads, so heads that several ranks
        read are there several times. `ranks` must divide the heads.
        """
        heads, shared_by = self.num_heads // ranks, self.num_heads // self.num_kv_heads
        # Ranks are planned alike, so the one that holds most speaks for all.
        most = max(
            (rank * heads + heads - 1) // shared_by - rank * heads // shared_by + 1
            for rank in range(ranks)
        )
        return most * ranks / self.num_kv_heads


@dataclass(frozen=True, kw_only=True)
class ModelDims:
    """A causal language model: its kinds of blocks and what is around them.

    Attributes:
        hidden, vocab: widths. tied: the head shares the embedding's matrix.
        kinds: each kind of block once, in the order in which they first come.
        other_parameters: all outside the blocks: tables of tokens and positions, norms, the head.
        head_parameters: of these, matrix numbers that multiply a token: the head, projections.
        max_tokens: rows of a table of positions, which no sequence exceeds; None: there is none.

    Raises: InvalidInput.
    """

    name: str
    hidden: int
    vocab: int
    tied: bool
    kinds: tuple[BlockKind, ...]
    other_parameters: int
    head_parameters: int
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        check_text("ModelDims.name", self.name)
        for name in ("hidden", "vocab"):
            check_int(f"ModelDims.{name}", getattr(self, name), 1, 2**30)
        for name in ("other_parameters", "head_parameters"):
            check_int(f"ModelDims.{name}", getattr(self, name), 1, _MOST_PARAMETERS)
        if not self.kinds:
            raise InvalidInput(f"{self.name}: there are no blocks; a model has at least one")

    @property
    def num_blocks(self) -> int:
        """Blocks of all kinds."""
        return sum(kind.count for kind in self.kinds)

    @property
    def num_heads(self) -> int:
        """Heads that every kind of block can be split into as a multiple of."""
        return math.gcd(*(kind.num_heads for kind in self.kinds))

    @property
    def block_parameters(self) -> int:
        """Of one block, the largest kind."""
        return max(kind.parameters for kind in self.kinds)

    @property
    def parameters(self) -> int:
        """Of the model, idle experts included, a matrix with two uses counted once."""
        return self.other_parameters + sum(kind.count * kind.parameters for kind in self.kinds)

    @property
    def active_parameters(self) -> int:
        """Of the model without the experts that a token is not sent to."""
        active = sum(kind.count * kind.active_parameters for kind in self.kinds)
        return self.other_parameters + active

    @property
    def multiplying_parameters(self) -> int:
        """Matrix numbers that multiply a token: without tables that are looked up, and norms."""
        in_blocks = sum(k.count * (k.pre_parameters + k.post_parameters) for k in self.kinds)
        return in_blocks + self.head_parameters

    def step_flops(self, tokens: int) -> float:
        """FLOPs of one sequence's forward and backward as MFU counts them.

        6 s P + 6 n w s**2 where all attend to all, P the parameters that multiply, w the width of
        q: attention is causal, nothing is computed twice. Source: MEMO, set-up of the experiments.
        """
        # Scores and values: 2 FLOPs a pair and number forward, 4 backward.
        attention = sum(
            6.0 * kind.count * (kind.q_width + kind.o_width) * kind.pairs(tokens)
            for kind in self.kinds
        )
        return 6.0 * tokens * self.multiplying_parameters + attention

    def digest(self) -> str:
        """sha256, hexadecimal, of the dimensions."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


FUSED_NORMS = (1, 2)
"""Each norm's output, and the input of the second. Source: MEMO, skeletal activations."""
SEPARATE_NORMS = (2, 3)
"""As PyTorch's operations do, also the normalised numbers before they are scaled."""
UPCAST_NORMS = (4, 4)
"""As Transformers does with bf16: the input in fp32, twice as wide, takes the place of its own."""


@dataclass(frozen=True, kw_only=True)
class DenseBlocks:
    """Equal blocks of attention and a dense MLP, by their widths; norms and biases apart.

    Attributes:
        norm_widths: what the block's two norms save besides x, and their outputs, over hidden:
            see `FUSED_NORMS` and the like.
        small_parameters: of one block's norms and biases. window: as in `BlockKind`.
    """

    num_blocks: int
    hidden: int
    ffn: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    gated: bool
    norm_widths: tuple[int, int]
    window: int | None = None
    small_parameters: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden", "ffn", "num_heads", "num_kv_heads", "head_dim"):
            check_int(f"DenseBlocks.{name}", getattr(self, name), 1, 2**30)

    def kind(self) -> BlockKind:
        """The blocks as a kind. Saved are what MEMO calls skeletal activations.

        16 h a token for a GPT with fused norms. A gated MLP saves gate, up,
        act(gate) and their product. Raises: InvalidInput.
        """
        q_width = self.num_heads * self.head_dim
        pre = self.hidden * (q_width + 2 * self.num_kv_heads * self.head_dim)
        # The output's projection; gate, up and down, or up and down.
        post = self.hidden * (q_width + (3 if self.gated else 2) * self.ffn)
        total = pre + post + self.small_parameters
        return BlockKind(
            name="attention" if self.window is None else f"window {self.window:,}",
            count=self.num_blocks,
            parameters=total,
            active_parameters=total,
            pre_parameters=pre,
            post_parameters=post,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            v_head_dim=self.head_dim,
            window=self.window,
            mlp_width=self.ffn,
            gated=self.gated,
            pre_width=self.norm_widths[0] * self.hidden,
            post_width=self.norm_widths[1] * self.hidden + (4 if self.gated else 2) * self.ffn,
        )


# GPT-2's.
_PAPER_VOCAB = 50_257


def _paper(name: str, num_blocks: int, hidden: int, num_heads: int) -> ModelDims:
    """A GPT of the paper. Source: MEMO, set-up of the experiments."""
    blocks = DenseBlocks(
        num_blocks=num_blocks,
        hidden=hidden,
        ffn=4 * hidden,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden // num_heads,
        gated=False,
        norm_widths=FUSED_NORMS,
    )
    return ModelDims(
        name=name,
        hidden=hidden,
        vocab=_PAPER_VOCAB,
        tied=True,
        kinds=(blocks.kind(),),
        other_parameters=_PAPER_VOCAB * hidden,
        head_parameters=_PAPER_VOCAB * hidden,
    )


def _llama_3_8b() -> ModelDims:
    """Source: Grattafiori et al., "The Llama 3 Herd of Models", table 3."""
    hidden, vocab = 4096, 128_256
    blocks = DenseBlocks(
        num_blocks=32,
        hidden=hidden,
        ffn=14_336,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        gated=True,
        norm_widths=SEPARATE_NORMS,
        # Two RMSNorms.
        small_parameters=2 * hidden,
    )
    return ModelDims(
        name="llama-3-8b",
        hidden=hidden,
        vocab=vocab,
        tied=False,
        kinds=(blocks.kind(),),
        # Embedding and head, which share nothing, and the last norm.
        other_parameters=2 * vocab * hidden + hidden,
        head_parameters=vocab * hidden,
    )


MODELS = {
    "7b": _paper("7b", 32, 4096, 32),
    "13b": _paper("13b", 40, 5120, 40),
    "30b": _paper("30b", 48, 7168, 56),
    "65b": _paper("65b", 80, 8192, 64),
    "llama-3-8b": _llama_3_8b(),
}

PAPER_GPUS = {"7b": 8, "13b": 16, "30b": 32, "65b": 64}
"""GPUs that the paper trains each of its models on."""
