"""A limit under which a plan was accepted is held (numerics level 2)."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.trace.own_process import rows_of

NUM_SEEDS, NUM_PROCESSES = 100, 2


@pytest.mark.slow
@pytest.mark.timeout(3600)  # 100 models are wrapped: about ten minutes of one processor
def test_no_step_runs_out_of_memory_after_its_plan_was_accepted() -> None:
    """Random models, lengths, batches, tiles and limits; a refusal comes before the step."""
    each = NUM_SEEDS // NUM_PROCESSES
    with ThreadPoolExecutor(NUM_PROCESSES) as pool:
        parts = pool.map(
            lambda part: rows_of("random_limits.py", str(part * each), str(each)),
            range(NUM_PROCESSES),
        )
        found = [row for part in parts for row in part]
    assert sorted(row["seed"] for row in found) == list(range(NUM_SEEDS))
    assert not [row for row in found if row["outcome"] == "out of memory"]
    assert Counter(row["outcome"] for row in found)["held"] >= NUM_SEEDS // 3
