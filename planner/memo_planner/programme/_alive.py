"""Device bytes alive at every point of a step, block by block, from the kinds of blocks.

A block's forward and backward need what its kind was measured to need in each way of running its
tiles; of a block that mixes ways the highest, less what a step of that way alone keeps more.
Before them stand the state, what earlier blocks keep, and in backward the gradients of later ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from memo_planner.kinds import BACKWARD_STAGES, FORWARD_STAGES, BlockKind, SavedPerToken
from memo_planner.limits import Limits
from memo_planner.policy import BlockPolicy, Place, Policy, TilePlace
from memo_planner.profile import Profile


@dataclass(frozen=True, kw_only=True)
class StepPoint:
    """Device bytes in use at one point of the step."""

    name: str
    device_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Fetch:
    """What comes back before its turn in one block's backward.

    before_bytes: tiles of its own, while the block after it ran. ahead_bytes: what its backward may
    take for more. early_bytes, late_bytes: of the block that comes next, from attention's backward
    on and after it.
    """

    before_bytes: int
    ahead_bytes: int
    early_bytes: int
    late_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Block:
    """One block under its policy. tokens, tile_tokens, num_groups: of the step."""

    kind: BlockKind
    policy: BlockPolicy
    tokens: int
    tile_tokens: int
    num_groups: int

    @property
    def kept_tokens(self) -> int:
        return self.policy.kept_tokens(self.tokens, self.tile_tokens)

    @property
    def swapped_tokens(self) -> int:
        return min(self.policy.swap_tiles * self.tile_tokens, self.tokens)

    @cached_property
    def ways(self) -> tuple[TilePlace, ...]:
        """Those in which some tile is run."""
        counts = {
            TilePlace.SWAP: self.policy.swap_tiles,
            TilePlace.RECOMPUTE: self.policy.recompute_tiles,
            TilePlace.KEEP: self.policy.keep_tiles,
        }
        return tuple(way for way, count in counts.items() if count)

    @property
    def is_tiled(self) -> bool:
        return any(peak.stage in FORWARD_STAGES for peak in self.kind.peaks)

    @cached_property
    def x_bytes(self) -> int:
        return math.ceil(self.saved.x_bytes_per_token * self.tokens)

    @cached_property
    def o_bytes(self) -> int:
        return math.ceil(self.saved.o_bytes_per_token * self.tokens)

    @cached_property
    def saved(self) -> SavedPerToken:
        return self.kind.saved(self.tokens, self.tile_tokens)

    def peak(self, way: TilePlace, *stages: str) -> int:
        shape = (self.tokens, self.tile_tokens)
        return max(self.kind.peak_bytes(stage, way, *shape) for stage in stages)

    @cached_property
    def forward_bytes(self) -> int:
        """Most bytes of its forward above what is there before it."""
        if not self.is_tiled:
            return self.peak(TilePlace.RECOMPUTE, "between")
        before_post = self.saved.pre_bytes_per_token + self.saved.qkv_bytes_per_token
        saved = (before_post, before_post, self.saved.kept_tile_bytes_per_token)
        return max(
            self.peak(way, stage) - self._not_kept(way, per_token)
            for way in self.ways
            for stage, per_token in zip(FORWARD_STAGES, saved, strict=True)
        )

    def backward_bytes(self, fetch: _Fetch) -> int:
        """Most bytes of its backward, with what it fetches for the block that comes next."""
        if not self.is_tiled:
            return self.peak(TilePlace.RECOMPUTE, "between", "loss")
        post, attention, pre = BACKWARD_STAGES
        return max(
            max(self._post_backward(way, post, fetch) for way in self.ways),
            max(self._attention_backward(way, attention, fetch) for way in self.ways),
            max(self._pre_backward(way, pre, fetch) for way in self.ways),
        )

    def fetched_bytes(self, limit_bytes: int) -> tuple[int, int]:
        """What comes back of the block before its turn: of x and o, then of its tiles, last first.

        limit_bytes: what it may take.
        """
        wholes = 0
        # By groups of heads x and o come back by tiles and in planes, when their turn is.
        swapped = ((self.policy.x, self.x_bytes), (self.policy.o, self.o_bytes))
        for place, num_bytes in swapped if self.num_groups == 1 else ():
            if place is Place.SWAP and self.is_tiled:
                if wholes + num_bytes > limit_bytes:
                    return wholes, 0
                wholes += num_bytes
        num_tiles = min(self.policy.swap_tiles, (limit_bytes - wholes) // max(self.tile_bytes, 1))
        return wholes, min(num_tiles * self.tile_bytes, self.sent_tile_bytes)

    @cached_property
    def _per_tile_token(self) -> float:
        """Bytes that come back for post's backward and attention's."""
        return self.saved.qkv_bytes_per_token + self.saved.post_bytes_per_token

    @cached_property
    def tile_bytes(self) -> int:
        """Bytes of one tile that come back for post's backward and attention's."""
        return math.ceil(self._per_tile_token * self.tile_tokens)

    @cached_property
    def sent_tile_bytes(self) -> int:
        """The same of all swapped tiles."""
        return math.ceil(self._per_tile_token * self.swapped_tokens)

    @cached_property
    def freed_bytes(self) -> int:
        """What is free when attention's backward is over: q, k, v and o, where they were whole."""
        if self.num_groups > 1:
            return 0
        return self.o_bytes + math.ceil(self.saved.qkv_bytes_per_token * self.tokens)

    def _not_kept(self, way: TilePlace, per_token: float) -> int:
        """What a step that keeps all tiles holds and this one does not."""
        if way is not TilePlace.KEEP:
            return 0
        return int(per_token * (self.tokens - self.kept_tokens))

    def _post_backward(self, way: TilePlace, stage: str, fetch: _Fetch) -> int:
        """At the tile of that way at which most is there. Kept tiles come first, swapped last."""
        peak = self.peak(way, stage)
        if way is TilePlace.RECOMPUTE:
            swapped_bytes = int(self.saved.pre_bytes_per_token * self.swapped_tokens)
            return peak - swapped_bytes + fetch.before_bytes
        saved = self.saved.kept_tile_bytes_per_token
        if way is TilePlace.KEEP:
            return peak - self._not_kept(way, saved) + fetch.before_bytes
        early = fetch.before_bytes
        pre_bytes = self._early_pre_bytes(fetch)
        if pre_bytes:  # the next tile comes while one runs
            early = max(early, min(2 * self.tile_bytes, self.sent_tile_bytes)) + pre_bytes
        if early:  # a tile is there as a kept one is, and not tensor by tensor as it needs them
            kept_peak = self.peak(TilePlace.KEEP, stage) - int(saved * self.tokens)
            peak = max(peak, kept_peak + early)
        return peak + self._pre_of_others_bytes

    def _attention_backward(self, way: TilePlace, stage: str, fetch: _Fetch) -> int:
        """What pre saved is there, but for swapped tiles that nobody fetched."""
        peak = self.peak(way, stage) + fetch.early_bytes
        if way is TilePlace.SWAP:
            return peak + self._pre_of_others_bytes + self._early_pre_bytes(fetch)
        return peak - int(self.saved.pre_bytes_per_token * self.swapped_tokens)

    def _pre_backward(self, way: TilePlace, stage: str, fetch: _Fetch) -> int:
        """The same; of swapped tiles one is there, and the next on its way."""
        peak = self.peak(way, stage) + fetch.late_bytes
        if way is TilePlace.SWAP:
            two_tiles = math.ceil(2 * self.saved.pre_bytes_per_token * self.tile_tokens)
            early = max(self._early_pre_bytes(fetch) - two_tiles, 0)
            return peak + self._pre_of_others_bytes + early
        return peak - int(self.saved.pre_bytes_per_token * self.swapped_tokens)

    def _early_pre_bytes(self, fetch: _Fetch) -> int:
        """What pre saved of swapped tiles, where it comes with the rest of each."""
        if self.tile_bytes > fetch.ahead_bytes:
            return 0
        return math.ceil(self.saved.pre_bytes_per_token * self.swapped_tokens)

    @property
    def _pre_of_others_bytes(self) -> int:
        others = self.tokens - self.swapped_tokens
        return math.ceil(self.saved.pre_bytes_per_token * others)


