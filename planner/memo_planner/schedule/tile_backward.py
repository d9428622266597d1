"""Backward of one block by tiles, as the runtime runs it."""

from __future__ import annotations

from collections.abc import Callable

from memo_planner.copy_budget import CopyBudget
from memo_planner.policy import BlockPolicy, Place, TilePlace
from memo_planner.schedule.builder import ScheduleBuilder
from memo_planner.schedule.operation import Phase
from memo_planner.schedule.swapped import BlockOnHost, fetch, send, take
from memo_planner.schedule.tile_forward import exchange
from memo_planner.schedule.tile_shape import BlockSizes, TileShape

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
        """Make o again from x: pre of the tiles whose q, k and v are not saved, attention."""
        build, sizes = self._build, self._sizes
        for index in reversed(range(len(sizes.tiles))):
            build.at(Phase.BACKWARD, self._block, index)
            self._prefetch_tile(index - 1, budget)
            if self._policy.tile_place(index) is TilePlace.RECOMPUTE:
                self._recompute_pre(index, sizes.tiles[index], park=budget.park_pre)
            else:
                take(build, self._host.qkv.get(index))
        build.at(Phase.BACKWARD, self._block)
        scratch = sizes.backward_scratch_bytes
        build.compute(
            "attention again",
            sizes.attention_s,
            alloc_bytes=scratch + sizes.qkv_bytes + sizes.o_bytes + sizes.attention_bytes,
            free_bytes=scratch,
        )

    def _post(self, index: int, budget: CopyBudget) -> None:
        build, sizes, tile = self._build, self._sizes, self._sizes.tiles[index]
        scratch, o_is_new = sizes.backward_scratch_bytes, self._policy.o is Place.RECOMPUTE
        self._prefetch_tile(index - 1, budget)
        if self._policy.tile_place(index) is not TilePlace.RECOMPUTE:
            take(build, self._host.qkv.get(index))
            take(build, self._host.post.get(index))
        elif budget.park_pre or o_is_new:
            if not o_is_new:
                self._recompute_pre(index, tile, park=True)
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

    def _recompute_pre(self, index: int, tile: TileShape, *, park: bool) -> None:
        build, seconds = self._build, tile.pre_s + self._sizes.overhead_s / 2
        build.compute("recompute pre", seconds, alloc_bytes=tile.pre_bytes + tile.qkv_bytes)
        parked = send(build, "saved by pre", tile.pre_bytes) if park else None
        if parked is not None:
            self._host.pre[index] = parked

    def _attention(self, collective_bytes: int) -> None:
        build, sizes = self._build, self._sizes
        scratch = sizes.backward_scratch_bytes
        take(build, self._host.attention)
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
