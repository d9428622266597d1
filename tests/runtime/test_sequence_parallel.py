"""Ranks that share sequences give one process's losses and gradients, or one error on every rank.

The cases are in `shared_sequences.py` and `shared_refusals.py`; gloo joins 1, 2 and 4 processes,
each with one CPU thread.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.on_ranks import CASES
from tests.runtime.ranks import run_ranks

pytestmark = pytest.mark.slow  # the first case of each number of ranks runs all of it
SCRIPT = Path(__file__).with_name("on_ranks.py")


@cache
def found_by(num_ranks: int, folder: Path) -> dict[str, list[Any]]:
    """For each case of so many ranks, what each rank found wrong."""
    out = folder / f"{num_ranks}.json"
    run_ranks(num_ranks, SCRIPT, out)
    found: dict[str, list[Any]] = json.loads(out.read_text())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.mark.parametrize(
    ("num_ranks", "name"),
    [(n, name) for n in (1, 2, 4) for name, (_, ranks) in CASES.items() if n in ranks],
)
def test_on_ranks(num_ranks: int, name: str, folder: Path) -> None:
    assert found_by(num_ranks, folder)[name] == [None] * num_ranks


def test_users_of_deepspeeds_ulysses(tmp_path: Path) -> None:
    """At any length and at a fixed one, by hand and through Accelerate; or one named refusal."""
    pytest.importorskip("deepspeed")
    out = tmp_path / "outcomes.json"
    run_ranks(2, SCRIPT.with_name("ulysses_hf.py"), out)
    outcomes = json.loads(out.read_text())
    assert set(outcomes.values()) == {"right"}, outcomes
