"""The longest length that a mode can train, found by trying."""

from collections.abc import Callable
from typing import Any

STEP_TOKENS = 64
Reply = dict[str, Any]


class LengthSearch:
    """A bracket of lengths, multiples of 64: the longest that fitted, the shortest that did not.

    The length doubles until one does not fit; then the bracket shrinks until its ends are 64 apart.
    Where to try next is guessed, and the middle of the bracket is taken whenever the guess before
    did not halve it. A wrong guess costs time only: the result is always a length that ran, with
    the length 64 tokens above it refused.

    Args:
        attempt: runs a length; its reply has "refusal" if it did not fit (and "max_tokens" if
            it knows what would), else "activation_peak_bytes".
        budget_bytes: device memory for activations.
    """

    def __init__(self, attempt: Callable[[int], Reply], budget_bytes: int) -> None:
        self._attempt = attempt
        self._budget_bytes = budget_bytes
        self._best: Reply = {"tokens": 0}
        self._refused: Reply = {}
        self._guess = 0

    def run(self, start_tokens: int = 512) -> Reply:
        """The reply for the longest length that fits, with "tokens" (0 if none does).

        "refused_tokens" and "refusal" tell what happened 64 tokens above.
        """
        tokens = start_tokens
        while not self._refused:
            self._try(tokens)
            tokens *= 2
        halved = True
        while self._width() > STEP_TOKENS:
            before = self._width()
            self._try(self._next(use_guess=halved))
            halved = self._width() <= before // 2
        refused = {"refused_tokens": self._refused["tokens"], "refusal": self._refused["refusal"]}
        return {**self._best, **refused}

    def _width(self) -> int:
        width: int = self._refused["tokens"] - self._best["tokens"]
        return width

    def _try(self, tokens: int) -> None:
        reply = {**self._attempt(tokens), "tokens": tokens}
        if "refusal" in reply:
            self._refused = reply
            self._guess = reply.get("max_tokens") or 0
        else:
            self._best = reply
            # Peaks grow nearly in proportion to the length.
            self._guess = tokens * self._budget_bytes // max(1, reply["activation_peak_bytes"])

    def _next(self, *, use_guess: bool) -> int:
        low: int = self._best["tokens"] + STEP_TOKENS
        high: int = self._refused["tokens"] - STEP_TOKENS
        middle = (self._best["tokens"] + self._refused["tokens"]) // 2
        wanted: int = self._guess if use_guess and self._guess else middle
        return max(low, min(high, wanted // STEP_TOKENS * STEP_TOKENS))
