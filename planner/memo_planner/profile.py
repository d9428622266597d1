"""What was measured of one block: bytes per token, seconds per token, speed of the link.

"Token" means one position across the batch: every per-token figure is already multiplied by the
batch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from memo_planner.checks import check_fields, check_int, check_text
from memo_planner.errors import InvalidInput
from memo_planner.kinds import BlockKind, check_kinds
from memo_planner.policy import MAX_GROUPS

POINTS = ("forward", "loss", "backward")
"""Points of a step at which the device's bytes are modelled."""


@dataclass(frozen=True, kw_only=True)
class PeakLine:
    """Device bytes above the state at one point of the step, with no tile, x or o kept.

    `base_bytes + bytes_per_tile_token * tile_tokens + bytes_per_token * tokens +
    bytes_per_token2 * tokens**2`; the last is for masks and scores of all pairs of tokens.
    """

    name: str
    base_bytes: float
    bytes_per_tile_token: float
    bytes_per_token: float
    bytes_per_token2: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in POINTS:
            raise InvalidInput(f"PeakLine.name is {self.name!r}; it must be one of {POINTS}")
        check_fields(self, tuple(f for f in self.__dataclass_fields__ if f != "name"))

    def at(self, tokens: int, tile_tokens: int) -> int:
        """Bytes at this point for a sequence of `tokens` in tiles of `tile_tokens`."""
        per_tile = self.bytes_per_tile_token * tile_tokens
        pairs = self.bytes_per_token2 * float(tokens) ** 2
        return math.ceil(self.base_bytes + per_tile + self.bytes_per_token * tokens + pairs)

    def times(self, factor: float) -> PeakLine:
        """The line for so many times the sequences; what does not grow with tokens stays."""
        return replace(
            self,
            bytes_per_tile_token=factor * self.bytes_per_tile_token,
            bytes_per_token=factor * self.bytes_per_token,
            bytes_per_token2=factor * self.bytes_per_token2,
        )


