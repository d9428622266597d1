"""Forward of one block by tiles, as the runtime runs it."""

from __future__ import annotations

from memo_planner.policy import BlockPolicy, Place, TilePlace
from memo_planner.schedule.builder import ScheduleBuilder
from memo_planner.schedule.operation import Phase
from memo_planner.schedule.swapped import BlockOnHost, Swapped, send
from memo_planner.schedule.tile_shape import BlockSizes, TileShape


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
