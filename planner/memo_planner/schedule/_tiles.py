"""Forward and backward of one block by tiles, as the runtime runs them, in bytes that add up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from memo_planner.policy import BlockPolicy, Place, Policy, TilePlace
from memo_planner.profile import Profile
from memo_planner.programme import BlockShape
from memo_planner.schedule._budget import CopyBudget
from memo_planner.schedule._builder import BlockOnHost, ScheduleBuilder, Swapped, fetch, send, take
from memo_planner.schedule._schedule import Phase


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
        # The runtime waits for what crosses between ranks, around attention.
        times, exchange_s = profile.times, shape.exchange_s
        tokens2 = float(policy.tokens) ** 2
        return cls(
            x_bytes=x_bytes,
            o_bytes=o_bytes,
            attention_bytes=attention_bytes,
            qkv_bytes=qkv_bytes,
            forward_scratch_bytes=max(peak["forward"] - forward, 0),
            loss_scratch_bytes=max(peak["loss"] - 2 * x_bytes, 0),
            backward_scratch_bytes=max(peak["backward"] - backward - max(qkv_bytes, widest), 0),
            attention_s=times.attention_s_per_token2 * tokens2 + exchange_s[0],
            attention_backward_s=times.attention_backward_s_per_token2 * tokens2 + exchange_s[1],
            overhead_s=shape.tile_overhead_s,
            tiles=tiles,
        )


def tile_shapes(profile: Profile, policy: Policy) -> tuple[TileShape, ...]:
    """The tiles from the first token on; what all of them save adds up to the cost model's."""
    times, tiles, before = profile.times, [], 0
    for start in range(0, policy.tokens, policy.tile_tokens):
        stop = min(start + policy.tile_tokens, policy.tokens)
        tokens, up_to = stop - start, math.ceil(stop * profile.tile_bytes_per_token)
        # Differences of rounded sums: so the tiles add up to the block, to the byte.
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


class TileForward:
    """Adds one block's forward: pre of every tile, attention, post of every tile.

    The block finds x on the device; it leaves y there, and x and o where they are kept.
    """

    def __init__(
        self, build: ScheduleBuilder, sizes: BlockSizes, block: int, policy: BlockPolicy
    ) -> None:
        self._build = build
        self._sizes = sizes
        self._block = block
        self._policy = policy
        self._host = BlockOnHost()

    def run(self, collective_bytes: int) -> BlockOnHost:
        """collective_bytes: exchanged between ranks before attention, and again after it."""
        build, sizes = self._build, self._sizes
        for index, tile in enumerate(sizes.tiles):
            build.at(Phase.FORWARD, self._block, index)
            self._pre(index, tile)
        build.at(Phase.FORWARD, self._block)
        sent_o = self._attention(collective_bytes)
        for index, tile in enumerate(sizes.tiles):
            build.at(Phase.FORWARD, self._block, index)
            self._post(index, tile)
        build.at(Phase.FORWARD, self._block)
        if self._policy.x is Place.SWAP:
            self._host.x = send(build, "x", sizes.x_bytes)
        if sent_o is not None:
            build.release("o", sizes.o_bytes, (sent_o, build.last_compute))
        return self._host

    def _pre(self, index: int, tile: TileShape) -> None:
        build, scratch = self._build, self._sizes.forward_scratch_bytes
        place = self._policy.tile_place(index)
        saved = 0 if place is TilePlace.RECOMPUTE else tile.qkv_bytes + tile.pre_bytes
        swap_s = tile.swap_pre_s if place is TilePlace.SWAP else 0.0
        gathered = self._sizes.qkv_bytes if index == 0 else 0
        build.compute(
            "pre",
            tile.pre_s + swap_s + self._sizes.overhead_s / 2,
            alloc_bytes=scratch + saved + gathered,
            free_bytes=scratch,
        )
        if place is TilePlace.SWAP:
            _put(self._host.qkv, index, send(build, "q, k, v", tile.qkv_bytes))
            _put(self._host.pre, index, send(build, "saved by pre", tile.pre_bytes))

    def _attention(self, collective_bytes: int) -> int | None:
        """The id of the copy of o to the host, if it is swapped."""
        build, sizes = self._build, self._sizes
        scratch = sizes.forward_scratch_bytes
        exchange(build, "q, k, v", collective_bytes)
        # What attention saves is not recorded where attention will run again.
        saved = 0 if self._policy.o is Place.RECOMPUTE else sizes.attention_bytes
        build.compute(
            "attention",
            sizes.attention_s,
            alloc_bytes=scratch + sizes.o_bytes + saved,
            free_bytes=scratch + sizes.qkv_bytes,
        )
        exchange(build, "o", collective_bytes)
        if self._policy.o is not Place.SWAP:
            return None
        self._host.attention = send(build, "saved by attention", sizes.attention_bytes)
        if not sizes.o_bytes:
            return None
        sent = build.to_host("o", sizes.o_bytes, frees_source=False)
        self._host.o = Swapped(name="o", num_bytes=sizes.o_bytes, sent=sent)
        return sent

    def _post(self, index: int, tile: TileShape) -> None:
        build, scratch = self._build, self._sizes.forward_scratch_bytes
        place = self._policy.tile_place(index)
        saved = 0 if place is TilePlace.RECOMPUTE else tile.post_bytes
        swap_s = tile.swap_post_s if place is TilePlace.SWAP else 0.0
        y_bytes = self._sizes.x_bytes if index == 0 else 0
        is_last = index == len(self._sizes.tiles) - 1
        drops_o = is_last and self._policy.o is Place.RECOMPUTE
        build.compute(
            "post",
            tile.post_s + swap_s + self._sizes.overhead_s / 2,
            alloc_bytes=scratch + saved + y_bytes,
            free_bytes=scratch + (self._sizes.o_bytes if drops_o else 0),
        )
        if place is TilePlace.SWAP:
            _put(self._host.post, index, send(build, "saved by post", tile.post_bytes))