def alive_points(
    profile: Profile, policy: Policy, kept_bytes: Sequence[int], ahead_bytes: Sequence[int]
) -> list[StepPoint]:
    """Device bytes alive at every point, in the order of the step, of a profile that has kinds.

    kept_bytes: [blocks] left on the device after each block's forward. ahead_bytes: [blocks] that
    may come back before their turn in each block's backward.
    """
    # Most blocks are of one kind and one policy: what is found for one is found for all.
    distinct = {
        (kind, one): _Block(
            kind=profile.kinds[kind],
            policy=one,
            tokens=policy.tokens,
            tile_tokens=policy.tile_tokens,
            num_groups=policy.num_groups,
        )
        for kind, one in zip(profile.kind_of_block, policy.blocks, strict=True)
    }
    blocks = [distinct[key] for key in zip(profile.kind_of_block, policy.blocks, strict=True)]
    base = profile.state_bytes - profile.gradient_bytes
    forward, held = [], 0
    for index, block in enumerate(blocks):
        name = f"forward of block {index}"
        forward.append(StepPoint(name=name, device_bytes=base + held + block.forward_bytes))
        held += kept_bytes[index]
    outside = max(block.peak(TilePlace.RECOMPUTE, "loss") for block in blocks)
    loss = StepPoint(name="loss", device_bytes=base + held + outside)
    backward, made, before = [], 0, 0
    for index in reversed(range(len(blocks))):
        held -= kept_bytes[index]
        previous = blocks[index - 1] if index else None
        fetch, before = _fetch(blocks[index], previous, before, ahead_bytes[index])
        bytes_alive = base + held + made + blocks[index].backward_bytes(fetch)
        backward.append(StepPoint(name=f"backward of block {index}", device_bytes=bytes_alive))
        # Where they are not taken out of the state, gradients are there all along.
        made += blocks[index].kind.gradient_bytes if profile.gradient_bytes else 0
    points = [*forward, loss, *backward, _end(blocks, base + made, profile)]
    return [_with_small_tensors(point, base) for point in points]


