"""The search for the longest length finds it, in few tries, whatever the guesses are worth."""

from typing import Any

import pytest

from benchmarks.search import LengthSearch

BUDGET = 1_000_000


@pytest.mark.parametrize("limit", [0, 63, 64, 512, 1000, 4096, 12_345, 100_000])
@pytest.mark.parametrize("peak_at_limit", [0.4, 0.99, 1.0])
@pytest.mark.parametrize("hint", [None, 0.5, 1.0, 3.0])
def test_the_longest_multiple_of_64_is_found(
    limit: int, peak_at_limit: float, hint: float | None
) -> None:
    tried = []

    def attempt(tokens: int) -> dict[str, Any]:
        tried.append(tokens)
        if tokens > limit:
            known = {} if hint is None else {"max_tokens": int(limit * hint)}
            return {"refusal": f"no room for {tokens}", **known}
        return {"activation_peak_bytes": int(BUDGET * peak_at_limit * tokens / limit)}

    found = LengthSearch(attempt, BUDGET).run()
    assert found["tokens"] == limit // 64 * 64
    assert found["refused_tokens"] == found["tokens"] + 64
    assert found["refusal"] == f"no room for {found['refused_tokens']}"
    assert len(tried) == len(set(tried)) < 32


def test_a_good_guess_saves_tries() -> None:
    tried = []

    def attempt(tokens: int) -> dict[str, Any]:
        tried.append(tokens)
        if tokens > 12_345:
            return {"refusal": "no", "max_tokens": 12_345}
        return {"activation_peak_bytes": BUDGET}

    assert LengthSearch(attempt, BUDGET).run()["tokens"] == 12_288
    assert tried == [512, 1024, 2048, 4096, 8192, 16384, 12_288, 12_352]
