"""The fastest plan that fits, over all tile sizes, what holds it back, and the longest sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from memo_planner.checks import check_int, check_number
from memo_planner.errors import InvalidInput, PlanInfeasible, format_bytes
from memo_planner.limits import Limits
from memo_planner.plan import Plan
from memo_planner.policy import MAX_TOKENS, BlockPolicy, Policy
from memo_planner.profile import Link, Profile
from memo_planner.programme._blocks import EQUAL_SHARE, Offer, draft, solve_blocks
from memo_planner.programme._cost import BlockShape
from memo_planner.programme._feasible import Shortage, alpha_block, shortage
from memo_planner.programme._prediction import extra_s, host_bytes, predict

SMALLEST_TILE = 64
# Any alpha is that close to some eighth, the paper's step.
_ALPHA_SLACK = 1 / 16
# A link so fast that no window of it can bind.
_FREE_BYTES_PER_S = 2.0**60


@dataclass(frozen=True, kw_only=True)
class Question:
    """Profile, limits and the user's own choices. Raises: InvalidInput.

    `attention_again`: whether attention may run again where o fits nowhere. `branches`: whether
    branch and bound looks for what rounding and exchanging blocks in pairs do not reach.
    """

    profile: Profile
    limits: Limits
    alpha: float | None
    tile_tokens: int | None
    attention_again: bool = False
    branches: bool = True

    def __post_init__(self) -> None:
        if self.alpha is not None and check_number("alpha", self.alpha) > 1:
            raise InvalidInput(f"alpha is {self.alpha}; it must be from 0 to 1")
        if self.alpha and self.profile.num_groups > 1:
            raise InvalidInput(
                f"alpha is {self.alpha}; by groups of heads ({self.profile.num_groups} here) all "
                "tiles are recomputed: leave it out, or give 0"
            )
        if self.tile_tokens is not None:
            check_int("tile_tokens", self.tile_tokens, 1, MAX_TOKENS)

    def shapes(self, tokens: int) -> list[BlockShape]:
        """Tile sizes to try, largest first: the whole sequence, then powers of two down to 64."""
        if self.tile_tokens is not None:
            return [self._shape(tokens, min(self.tile_tokens, tokens))]
        sizes, size = [tokens], SMALLEST_TILE
        while size < tokens:
            # Behind the whole sequence, before the smaller ones: largest first.
            sizes.insert(1, size)
            size *= 2
        shapes = [self._shape(tokens, tile_tokens) for tile_tokens in sizes]
        return shapes if self.alpha is None else _close_to(self.alpha, shapes)

    def shortage(self, tokens: int) -> Shortage | None:
        """None if some tile size fits; else what is short where least is missing."""
        shapes = self.shapes(tokens)
        if self.alpha is None:
            # Bytes grow with the tile: if the smallest does not fit, none does.
            shapes = shapes[-1:]
        found = [shortage(shape, self.limits, self.alpha) for shape in shapes]
        short = [item for item in found if item is not None]
        if len(short) < len(found):
            return None
        return min(short, key=lambda item: item.need_bytes / item.limit_bytes)

    def _shape(self, tokens: int, tile_tokens: int) -> BlockShape:
        return BlockShape(
            profile=self.profile,
            tokens=tokens,
            tile_tokens=tile_tokens,
            attention_again=self.attention_again,
        )


def _close_to(alpha: float, shapes: list[BlockShape]) -> list[BlockShape]:
    """Those shapes whose tiles can be split at `alpha` closely enough, or else the closest."""

    def miss(shape: BlockShape) -> float:
        return abs(round(alpha * shape.num_tiles) / shape.num_tiles - alpha)

    close = [shape for shape in shapes if miss(shape) <= _ALPHA_SLACK]
    return close or [min(shapes, key=miss)]


def max_tokens(
    profile: Profile,
    limits: Limits,
    *,
    alpha: float | None = None,
    tile_tokens: int | None = None,
    attention_again: bool = False,
) -> int:
    """Longest sequence, in tokens, for which `make_plan` finds a plan; 0 if there is none.

    Raises: InvalidInput, also where nothing limits the length.
    """
    question = Question(
        profile=profile,
        limits=limits,
        alpha=alpha,
        tile_tokens=tile_tokens,
        attention_again=attention_again,
    )
    if question.shortage(MAX_TOKENS) is None:
        raise InvalidInput(
            f"even {MAX_TOKENS:,} tokens fit: nothing limits the length; set a device or host limit"
        )
    return longest_below(question, MAX_TOKENS)


def longest_below(question: Question, too_long: int) -> int:
    """Longest length below `too_long`, which does not fit; bytes needed grow with the length."""
    return longest_that(lambda tokens: question.shortage(tokens) is None, too_long)


def longest_that(fits: Callable[[int], bool], too_long: int) -> int:
    """Longest length for which `fits` holds, below `too_long`, for which it does not; 0 if none.

    If a length fits, so does every shorter one.
    """
    longest = 0
    while too_long - longest > 1:
        middle = (longest + too_long) // 2
        if fits(middle):
            longest = middle
        else:
            too_long = middle
    return longest


def find_policy(question: Question, tokens: int, below_s: float = float("inf")) -> Policy | None:
    """The policy that adds least seconds, if that is less than `below_s`; else None.

    Among tile sizes that are equally fast the largest is taken. Raises: SolverError.
    """
    fits = _fitting(question, tokens)
    if question.alpha is not None:
        return _best_alpha(fits, question.alpha, below_s)
    return _best_offer(list(_offers(fits, question.limits, below_s)), question, below_s)


def beats(question: Question, tokens: int, below_s: float, tile_tokens: int) -> bool:
    """Whether some policy adds less than `below_s` seconds; `tile_tokens` is looked at first.

    Raises: SolverError.
    """
    fits = _fitting(question, tokens)
    if question.alpha is not None:
        return _best_alpha(fits, question.alpha, below_s) is not None
    doubtful = []
    for item in _offers(
        sorted(fits, key=lambda shape: shape.tile_tokens != tile_tokens), question.limits, below_s
    ):
        if item.reached_s < below_s:
            return True
        doubtful.append(item)
    return _best_offer(doubtful, question, below_s) is not None


def _fitting(question: Question, tokens: int) -> list[BlockShape]:
    """The shapes that some plan fits, largest tile first."""
    return [
        shape
        for shape in question.shapes(tokens)
        if shortage(shape, question.limits, question.alpha) is None
    ]


def _best_offer(offers: list[Offer], question: Question, below_s: float) -> Policy | None:
    """The best policy of all offers, if it adds less than `below_s`."""
    best: Policy | None = None
    best_s = below_s
    for first in sorted(offers, key=lambda item: item.bound_s):
        larger = best is not None and first.shape.tile_tokens > best.tile_tokens
        # Within a gap plans count as equally fast, and then the larger tile wins.
        worth_s = best_s + first.problem.gap_s * (1 if larger else -1 if best else 0)
        if first.bound_s < worth_s:
            blocks = solve_blocks(first, question.limits, branches=question.branches)
            policy = _policy(first.shape, blocks)
            added_s = extra_s(question.profile, policy)
            if added_s < worth_s:
                best, best_s = policy, added_s
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
        added_s = extra_s(shape.profile, policy)
        if added_s < below_s:
            best, below_s = policy, added_s
    return best


def _policy(shape: BlockShape, blocks: Sequence[BlockPolicy]) -> Policy:
    return Policy(
        tokens=shape.tokens,
        tile_tokens=shape.tile_tokens,
        blocks=tuple(blocks),
        num_groups=shape.profile.num_groups,
    )


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
    block policies where a block has at most `EXACT_TILES` tiles, and over successively
    finer grids of them above that. Plans that differ by less than `EQUAL_SHARE` of a
    step count as equally fast; of those, keep goes before swap before recompute.
    `tile_tokens` None tries tile sizes and takes the larger of equals; a given one is cut to
    `tokens`. With `attention_again` a block may also save x alone and run attention again.

    Raises: PlanInfeasible if nothing fits; InvalidInput; SolverError.
    Source: MEMO §alpha.
    """
    question = Question(
        profile=profile,
        limits=limits,
        alpha=alpha,
        tile_tokens=tile_tokens,
        attention_again=attention_again,
    )
    policy = _fastest(question, tokens)
    prediction = predict(profile, policy, _binds(question, policy), limits)
    return Plan.of(profile=profile, limits=limits, policy=policy, prediction=prediction)