_SMALL_SHARE = 0.005
"""Of what is above the state: rounding to the device's alignment, counters, masks, what experts
are given more than in the profile."""


def _with_small_tensors(point: StepPoint, base_bytes: int) -> StepPoint:
    more = math.ceil(_SMALL_SHARE * max(point.device_bytes - base_bytes, 0))
    return replace(point, device_bytes=point.device_bytes + more)


def _fetch(
    block: _Block, previous: _Block | None, before_bytes: int, ahead_bytes: int
) -> tuple[_Fetch, int]:
    """What a block's backward fetches, and how much of it is of the previous block's tiles."""
    if previous is None or not block.is_tiled:
        early = late = (0, 0)
    else:
        early = previous.fetched_bytes(ahead_bytes)
        late = previous.fetched_bytes(ahead_bytes + block.freed_bytes)
    fetch = _Fetch(
        before_bytes=before_bytes,
        ahead_bytes=ahead_bytes,
        early_bytes=sum(early),
        late_bytes=sum(late),
    )
    return fetch, late[1]


def _end(blocks: Sequence[_Block], before_bytes: int, profile: Profile) -> StepPoint:
    """After the last backward of a block, when the embedding's gradient is made."""
    own = [block.kind.gradient_bytes if profile.gradient_bytes else 0 for block in blocks]
    outside = max(
        block.peak(TilePlace.RECOMPUTE, "between") - gradients
        for block, gradients in zip(blocks, own, strict=True)
    )
    return StepPoint(name="embedding backward", device_bytes=before_bytes + max(outside, 0))


HOLES_SHARE = 0.15
"""Of the bytes for activations; tensors that wait for copies live irregularly and leave holes."""
NO_LIMIT_BYTES = 2**62


def free_bytes(profile: Profile, limits: Limits, point: StepPoint) -> int:
    """Bytes that a limit leaves free at a point, less some for holes."""
    limit = limits.device_bytes
    if limit is None:
        return NO_LIMIT_BYTES
    free = limit - point.device_bytes
    return max(0, int(free - HOLES_SHARE * (limit - profile.state_bytes)))