@dataclass(frozen=True, kw_only=True)
class BlockTimes:
    """Seconds of one block.

    Forward of S tokens in n tiles takes (pre + post) * S + attention * S**2 + n * tile_overhead_s;
    backward likewise with its own figures. Recomputing a tile costs its pre, its post and one
    more tile_overhead_s; attention runs again only where o is recomputed. Swapping a token adds
    swap_s_per_token to forward, its copies' own time aside: it is recorded, and memory is shared
    with the copies.
    No pass over a tile is shorter than tile_issue_s: the thread that asks for its operations takes
    so long, and a GPU waits for it where the tile's work is less. 0 where nothing runs behind.
    """

    pre_s_per_token: float
    post_s_per_token: float
    attention_s_per_token2: float
    pre_backward_s_per_token: float
    post_backward_s_per_token: float
    attention_backward_s_per_token2: float
    tile_overhead_s: float
    swap_s_per_token: float = 0.0
    tile_issue_s: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, tuple(self.__dataclass_fields__))

    @property
    def tilewise_s_per_token(self) -> float:
        """Seconds of pre and post, forward, of one token."""
        return self.pre_s_per_token + self.post_s_per_token

    def overhead_s(self, tile_tokens: int) -> float:
        """Seconds that one pass over a tile of so many tokens takes besides its tokens' work."""
        waited_s = self.tile_issue_s - self.tilewise_s_per_token * tile_tokens
        return max(self.tile_overhead_s, waited_s)

    def times(self, factor: float) -> BlockTimes:
        """The seconds of so many times the sequences; what a tile costs of itself stays."""
        names = (f for f in self.__dataclass_fields__ if not f.startswith("tile_"))
        return replace(self, **{name: factor * getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class Link:
    """Bytes per second of the copies, 1 or more, each direction measured under load."""

    d2h_bytes_per_s: float
    h2d_bytes_per_s: float

    def __post_init__(self) -> None:
        check_fields(self, ("d2h_bytes_per_s", "h2d_bytes_per_s"), least=1.0)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What one block of a rank hands to the others that share a sequence, around its attention.

    way: such as `4 ranks, ulysses`. forward_bytes_per_token, backward_bytes_per_token: sent to
    others, key-value heads that several ranks read each time. bytes_per_s: of each rank while all
    of them send. Nothing else runs meanwhile.

    Raises: InvalidInput.
    """

    way: str
    forward_bytes_per_token: float
    backward_bytes_per_token: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        check_text("Exchange.way", self.way)
        check_fields(self, ("forward_bytes_per_token", "backward_bytes_per_token"))
        check_fields(self, ("bytes_per_s",), least=1.0)

    @property
    def forward_s_per_token(self) -> float:
        """Seconds that forward waits."""
        return self.forward_bytes_per_token / self.bytes_per_s

    @property
    def backward_s_per_token(self) -> float:
        """Seconds that backward waits."""
        return self.backward_bytes_per_token / self.bytes_per_s

    def times(self, factor: float) -> Exchange:
        """For so many times the sequences."""
        return replace(
            self,
            forward_bytes_per_token=factor * self.forward_bytes_per_token,
            backward_bytes_per_token=factor * self.backward_bytes_per_token,
        )


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The blocks of a model on one device.

    Attributes:
        model: name for people. model_hash: identity of the configuration. device: its name.
        batch: sequences per step; num_blocks: in a row.
        state_bytes: parameters, gradients, optimiser and buffers on the device.
        x_bytes_per_token, o_bytes_per_token: a block's input and its attention output.
        qkv_bytes_per_token: q, k and v, held by a kept tile, sent by a swapped one.
        attention_bytes_per_token: all else that attention saves (log-sum-exp); it goes with o.
        attention_bytes_per_token2: of that, what grows with the square of the tokens (scores).
        pre_bytes_per_token, post_bytes_per_token: saved by a tile's graphs besides q, k, v, x, o.
        peaks: at least one line for each of `POINTS`, in any order; the highest counts.
        gradient_bytes: of all trained parameters, part of `state_bytes`; 0 where not known.
        num_groups: of heads, which attention ran one after the other; all figures hold for that.
        kinds, kind_of_block: bytes alive, by kind of block, and each block's kind; the figures
            above are the highest of all kinds. Both are empty where they were not measured.
        exchange: where ranks share sequences; None: a rank has its own. Where it was measured, a
            token is one of the rank's own, and attention's seconds are of all ranks' tokens.

    Raises: InvalidInput on a figure that is not finite or out of range.
    Source: MEMO §profiler; docs/formats.md.
    """

    model: str
    model_hash: str
    device: str
    batch: int
    num_blocks: int
    state_bytes: int
    x_bytes_per_token: float
    o_bytes_per_token: float
    qkv_bytes_per_token: float
    attention_bytes_per_token: float
    pre_bytes_per_token: float
    post_bytes_per_token: float
    peaks: tuple[PeakLine, ...]
    times: BlockTimes
    link: Link
    attention_bytes_per_token2: float = 0.0
    gradient_bytes: int = 0
    num_groups: int = 1
    kinds: tuple[BlockKind, ...] = ()
    kind_of_block: tuple[int, ...] = ()
    exchange: Exchange | None = None

    def __post_init__(self) -> None:
        for name in ("model", "model_hash", "device"):
            check_text(f"Profile.{name}", getattr(self, name))
        check_int("Profile.batch", self.batch, 1)
        check_int("Profile.num_blocks", self.num_blocks, 1, 1_000_000)
        check_int("Profile.state_bytes", self.state_bytes, 0)
        check_int("Profile.gradient_bytes", self.gradient_bytes, 0, self.state_bytes)
        check_int("Profile.num_groups", self.num_groups, 1, MAX_GROUPS)
        check_kinds(self.kinds, self.kind_of_block, self.num_blocks)
        figures = (f for f in self.__dataclass_fields__ if "_per_token" in f)
        check_fields(self, tuple(figures))
        names = {line.name for line in self.peaks}
        if names != set(POINTS):
            raise InvalidInput(f"Profile.peaks has lines {sorted(names)}; it needs all of {POINTS}")

    def peak_bytes(self, point: str, tokens: int, tile_tokens: int) -> int:
        """Device bytes above the state at `point`, one of `POINTS`: the highest of its lines."""
        lines = (line for line in self.peaks if line.name == point)
        return max(line.at(tokens, tile_tokens) for line in lines)

    @property
    def bytes_per_token2(self) -> float:
        """The most that anything in the profile grows with the square of the tokens."""
        lines = (line.bytes_per_token2 for line in self.peaks)
        return max(self.attention_bytes_per_token2, *lines)

    def for_batch(self, batch: int) -> Profile:
        """The profile for steps of `batch` sequences. Raises: InvalidInput."""
        check_int("batch", batch, 1)
        if batch == self.batch:
            return self
        # The state, and a tile's overhead, are there once for all sequences.
        factor = batch / self.batch
        figures = (f for f in self.__dataclass_fields__ if "_per_token" in f)
        return replace(
            self,
            batch=batch,
            peaks=tuple(line.times(factor) for line in self.peaks),
            times=self.times.times(factor),
            kinds=tuple(kind.times(factor) for kind in self.kinds),
            exchange=self.exchange and self.exchange.times(factor),
            **{name: factor * getattr(self, name) for name in figures},
        )

    @property
    def planes_bytes_per_token(self) -> float:
        """Host bytes of one token in the block that runs by groups of heads, besides what waits.

        They are q, k and v, or their gradients, those of o, y and in part of x, and what pre saved
        with the block's arguments.
        """
        if self.num_groups == 1:
            return 0.0
        wholes = 2 * self.x_bytes_per_token + self.o_bytes_per_token
        return self.qkv_bytes_per_token + wholes + self.pre_bytes_per_token

    @property
    def tile_bytes_per_token(self) -> float:
        """Saved bytes of one token in a tile: pre, post and q, k, v."""
        return self.pre_bytes_per_token + self.post_bytes_per_token + self.qkv_bytes_per_token