def quick_plan(
    profile: Profile,
    tokens: int,
    limits: Limits,
    *,
    alpha: float | None = None,
    tile_tokens: int | None = None,
    attention_again: bool = False,
    branches: bool = True,
) -> Plan:
    """`make_plan` in a third of its time: it does not find out which limits bind.

    Without `branches` it takes what rounding and exchanging blocks in pairs reach, which may be
    further from the best than `EQUAL_SHARE`, and starts one process of the solver less.
    """
    question = Question(
        profile=profile,
        limits=limits,
        alpha=alpha,
        tile_tokens=tile_tokens,
        attention_again=attention_again,
        branches=branches,
    )
    policy = _fastest(question, tokens)
    prediction = predict(profile, policy, (), limits)
    return Plan.of(profile=profile, limits=limits, policy=policy, prediction=prediction)


def _fastest(question: Question, tokens: int) -> Policy:
    """Raises: as `make_plan`."""
    check_int("tokens", tokens, 1, MAX_TOKENS)
    short = question.shortage(tokens)
    if short is not None:
        raise PlanInfeasible(
            short.what,
            short.where,
            short.need_bytes,
            short.limit_bytes,
            longest_below(question, tokens),
            _advice(question.profile, tokens),
        )
    policy = find_policy(question, tokens)
    assert policy is not None, f"{tokens} tokens fit {question.limits}: some tile size was solved"
    need_bytes = host_bytes(question.profile, policy)
    over_bytes = need_bytes - (question.limits.host_bytes or need_bytes)
    if over_bytes > 0:
        # By what whole pages of the host add to the tensors in them.
        less = replace(question.limits, host_bytes=max(1, need_bytes - 2 * over_bytes))
        return _fastest(replace(question, limits=less), tokens)
    return policy


