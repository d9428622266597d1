"""No test reads or writes the profiles that a developer keeps, or leaves memory to later ones.

Tests run a few kinds of steps of many small models, so each kind is measured when a step needs it;
what `measured_ahead` is used by measures all of them at `wrap`, as users do.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from memo_train.device._cpu import cpu_device_if_made
from memo_train.profiling import AHEAD_VARIABLE

_MOST_LEFT_BYTES = 64 << 10


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
def no_memory_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Limits and peaks of later tests in this process count what a file leaves on the device."""
    before = _used_bytes()
    yield
    if _used_bytes() > before + _MOST_LEFT_BYTES:
        gc.collect()
    left = _used_bytes() - before
    assert left <= _MOST_LEFT_BYTES, f"{request.node.nodeid} leaves {left:,} bytes of tensors"


def _used_bytes() -> int:
    device = cpu_device_if_made()
    return 0 if device is None else device.counters().device_used_bytes
