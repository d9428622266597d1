"""The memory a plan may use."""

from __future__ import annotations

from dataclasses import dataclass

from memo_planner.checks import check_int


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bytes that may be in use on the device and on the host; None means no limit.

    Raises: InvalidInput on 0 or less: a limit of 0 is not "unlimited".
    """

    device_bytes: int | None
    host_bytes: int | None

    def __post_init__(self) -> None:
        for name in ("device_bytes", "host_bytes"):
            value = getattr(self, name)
            if value is not None:
                check_int(f"Limits.{name}", value, 1)
