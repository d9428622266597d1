"""Models that a test leaves wrapped leave no cap for the tests after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from memo_train.device import devices_in_use


@pytest.fixture(autouse=True)
def no_cap_is_left() -> Iterator[None]:
    yield
    for device in devices_in_use():
        device.set_device_cap(None)
        device.set_host_cap(None)
