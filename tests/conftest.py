"""No test reads or writes the profiles that a developer keeps, or leaves memory to later ones.

Tests run a few kinds of steps of many small models, so each kind is measured when a step needs it;
what `measured_ahead` is used by measures all of them at `wrap`, as users do.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest

from memo_train.device._cpu import cpu_device_if_made
from memo_train.profiling import AHEAD_VARIABLE

_MOST_LEFT_BYTES = 512 << 10


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


@pytest.fixture(scope="session", autouse=True)
def measured_as_needed() -> Iterator[None]:
    """Also in processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(AHEAD_VARIABLE, "0")
        yield


@pytest.fixture
def measured_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """`wrap` measures all kinds of steps that can be foreseen."""
    monkeypatch.delenv(AHEAD_VARIABLE)


@pytest.fixture(scope="module", autouse=True)
def no_memory_is_left(request: pytest.FixtureRequest) -> None:
    """Limits and peaks of a file's tests count what those before it left on the device."""
    if _used_bytes() > _MOST_LEFT_BYTES:
        # The last failure's traceback holds the tensors of its frames.
        sys.last_value = sys.last_traceback = None
        gc.collect()
    left, file = _used_bytes(), request.node.nodeid
    assert left <= _MOST_LEFT_BYTES, f"{left:,} bytes of tensors are left by tests before {file}"


def _used_bytes() -> int:
    device = cpu_device_if_made()
    return 0 if device is None else device.counters().device_used_bytes
