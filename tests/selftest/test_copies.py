"""Scenarios of copies see what a device does wrong, and texts that others read name nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from memo_train import _core
from memo_train.device import InvalidDeviceArgument, get_cpu_device
from memo_train.selftest import _scenario as anonymous
from memo_train.selftest._copies import COPY_SCENARIOS, side_by_side
from memo_train.selftest._place import cpu_place
from memo_train.selftest._scenario import ScenarioFailed, outcome_of

LATE_COPIES = {each.name: each.run for each in COPY_SCENARIOS if each.name.endswith("late copies")}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever a scenario finds, it gives its host memory back."""
    before = get_cpu_device().counters().host_used_bytes
    yield
    assert get_cpu_device().counters().host_used_bytes == before


@pytest.mark.parametrize("name", LATE_COPIES)
def test_a_missing_wait_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device refuses to take back host memory that is being copied: also a way to see it."""
    place = cpu_place()
    assert LATE_COPIES[name](place)["late_rounds"] > 0
    with monkeypatch.context() as patch:
        patch.setattr(_core.Event, "wait", lambda self: None)
        with pytest.raises((ScenarioFailed, InvalidDeviceArgument)):
            LATE_COPIES[name](place)
    place.finish()


@pytest.mark.parametrize("name", LATE_COPIES)
def test_lost_bytes_of_a_tile_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = cpu_place()
    copy = place.device.copy_rows_to_device

    def last_row_lost(device_ptr: int, host: int, rows: object) -> object:
        if rows.rows > 1:
            object.__setattr__(rows, "rows", rows.rows - 1)
        return copy(device_ptr, host, rows)

    monkeypatch.setattr(place.device, "copy_rows_to_device", last_row_lost)
    with pytest.raises(ScenarioFailed, match=r"round 1\b.*: 640 of 1920 values are not what"):
        LATE_COPIES[name](place)


def test_devices_side_by_side_see_a_mix_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two names of one device, of which the second fetches what the first has sent."""
    places = [cpu_place(), cpu_place()]
    assert side_by_side(places) == {"rounds": 10, "devices": 2}
    copy, hosts = places[0].device.copy_rows_to_device, []

    def mixed_up(device_ptr: int, host: int, rows: object) -> object:
        hosts.append(host)
        return copy(device_ptr, host if len(hosts) % 2 else hosts[-2], rows)

    monkeypatch.setattr(places[0].device, "copy_rows_to_device", mixed_up)
    with pytest.raises(ScenarioFailed, match="round 0, device 1: 7680 of 7680 values"):
        side_by_side(places)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no /home/somebody/x/lib.so: missing", "no lib.so: missing"),
        ("the cache ~/.cache/memo-train/a.so", "the cache a.so"),
        ("12.5 bytes/s of memo_train/device/cpu.py", "12.5 bytes/s of memo_train/device/cpu.py"),
        ("on box7.", "on <machine>."),
        ("box77 of jane:", "box77 of <user>:"),
    ],
)
def test_texts_name_nobody(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anonymous, "_host_name", lambda: "box7")
    monkeypatch.setattr(anonymous, "_user_name", lambda: "jane")
    assert anonymous.anonymous(text) == expected


def test_an_unforeseen_error_is_a_failure_with_its_lines() -> None:
    def run() -> dict[str, object]:
        return LATE_COPIES["swap behind late copies"](None)  # type: ignore[arg-type]

    result = outcome_of(run)
    assert result["outcome"].startswith("failed: AttributeError: ")
    assert any("memo_train.selftest._copies:" in line for line in result["raised_at"])
    assert str(Path(__file__).parent) not in str(result)