def _advice(profile: Profile, tokens: int) -> str:
    """What to do about bytes that grow with the square of the tokens, where there are any."""
    pairs_bytes = profile.bytes_per_token2 * float(tokens) ** 2
    if not pairs_bytes:
        return ""
    return (
        f"{format_bytes(pairs_bytes)} are masks and scores over all pairs of {tokens:,} tokens; "
        'attn_implementation="sdpa" or "flash_attention_2" makes no scores, and sequences without '
        "padding or packing need no mask"
    )


def _binds(question: Question, policy: Policy) -> tuple[str, ...]:
    """The limits without which, one at a time, a plan made the same way would be faster."""
    profile, limits = question.profile, question.limits
    plain_s = BlockShape(
        profile=profile, tokens=policy.tokens, tile_tokens=policy.tile_tokens
    ).plain_s
    # Twice: either plan may be as far from the best of its kind.
    below_s = extra_s(profile, policy) - 2 * EQUAL_SHARE * plain_s * profile.num_blocks
    if below_s <= 0:
        return ()
    without = {
        "device": replace(question, limits=replace(limits, device_bytes=None)),
        "host": replace(question, limits=replace(limits, host_bytes=None)),
        "forward window": _with_link(question, d2h_bytes_per_s=_FREE_BYTES_PER_S),
        "backward window": _with_link(question, h2d_bytes_per_s=_FREE_BYTES_PER_S),
    }
    return tuple(
        name
        for name, other in without.items()
        if other != question and beats(other, policy.tokens, below_s, policy.tile_tokens)
    )


def _with_link(question: Question, **speed: float) -> Question:
    link: Link = replace(question.profile.link, **speed)
    return replace(question, profile=replace(question.profile, link=link))
