"""A policy for a shorter sequence than it was made for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memo_planner import BlockPolicy, Place, Policy
from memo_planner.programme import predict
from memo_planner.programme._prediction import kept_bytes_by_block
from tests.planner.cases import small_profile


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    tokens = draw(st.integers(1, 80))
    tile_tokens = draw(st.integers(1, tokens))
    num_tiles = -(-tokens // tile_tokens)
    blocks = []
    for _ in range(2):
        swap = draw(st.integers(0, num_tiles))
        recompute = draw(st.integers(0, num_tiles - swap))
        blocks.append(
            BlockPolicy(
                keep_tiles=num_tiles - swap - recompute,
                swap_tiles=swap,
                recompute_tiles=recompute,
                x=draw(st.sampled_from([Place.KEEP, Place.SWAP])),
                o=draw(st.sampled_from([Place.KEEP, Place.SWAP])),
            )
        )
    return Policy(tokens=tokens, tile_tokens=tile_tokens, blocks=tuple(blocks))


@given(policies(), st.data())
def test_a_shorter_sequence_needs_no_more_anywhere(policy: Policy, data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, policy.tokens))
    shorter, profile = policy.shorter(tokens), small_profile()
    assert shorter.tokens == tokens
    assert shorter.tile_tokens == min(policy.tile_tokens, tokens)
    kept = zip(
        kept_bytes_by_block(profile, shorter), kept_bytes_by_block(profile, policy), strict=True
    )
    assert all(less <= more for less, more in kept)
    less, more = predict(profile, shorter), predict(profile, policy)
    assert less.device_peak_bytes <= more.device_peak_bytes
    assert less.host_peak_bytes <= more.host_peak_bytes


@given(policies())
def test_the_same_length_is_the_same_policy(policy: Policy) -> None:
    assert policy.shorter(policy.tokens) == policy
