"""No test reads or writes the profiles that a developer keeps."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Profiles are kept for one run of the tests, also by the processes that they start."""
    before = os.environ.get("MEMO_TRAIN_CACHE")
    os.environ["MEMO_TRAIN_CACHE"] = str(tmp_path_factory.mktemp("profiles"))
    yield
    if before is None:
        del os.environ["MEMO_TRAIN_CACHE"]
    else:
        os.environ["MEMO_TRAIN_CACHE"] = before
