"""`stats` and `reset_stats`: what this process's device and wrapped models have done."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, fields

from memo_planner.policy import TilePlace
from memo_train.device import devices_in_use
from memo_train.runtime import WrappedModel

# Weak: counting a model must not keep it alive.
_counted: weakref.WeakSet[WrappedModel] = weakref.WeakSet()


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Bytes now and at peak, and since `reset_stats`: copies, stalls, tiles by policy.

    All devices that the process has used count together. device_used_bytes and device_peak_bytes
    are allocations of device memory; host_* the host pools. d2h_* and h2d_* are copies to and from
    the host; stall_s the seconds compute waited for copies (see `DeviceCounters`). keep_tiles,
    swap_tiles and recompute_tiles add up over blocks and steps.
    """

    device_used_bytes: int
    device_peak_bytes: int
    host_used_bytes: int
    host_peak_bytes: int
    d2h_copies: int
    d2h_bytes: int
    h2d_copies: int
    h2d_bytes: int
    stalls: int
    stall_s: float
    keep_tiles: int
    swap_tiles: int
    recompute_tiles: int


_OF_DEVICES = [field.name for field in fields(Stats) if not field.name.endswith("_tiles")]


def stats() -> Stats:
    """The figures at this moment."""
    counters = [device.counters() for device in devices_in_use()]
    of_devices = {name: sum(getattr(c, name) for c in counters) for name in _OF_DEVICES}
    tiles = {place: sum(w.tile_counts[place] for w in _counted) for place in TilePlace}
    return Stats(
        **of_devices,
        keep_tiles=tiles[TilePlace.KEEP],
        swap_tiles=tiles[TilePlace.SWAP],
        recompute_tiles=tiles[TilePlace.RECOMPUTE],
    )


def reset_stats() -> None:
    """Start peaks again from what is in use, and all else from zero."""
    for device in devices_in_use():
        device.reset_peak()
        device.reset_counters()
    for wrapped in _counted:
        wrapped.tile_counts.clear()


def counted() -> tuple[WrappedModel, ...]:
    """All models wrapped in this process that still live."""
    return tuple(_counted)


def count(wrapped: WrappedModel) -> None:
    """Count the tiles of `wrapped` in `stats` for as long as it lives."""
    _counted.add(wrapped)
