"""No test reads or writes the profiles that a developer keeps."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Profiles are kept for one run of the tests, by all of its processes."""
    before = os.environ.get("MEMO_TRAIN_CACHE")
    base = tmp_path_factory.getbasetemp()
    # A worker of pytest-xdist has a folder of its own in that of the run.
    of_the_run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["MEMO_TRAIN_CACHE"] = str(of_the_run / "profiles")
    yield
    if before is None:
        del os.environ["MEMO_TRAIN_CACHE"]
    else:
        os.environ["MEMO_TRAIN_CACHE"] = before
