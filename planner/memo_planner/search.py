"""The best policy over all tile sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memo_planner.blocks import Offer, draft, solve_blocks
from memo_planner.cost import BlockShape
from memo_planner.feasible import alpha_block, shortage
from memo_planner.limits import Limits
from memo_planner.policy import BlockPolicy, Policy
from memo_planner.prediction import predict
from memo_planner.request import Request


def find_policy(request: Request, tokens: int, below_s: float = float("inf")) -> Policy | None:
    """The policy that adds least seconds, if that is less than `below_s`; else None.

    Among tile sizes that are equally fast the largest is taken. Raises: SolverError.
    """
    fits = _fitting(request, tokens)
    if request.alpha is not None:
        return _best_alpha(fits, request.alpha, below_s)
    return _best_offer(list(_offers(fits, request.limits, below_s)), request, below_s)


def beats(request: Request, tokens: int, below_s: float, tile_tokens: int) -> bool:
    """Whether some policy adds less than `below_s` seconds; `tile_tokens` is looked at first.

    Raises: SolverError.
    """
    fits = _fitting(request, tokens)
    if request.alpha is not None:
        return _best_alpha(fits, request.alpha, below_s) is not None
    doubtful = []
    for item in _offers(
        sorted(fits, key=lambda shape: shape.tile_tokens != tile_tokens), request.limits, below_s
    ):
        if item.reached_s < below_s:
            return True
        doubtful.append(item)
    return _best_offer(doubtful, request, below_s) is not None


def _fitting(request: Request, tokens: int) -> list[BlockShape]:
    """The shapes that some plan fits, largest tile first."""
    return [
        shape
        for shape in request.shapes(tokens)
        if shortage(shape, request.limits, request.alpha) is None
    ]


def _best_offer(offers: list[Offer], request: Request, below_s: float) -> Policy | None:
    """The best policy of all offers, if it adds less than `below_s`."""
    best: Policy | None = None
    best_s = below_s
    for first in sorted(offers, key=lambda item: item.bound_s):
        larger = best is not None and first.shape.tile_tokens > best.tile_tokens
        worth_s = best_s + first.problem.gap_s * (1 if larger else -1 if best else 0)
        if first.bound_s < worth_s:
            policy = _policy(first.shape, solve_blocks(first, request.limits))
            extra_s = predict(request.profile, policy).extra_s
            if extra_s < worth_s:
                best, best_s = policy, extra_s
    return best


def _offers(shapes: list[BlockShape], limits: Limits, below_s: float) -> Iterator[Offer]:
    """Offers of the shapes that have a chance, in their order.

    A shape has none where its overhead alone takes as long as allowed, or its bound does at the
    prices of an offer before it.
    """
    allowed_s, prices = below_s, None
    for shape in shapes:
        if shape.overhead_s * shape.profile.num_blocks >= allowed_s:
            continue
        item = draft(shape, limits)
        if prices is not None and item.bound_s(prices) >= allowed_s:
            continue
        offer = item.offer()
        prices = offer.relaxed.prices
        allowed_s = min(allowed_s, offer.reached_s + offer.problem.gap_s)
        yield offer


def _best_alpha(shapes: list[BlockShape], alpha: float, below_s: float) -> Policy | None:
    best: Policy | None = None
    for shape in shapes:
        blocks = [alpha_block(shape, alpha)] * shape.profile.num_blocks
        policy = _policy(shape, blocks)
        extra_s = predict(shape.profile, policy).extra_s
        if extra_s < below_s:
            best, below_s = policy, extra_s
    return best


def _policy(shape: BlockShape, blocks: Sequence[BlockPolicy]) -> Policy:
    return Policy(tokens=shape.tokens, tile_tokens=shape.tile_tokens, blocks=tuple(blocks))
