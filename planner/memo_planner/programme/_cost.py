"""Bytes and seconds of a block's policy: the one cost model behind solver, prediction and CLI.

Everything works on arrays, one entry per block (or per candidate block policy), so that the
solver and the prediction cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memo_planner.policy import BlockPolicy, Place
from memo_planner.profile import Profile

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """A profile at one length and one tile size: the constants of one block.

    `attention_again`: whether a plan may recompute attention instead of saving o.
    """

    profile: Profile
    tokens: int
    tile_tokens: int
    attention_again: bool = False

    @property
    def num_tiles(self) -> int:
        """Tiles of the block."""
        return math.ceil(self.tokens / self.tile_tokens)

    @property
    def x_bytes(self) -> int:
        """Bytes of the block's input."""
        return math.ceil(self.profile.x_bytes_per_token * self.tokens)

    @property
    def o_bytes(self) -> int:
        """Bytes of the attention output and what else attention saves."""
        per_token = self.profile.o_bytes_per_token + self.profile.attention_bytes_per_token
        pairs = self.profile.attention_bytes_per_token2 * float(self.tokens) ** 2
        return math.ceil(per_token * self.tokens + pairs)

    @property
    def tile_overhead_s(self) -> float:
        """Seconds that one pass over one tile takes besides its tokens' work."""
        return self.profile.times.overhead_s(self.tile_tokens)

    @property
    def overhead_s(self) -> float:
        """Seconds that tiling adds to one forward and one backward of the block."""
        return 2 * self.num_tiles * self.tile_overhead_s

    @property
    def attention_s(self) -> float:
        """Seconds of the block's attention, forward."""
        return self.profile.times.attention_s_per_token2 * float(self.tokens) ** 2

    @property
    def exchange_s(self) -> tuple[float, float]:
        """Seconds that q, k, v, o and their gradients take between ranks: forward, backward."""
        exchange = self.profile.exchange
        if exchange is None:
            return 0.0, 0.0
        both = (exchange.forward_s_per_token, exchange.backward_s_per_token)
        return both[0] * self.tokens, both[1] * self.tokens

    @property
    def forward_s(self) -> float:
        """Seconds of the block's forward, without stalls."""
        tilewise_s = self.profile.times.tilewise_s_per_token * self.tokens
        return tilewise_s + self.attention_s + self.exchange_s[0] + self.overhead_s / 2

    @property
    def backward_s(self) -> float:
        """Seconds of the block's backward, without stalls and recomputation."""
        times = self.profile.times
        per_token = times.pre_backward_s_per_token + times.post_backward_s_per_token
        attention_s = times.attention_backward_s_per_token2 * float(self.tokens) ** 2
        own_s = per_token * self.tokens + attention_s + self.overhead_s / 2
        return own_s + self.exchange_s[1]

    @property
    def planes_bytes(self) -> int:
        """Host bytes that groups of heads take in the block that runs."""
        # Where o is made again, its planes wait there as well.
        made = self.o_bytes if self.attention_again and self.profile.num_groups > 1 else 0
        return math.ceil(self.profile.planes_bytes_per_token * self.tokens) + made

    @property
    def planes_forward_s(self) -> float:
        """Seconds that forward waits for planes: q, k, v and rows of o come back from the host.

        While attention runs x waits there, and y until the last of its tiles is done.
        """
        return self._planes_s(sent=(0, 0, 2), back=(1, 1, 2))

    @property
    def planes_backward_s(self) -> float:
        """The same in backward, where memory is shortest and each copy is waited for.

        q, k, v and their gradients go and come, o's gradient too, y's, and a part of x's; o comes
        in rows and in planes. x comes twice, once of which all plans count.
        """
        return self._planes_s(sent=(2, 1, 2), back=(2, 3, 3))

    def _planes_s(self, *, sent: tuple[int, int, int], back: tuple[int, int, int]) -> float:
        """Of so many times (q, k and v; o; x) to the host and back."""
        profile, link = self.profile, self.profile.link
        if profile.num_groups == 1:
            return 0.0
        sizes = (
            profile.qkv_bytes_per_token,
            profile.o_bytes_per_token,
            profile.x_bytes_per_token,
        )
        sent_bytes, back_bytes = (
            sum(n * size for n, size in zip(times, sizes, strict=True)) for times in (sent, back)
        )
        per_token = sent_bytes / link.d2h_bytes_per_s + back_bytes / link.h2d_bytes_per_s
        return per_token * self.tokens

    @property
    def plain_s(self) -> float:
        """Seconds of forward and backward with everything kept and no tiling."""
        return self.forward_s + self.backward_s - self.overhead_s

    def peak_bytes(self, point: str) -> int:
        """Device bytes at `point` with nothing kept, state included."""
        above = self.profile.peak_bytes(point, self.tokens, self.tile_tokens)
        return self.profile.state_bytes + above


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Block policies as arrays [policies]; the tiles not named are kept.

    x is kept or swapped; o is kept, made again, or swapped.
    """

    swap_tiles: Ints
    recompute_tiles: Ints
    x_kept: Flags
    o_kept: Flags
    o_again: Flags

    @classmethod
    def of_blocks(cls, blocks: Sequence[BlockPolicy]) -> Choices:
        """The arrays of `blocks`, in their order."""
        return cls(
            swap_tiles=np.array([b.swap_tiles for b in blocks], np.int64),
            recompute_tiles=np.array([b.recompute_tiles for b in blocks], np.int64),
            x_kept=np.array([b.x is Place.KEEP for b in blocks], np.bool_),
            o_kept=np.array([b.o is Place.KEEP for b in blocks], np.bool_),
            o_again=np.array([b.o is Place.RECOMPUTE for b in blocks], np.bool_),
        )

    def take(self, index: Ints) -> Choices:
        """The entries at `index`."""
        return Choices(
            swap_tiles=self.swap_tiles[index],
            recompute_tiles=self.recompute_tiles[index],
            x_kept=self.x_kept[index],
            o_kept=self.o_kept[index],
            o_again=self.o_again[index],
        )

    def block(self, index: int, num_tiles: int) -> BlockPolicy:
        """Entry `index` as a policy of a block of `num_tiles` tiles."""
        swap, recompute = int(self.swap_tiles[index]), int(self.recompute_tiles[index])
        return BlockPolicy(
            keep_tiles=num_tiles - swap - recompute,
            swap_tiles=swap,
            recompute_tiles=recompute,
            x=Place.KEEP if self.x_kept[index] else Place.SWAP,
            o=self._o_place(index),
        )

    def _o_place(self, index: int) -> Place:
        if self.o_again[index]:
            return Place.RECOMPUTE
        return Place.KEEP if self.o_kept[index] else Place.SWAP


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What block policies cost, as arrays [policies].

    Attributes:
        kept_bytes: whole bytes that stay on the device from forward to backward.
        swapped_bytes: whole bytes on the host in between.
        swap_s, recompute_s, forward_stall_s, backward_stall_s: seconds added to the step.
    """

    kept_bytes: Floats
    swapped_bytes: Floats
    swap_s: Floats
    recompute_s: Floats
    forward_stall_s: Floats
    backward_stall_s: Floats

    @property
    def stall_s(self) -> Floats:
        """Seconds that compute waits for copies."""
        return self.forward_stall_s + self.backward_stall_s

    @property
    def extra_s(self) -> Floats:
        """Seconds added to the step, without the overhead of tiling."""
        return self.swap_s + self.recompute_s + self.stall_s


