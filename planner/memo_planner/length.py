"""The longest sequence that fits."""

from __future__ import annotations

from collections.abc import Callable

from memo_planner.errors import InvalidInput
from memo_planner.limits import Limits
from memo_planner.policy import MAX_TOKENS
from memo_planner.profile import Profile
from memo_planner.request import Request


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
    request = Request(
        profile=profile,
        limits=limits,
        alpha=alpha,
        tile_tokens=tile_tokens,
        attention_again=attention_again,
    )
    if request.shortage(MAX_TOKENS) is None:
        raise InvalidInput(
            f"even {MAX_TOKENS:,} tokens fit: nothing limits the length; set a device or host limit"
        )
    return longest_below(request, MAX_TOKENS)


def longest_below(request: Request, too_long: int) -> int:
    """Longest length below `too_long`, which does not fit; bytes needed grow with the length."""
    return longest_that(lambda tokens: request.shortage(tokens) is None, too_long)


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
