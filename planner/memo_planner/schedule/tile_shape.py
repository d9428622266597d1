"""Bytes and seconds of a block and of each of its tiles, in whole bytes that add up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memo_planner.cost import BlockShape
from memo_planner.policy import Policy
from memo_planner.profile import Profile


@dataclass(frozen=True, kw_only=True)
class TileShape:
    """One tile: bytes of its saved classes, seconds of its stretches without tile overhead.

    swap_pre_s, swap_post_s: what swapping the tile adds to its stretches of forward.
    """

    qkv_bytes: int
    pre_bytes: int
    post_bytes: int
    pre_s: float
    post_s: float
    pre_backward_s: float
    post_backward_s: float
    swap_pre_s: float
    swap_post_s: float

    @property
    def saved_bytes(self) -> int:
        """All that forward saves of the tile."""
        return self.qkv_bytes + self.pre_bytes + self.post_bytes


@dataclass(frozen=True, kw_only=True)
class BlockSizes:
    """A block of a profile under a policy; every block has the same.

    Attributes:
        x_bytes: the input, and each of y, dx and dy. o_bytes: the attention output; do likewise.
        attention_bytes: what else attention saves. qkv_bytes: q, k, v gathered; their gradients.
        forward_scratch_bytes, loss_scratch_bytes, backward_scratch_bytes: what the profile's peak
            at that point holds beyond the tensors above, taken by each stretch while it runs.
        overhead_s: seconds that tiling adds to one pass over a tile.
    """

    x_bytes: int
    o_bytes: int
    attention_bytes: int
    qkv_bytes: int
    forward_scratch_bytes: int
    loss_scratch_bytes: int
    backward_scratch_bytes: int
    attention_s: float
    attention_backward_s: float
    overhead_s: float
    tiles: tuple[TileShape, ...]

    @classmethod
    def of(cls, profile: Profile, policy: Policy, *, park_pre: bool) -> BlockSizes:
        """Sizes whose sums are those of the cost model. park_pre: as in `CopyBudget`."""
        shape = BlockShape(profile=profile, tokens=policy.tokens, tile_tokens=policy.tile_tokens)
        tiles = tile_shapes(profile, policy)
        o_bytes = min(math.ceil(profile.o_bytes_per_token * policy.tokens), shape.o_bytes)
        attention_bytes = shape.o_bytes - o_bytes
        qkv_bytes = sum(tile.qkv_bytes for tile in tiles)
        pre_bytes = 0 if park_pre else sum(tile.pre_bytes for tile in tiles)
        peak = {
            point: profile.peak_bytes(point, policy.tokens, policy.tile_tokens)
            for point in ("forward", "loss", "backward")
        }
        x_bytes, widest = shape.x_bytes, max(t.post_bytes + t.qkv_bytes for t in tiles)
        # A swapped tile's tensors are there until they have left; the measured peak has them in it.
        forward = x_bytes + max(
            qkv_bytes + max(t.qkv_bytes + t.pre_bytes for t in tiles),
            shape.o_bytes + max(qkv_bytes, x_bytes + max(t.post_bytes for t in tiles)),
        )
        backward = 3 * x_bytes + shape.o_bytes + o_bytes + qkv_bytes + pre_bytes
        times = profile.times
        tokens2 = float(policy.tokens) ** 2
        return cls(
            x_bytes=x_bytes,
            o_bytes=o_bytes,
            attention_bytes=attention_bytes,
            qkv_bytes=qkv_bytes,
            forward_scratch_bytes=max(peak["forward"] - forward, 0),
            loss_scratch_bytes=max(peak["loss"] - 2 * x_bytes, 0),
            backward_scratch_bytes=max(peak["backward"] - backward - max(qkv_bytes, widest), 0),
            attention_s=times.attention_s_per_token2 * tokens2,
            attention_backward_s=times.attention_backward_s_per_token2 * tokens2,
            overhead_s=times.tile_overhead_s,
            tiles=tiles,
        )


def tile_shapes(profile: Profile, policy: Policy) -> tuple[TileShape, ...]:
    """The tiles from the first token on; what all of them save adds up to the cost model's."""
    times, tiles, before = profile.times, [], 0
    for start in range(0, policy.tokens, policy.tile_tokens):
        stop = min(start + policy.tile_tokens, policy.tokens)
        tokens, up_to = stop - start, math.ceil(stop * profile.tile_bytes_per_token)
        saved, before = up_to - before, up_to
        qkv = min(round(tokens * profile.qkv_bytes_per_token), saved)
        pre = min(round(tokens * profile.pre_bytes_per_token), saved - qkv)
        swap_s, of_pre = times.swap_s_per_token * tokens, (qkv + pre) / max(saved, 1)
        tiles.append(
            TileShape(
                qkv_bytes=qkv,
                pre_bytes=pre,
                post_bytes=saved - qkv - pre,
                pre_s=times.pre_s_per_token * tokens,
                post_s=times.post_s_per_token * tokens,
                pre_backward_s=times.pre_backward_s_per_token * tokens,
                post_backward_s=times.post_backward_s_per_token * tokens,
                swap_pre_s=swap_s * of_pre,
                swap_post_s=swap_s * (1 - of_pre),
            )
        )
    return tuple(tiles)