def price(shape: BlockShape, choices: Choices) -> Prices:
    """Bytes and seconds of every entry of `choices`.

    A copy is free while it fits the block's own compute time at the link's speed; forward's has
    what swapping adds in it, and backward's the recomputation. The excess is a stall. Where o is
    made again, attention's forward and one more pass of pre are part of the recomputation.
    Source: MEMO §alpha.
    """
    times, link = shape.profile.times, shape.profile.link
    tokens, tile_tokens = shape.tokens, shape.tile_tokens
    # Only the last tile is shorter, and all others are counted before it.
    swapped = np.minimum(choices.swap_tiles * tile_tokens, tokens)
    discarded = np.minimum((choices.swap_tiles + choices.recompute_tiles) * tile_tokens, tokens)
    recomputed = discarded - swapped
    tile_bytes = shape.profile.tile_bytes_per_token
    x_bytes, o_bytes = float(shape.x_bytes), float(shape.o_bytes)
    whole = np.where(choices.x_kept, x_bytes, 0.0) + np.where(choices.o_kept, o_bytes, 0.0)
    kept_bytes = np.ceil((tokens - discarded) * tile_bytes) + whole
    dropped = np.where(choices.o_again, o_bytes, 0.0)
    # Of x and o what is neither kept nor made again.
    sent_bytes = np.ceil(swapped * tile_bytes) + (x_bytes + o_bytes - whole - dropped)
    swap_s = swapped * times.swap_s_per_token
    recompute_s = recomputed * times.tilewise_s_per_token
    # A tile that is made again is run once more.
    recompute_s = recompute_s + choices.recompute_tiles * shape.tile_overhead_s
    # Attention needs q, k and v of all tokens, so pre of such tiles runs once more for it; but not
    # of a block in one tile, which is what checkpointing runs.
    again_s = recomputed * times.pre_s_per_token + choices.recompute_tiles * shape.tile_overhead_s
    again_s = again_s if shape.num_tiles > 1 else np.zeros_like(again_s)
    again_s = again_s + shape.attention_s + shape.exchange_s[0]
    recompute_s = recompute_s + np.where(choices.o_again, again_s, 0.0)
    # What groups of heads send in forward, beside all else, comes back before they are done.
    planes = shape.profile.qkv_bytes_per_token * tokens if shape.profile.num_groups > 1 else 0.0
    forward_s, backward_s = shape.forward_s + swap_s, shape.backward_s + recompute_s
    return Prices(
        kept_bytes=kept_bytes,
        swapped_bytes=sent_bytes,
        swap_s=swap_s,
        recompute_s=recompute_s,
        forward_stall_s=shape.planes_forward_s
        + np.maximum((sent_bytes + planes) / link.d2h_bytes_per_s - forward_s, 0.0),
        backward_stall_s=shape.planes_backward_s
        + np.maximum(sent_bytes / link.h2d_bytes_per_s - backward_s, 0.0),
    )