def exchange(build: ScheduleBuilder, name: str, num_bytes: int) -> None:
    """A collective that compute waits for; nothing if there is nothing to exchange."""
    if num_bytes:
        build.wait(name, (build.collective(name, num_bytes),))


def _put(places: dict[int, Swapped], index: int, sent: Swapped | None) -> None:
    if sent is not None:
        places[index] = sent


Prefetch = Callable[[int], None]


class TileBackward:
    """Adds one block's backward: post from the last tile, attention, pre from the last tile.

    The block finds dy on the device and leaves dx there.
    """

    def __init__(
        self,
        build: ScheduleBuilder,
        sizes: BlockSizes,
        block: int,
        policy: BlockPolicy,
        host: BlockOnHost,
    ) -> None:
        self._build = build
        self._sizes = sizes
        self._block = block
        self._policy = policy
        self._host = host

    def run(self, budget: CopyBudget, collective_bytes: int, prefetch_previous: Prefetch) -> None:
        """prefetch_previous: starts copies back for the block before, up to so many bytes."""
        build, sizes, host = self._build, self._sizes, self._host
        build.at(Phase.BACKWARD, self._block)
        ahead_bytes = budget.ahead_bytes[self._block]
        # What the block itself sent comes back now, and copies to the host end in order.
        build.allow_in_flight(0 if self._policy.swaps else ahead_bytes)
        take(build, host.x)
        take(build, host.o)
        fetch(build, host.attention)
        self._prefetch_tile(len(sizes.tiles) - 1, budget)
        if self._policy.o is Place.RECOMPUTE:
            self._attention_again(budget)
        for index in reversed(range(len(sizes.tiles))):
            build.at(Phase.BACKWARD, self._block, index)
            self._post(index, budget)
        build.at(Phase.BACKWARD, self._block)
        prefetch_previous(ahead_bytes)
        self._attention(collective_bytes)
        prefetch_previous(ahead_bytes + sizes.qkv_bytes + sizes.o_bytes)
        for index in reversed(range(len(sizes.tiles))):
            build.at(Phase.BACKWARD, self._block, index)
            self._pre(index)

    def _attention_again(self, budget: CopyBudget) -> None:
        """Make o again from x: pre of the tiles whose q, k and v are not saved, attention.

        Pre runs once more with post: what it saves would wait for all that time. Of a block in one
        tile, which is what checkpointing runs, that is all.
        """
        build, sizes = self._build, self._sizes
        for index in reversed(range(len(sizes.tiles))):
            build.at(Phase.BACKWARD, self._block, index)
            self._prefetch_tile(index - 1, budget)
            gathered = sizes.qkv_bytes if index == len(sizes.tiles) - 1 else 0
            in_one = len(sizes.tiles) == 1
            if self._policy.tile_place(index) is TilePlace.RECOMPUTE and not in_one:
                seconds = sizes.tiles[index].pre_s + sizes.overhead_s
                build.compute("pre again", seconds, alloc_bytes=gathered)
            else:
                take(build, self._host.qkv.get(index))
                build.compute("gather", 0.0, alloc_bytes=gathered)
        build.at(Phase.BACKWARD, self._block)
        scratch = sizes.backward_scratch_bytes
        build.compute(
            "attention again",
            sizes.attention_s,
            alloc_bytes=scratch + sizes.o_bytes + sizes.attention_bytes,
            free_bytes=scratch,
        )

    def _post(self, index: int, budget: CopyBudget) -> None:
        build, sizes, tile = self._build, self._sizes, self._sizes.tiles[index]
        scratch, o_is_new = sizes.backward_scratch_bytes, self._policy.o is Place.RECOMPUTE
        self._prefetch_tile(index - 1, budget)
        if self._policy.tile_place(index) is not TilePlace.RECOMPUTE:
            take(build, self._host.qkv.get(index))
            take(build, self._host.post.get(index))
        elif budget.park_pre:
            self._recompute_pre(index, tile)
            half_s = sizes.overhead_s / 2
            build.compute("recompute post", tile.post_s + half_s, alloc_bytes=tile.post_bytes)
        else:
            seconds = tile.pre_s + tile.post_s + sizes.overhead_s
            build.compute("recompute", seconds, alloc_bytes=tile.saved_bytes)
        # dx and do, and q, k and v unless they have been gathered to make o.
        wholes = sizes.x_bytes + sizes.o_bytes + (0 if o_is_new else sizes.qkv_bytes)
        build.compute(
            "post backward",
            tile.post_backward_s + sizes.overhead_s / 2,
            alloc_bytes=scratch + (wholes if index == len(sizes.tiles) - 1 else 0),
            free_bytes=scratch + tile.post_bytes + tile.qkv_bytes,
        )

    def _prefetch_tile(self, index: int, budget: CopyBudget) -> None:
        """Start the copies back of the tile whose turn is next, if there is room for it."""
        group = self._host.of_tile(index)
        if (
            index < 0
            or sum(o.num_bytes for o in group if not o.taken) > budget.ahead_bytes[self._block]
        ):
            return
        for one in group:
            one.fetch(self._build)
        if not budget.park_pre:
            fetch(self._build, self._host.pre.get(index))

    def _recompute_pre(self, index: int, tile: TileShape) -> None:
        build, seconds = self._build, tile.pre_s + self._sizes.overhead_s / 2
        build.compute("recompute pre", seconds, alloc_bytes=tile.pre_bytes + tile.qkv_bytes)
        parked = send(build, "saved by pre", tile.pre_bytes)
        if parked is not None:
            self._host.pre[index] = parked

    def _attention(self, collective_bytes: int) -> None:
        build, sizes = self._build, self._sizes
        scratch = sizes.backward_scratch_bytes
        take(build, self._host.attention)
        # dk, dq and dv take the place of q, k and v; o and do are through.
        exchange(build, "gradient of o", collective_bytes)
        build.compute(
            "attention backward",
            sizes.attention_backward_s,
            alloc_bytes=scratch + sizes.qkv_bytes,
            free_bytes=scratch + sizes.qkv_bytes + 2 * sizes.o_bytes + sizes.attention_bytes,
        )
        exchange(build, "gradients of q, k, v", collective_bytes)

    def _pre(self, index: int) -> None:
        build, sizes, tile = self._build, self._sizes, self._sizes.tiles[index]
        scratch = sizes.backward_scratch_bytes
        fetch(build, self._host.pre.get(index - 1))
        take(build, self._host.pre.get(index))
        # x, dy and the gradients of q, k and v go when the first tile is done.
        wholes = 2 * sizes.x_bytes + sizes.qkv_bytes if index == 0 else 0
        build.compute(
            "pre backward",
            tile.pre_backward_s + sizes.overhead_s / 2,
            alloc_bytes=scratch,
            free_bytes=scratch + tile.pre_bytes + wholes,
        )
