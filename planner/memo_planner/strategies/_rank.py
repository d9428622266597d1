"""A job's plan as one of its ranks carries it out: in the rank's own tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memo_planner.errors import InvalidInput
from memo_planner.plan import Plan
from memo_planner.policy import Policy
from memo_planner.profile import BlockTimes, PeakLine, Profile
from memo_planner.programme import predict


def rank_plan(plan: Plan) -> Plan:
    """`plan` of a job with its tokens counted on each of the ranks that share a sequence.

    The same blocks keep, swap and recompute as many tiles. A plan without a setting is a rank's.
    Raises: InvalidInput if ranks cannot cut the tiles alike.
    """
    if plan.setting is None:
        return plan
    ranks, whole = plan.setting.ranks_of_sequence, plan.policy
    tokens, tile_tokens = whole.tokens // ranks, -(-whole.tile_tokens // ranks)
    if whole.tokens % ranks or -(-tokens // tile_tokens) != whole.num_tiles:
        raise InvalidInput(
            f"policy.tile_tokens is {whole.tile_tokens:,} of {whole.tokens:,} tokens; {ranks} "
            f"ranks cannot cut their {tokens:,} into {whole.num_tiles:,} tiles alike"
        )
    policy = Policy(tokens=tokens, tile_tokens=tile_tokens, blocks=whole.blocks)
    profile = _of_own_tokens(plan.profile, ranks)
    prediction = predict(profile, policy, plan.prediction.binds, plan.limits)
    return Plan.of(profile=profile, limits=plan.limits, policy=policy, prediction=prediction)


def _of_own_tokens(profile: Profile, ranks: int) -> Profile:
    """A token of the rank's own stands for as many of the whole sequence as there are ranks."""
    names = (n for n in profile.__dataclass_fields__ if "_per_token" in n)
    figures: dict[str, Any] = _scaled({name: getattr(profile, name) for name in names}, ranks)
    times = {n: getattr(profile.times, n) for n in profile.times.__dataclass_fields__}
    return replace(
        profile,
        peaks=tuple(_line(line, ranks) for line in profile.peaks),
        times=BlockTimes(**_scaled(times, ranks)),
        exchange=profile.exchange and profile.exchange.times(ranks),
        **figures,
    )


def _line(line: PeakLine, ranks: int) -> PeakLine:
    names = ("bytes_per_tile_token", "bytes_per_token", "bytes_per_token2")
    figures: dict[str, Any] = _scaled({name: getattr(line, name) for name in names}, ranks)
    return replace(line, **figures)


def _scaled(figures: dict[str, float], ranks: int) -> dict[str, float]:
    powers = {n: 2 if n.endswith("token2") else int("token" in n) for n in figures}
    return {name: value * ranks ** powers[name] for name, value in figures.items()}
