"""The fastest plan that fits, and which of its limits hold it back."""

from __future__ import annotations

from dataclasses import replace

from memo_planner.candidates import EQUAL_SHARE
from memo_planner.checks import check_int
from memo_planner.cost import BlockShape
from memo_planner.errors import PlanInfeasible
from memo_planner.length import longest_below
from memo_planner.limits import Limits
from memo_planner.plan import Plan
from memo_planner.policy import MAX_TOKENS, Policy
from memo_planner.prediction import predict
from memo_planner.profile import Link, Profile
from memo_planner.request import Request
from memo_planner.search import beats, find_policy

_FREE_BYTES_PER_S = 2.0**60


def make_plan(
    profile: Profile,
    tokens: int,
    limits: Limits,
    *,
    alpha: float | None = None,
    tile_tokens: int | None = None,
    attention_again: bool = False,
) -> Plan:
    """The plan of one step over `tokens` tokens that adds least time and fits `limits`.

    With `alpha` given, every block swaps round(alpha * tiles) tiles, recomputes the rest and swaps
    x and o. Without it each block's tiles, x and o are placed by an integer programme over all
    block policies where a block has at most `candidates.EXACT_TILES` tiles, and over successively
    finer grids of them above that. Plans that differ by less than `candidates.EQUAL_SHARE` of a
    step count as equally fast; of those, keep goes before swap before recompute.
    `tile_tokens` None tries tile sizes and takes the larger of equals; a given one is cut to
    `tokens`. With `attention_again` a block may also save x alone and run attention again.

    Raises: PlanInfeasible if nothing fits; InvalidInput; SolverError.
    Source: MEMO §alpha.
    """
    check_int("tokens", tokens, 1, MAX_TOKENS)
    request = Request(
        profile=profile,
        limits=limits,
        alpha=alpha,
        tile_tokens=tile_tokens,
        attention_again=attention_again,
    )
    short = request.shortage(tokens)
    if short is not None:
        longest = longest_below(request, tokens)
        raise PlanInfeasible(short.what, short.where, short.need_bytes, short.limit_bytes, longest)
    policy = find_policy(request, tokens)
    assert policy is not None, f"{tokens} tokens fit {limits}, so some tile size was solved"
    prediction = predict(profile, policy, _binds(request, policy))
    return Plan.of(profile=profile, limits=limits, policy=policy, prediction=prediction)


def _binds(request: Request, policy: Policy) -> tuple[str, ...]:
    """The limits without which, one at a time, a plan made the same way would be faster."""
    profile, limits = request.profile, request.limits
    plain_s = BlockShape(
        profile=profile, tokens=policy.tokens, tile_tokens=policy.tile_tokens
    ).plain_s
    extra_s = predict(profile, policy).extra_s
    below_s = extra_s - 2 * EQUAL_SHARE * plain_s * profile.num_blocks
    if below_s <= 0:
        return ()
    without = {
        "device": replace(request, limits=replace(limits, device_bytes=None)),
        "host": replace(request, limits=replace(limits, host_bytes=None)),
        "forward window": _with_link(request, d2h_bytes_per_s=_FREE_BYTES_PER_S),
        "backward window": _with_link(request, h2d_bytes_per_s=_FREE_BYTES_PER_S),
    }
    return tuple(
        name
        for name, other in without.items()
        if other != request and beats(other, policy.tokens, below_s, policy.tile_tokens)
    )


def _with_link(request: Request, **speed: float) -> Request:
    link: Link = replace(request.profile.link, **speed)
    return replace(request, profile=replace(request.profile, link=link))
