"""Costs of a policy, worked out tile by tile without the planner's cost model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

from memo_planner import BlockPolicy, Limits, Place, Policy, Profile, TilePlace


@dataclass
class Tally:
    device_bytes: int = 0
    host_bytes: int = 0
    extra_s: float = 0.0


def tile_sizes(tokens: int, tile_tokens: int) -> list[int]:
    return [min(tile_tokens, tokens - start) for start in range(0, tokens, tile_tokens)]


def block_tokens(policy: Policy, block: BlockPolicy) -> dict[TilePlace, int]:
    counted = dict.fromkeys(TilePlace, 0)
    for index, size in enumerate(tile_sizes(policy.tokens, policy.tile_tokens)):
        counted[block.tile_place(index)] += size
    return counted


def block_bytes(profile: Profile, policy: Policy, block: BlockPolicy) -> dict[Place, int]:
    """Bytes kept and bytes swapped of one block."""
    tokens = block_tokens(policy, block)
    per_token = (
        profile.pre_bytes_per_token + profile.post_bytes_per_token + profile.qkv_bytes_per_token
    )
    total = {
        Place.KEEP: math.ceil(tokens[TilePlace.KEEP] * per_token),
        Place.SWAP: math.ceil(tokens[TilePlace.SWAP] * per_token),
    }
    total[block.x] += math.ceil(profile.x_bytes_per_token * policy.tokens)
    o_per_token = profile.o_bytes_per_token + profile.attention_bytes_per_token
    if block.o is not Place.RECOMPUTE:
        total[block.o] += math.ceil(o_per_token * policy.tokens)
    return total


def tally(profile: Profile, policy: Policy) -> Tally:
    """Peak device bytes over the step, host bytes, and seconds over a plain step."""
    total, kept = Tally(), 0
    times, size = profile.times, policy.tokens
    num_tiles = len(tile_sizes(size, policy.tile_tokens))
    tilewise = times.pre_s_per_token + times.post_s_per_token
    backward = times.pre_backward_s_per_token + times.post_backward_s_per_token
    for block in policy.blocks:
        moved = block_bytes(profile, policy, block)
        kept += moved[Place.KEEP]
        total.host_bytes += moved[Place.SWAP]
        overhead_s = max(times.tile_overhead_s, times.tile_issue_s - tilewise * policy.tile_tokens)
        passes = num_tiles * overhead_s
        recompute_s = block_tokens(policy, block)[TilePlace.RECOMPUTE] * tilewise
        recompute_s += block.recompute_tiles * overhead_s
        if block.o is Place.RECOMPUTE:
            recompute_s += times.attention_s_per_token2 * size**2
            pre_again = block_tokens(policy, block)[TilePlace.RECOMPUTE] * times.pre_s_per_token
            if block.num_tiles > 1:  # one tile is a checkpointed block
                recompute_s += pre_again + block.recompute_tiles * overhead_s
        swap_s = block_tokens(policy, block)[TilePlace.SWAP] * times.swap_s_per_token
        forward_s = swap_s + tilewise * size + times.attention_s_per_token2 * size**2 + passes
        backward_s = backward * size + times.attention_backward_s_per_token2 * size**2 + passes
        sent_s = moved[Place.SWAP] / profile.link.d2h_bytes_per_s
        fetched_s = moved[Place.SWAP] / profile.link.h2d_bytes_per_s
        stall_s = max(0.0, sent_s - forward_s) + max(0.0, fetched_s - backward_s - recompute_s)
        total.extra_s += swap_s + recompute_s + stall_s + 2 * passes
    highest = max(
        math.ceil(
            line.base_bytes
            + line.bytes_per_tile_token * policy.tile_tokens
            + line.bytes_per_token * size
        )
        for line in profile.peaks
    )
    total.device_bytes = profile.state_bytes + highest + kept
    return total


def fits(total: Tally, limits: Limits) -> bool:
    device = limits.device_bytes is None or total.device_bytes <= limits.device_bytes
    return device and (limits.host_bytes is None or total.host_bytes <= limits.host_bytes)


def block_policies(num_tiles: int, attention_again: bool = False) -> Iterator[BlockPolicy]:
    counts, saved = range(num_tiles + 1), (Place.KEEP, Place.SWAP)
    for swap, recompute, x, o in product(counts, counts, saved, Place):
        keep = num_tiles - swap - recompute
        if o is Place.RECOMPUTE and not attention_again:
            continue
        if keep >= 0:
            yield BlockPolicy(keep_tiles=keep, swap_tiles=swap, recompute_tiles=recompute, x=x, o=o)


def best_extra_s(
    profile: Profile, tokens: int, tile_tokens: int, limits: Limits, attention_again: bool = False
) -> float | None:
    """Least extra seconds over every combination of block policies; None if none fits."""
    one = {
        block: tally(profile, Policy(tokens=tokens, tile_tokens=tile_tokens, blocks=(block,)))
        for block in block_policies(len(tile_sizes(tokens, tile_tokens)), attention_again)
    }
    empty = min(total.device_bytes for total in one.values())
    best: float | None = None
    for blocks in combinations_with_replacement(one.values(), profile.num_blocks):
        kept = sum(block.device_bytes - empty for block in blocks)
        total = Tally(
            empty + kept, sum(b.host_bytes for b in blocks), sum(b.extra_s for b in blocks)
        )
        if fits(total, limits) and (best is None or total.extra_s < best):
            best = total.extra_s
    return best
