"""Plans of two ranks: they know of the other, and those of a job are carried out or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.node_plans import CASES
from tests.runtime.ranks import run_ranks

SCRIPT = Path(__file__).with_name("node_plans.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """For each case, what each rank found wrong."""
    out = tmp_path_factory.mktemp("plans") / "found.json"
    run_ranks(2, SCRIPT, out)
    wrong: dict[str, list[Any]] = json.loads(out.read_text())
    return wrong


@pytest.mark.parametrize("name", CASES)
def test_on_two_ranks(name: str, found: dict[str, list[Any]]) -> None:
    assert found[name] == [None, None]
