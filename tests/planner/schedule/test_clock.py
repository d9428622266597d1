"""The clock keeps its laws on any schedule, and agrees with steps worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from memo_planner import InvalidInput
from memo_planner.schedule import (
    Kind,
    Operation,
    Phase,
    ScheduleBuilder,
    ScheduleDeadlock,
    Simulation,
    Stream,
    simulate,
)
from tests.planner.schedule.random_schedules import SPEEDS, schedule_from, schedules, speeds

STREAMS = (Stream.D2H, Stream.H2D, Stream.COLLECTIVE)


def moved_bytes(step: Simulation, stream: Stream) -> int:
    return sum(one.num_bytes for one in step.schedule.operations if one.stream is stream)


@settings(deadline=None)
@given(schedules(), SPEEDS)
def test_no_stream_does_more_than_it_can(schedule, at) -> None:
    step = simulate(schedule, at)
    links = (at.d2h_bytes_per_s, at.h2d_bytes_per_s, at.collective_bytes_per_s)
    assert step.step_s >= sum(one.seconds for one in schedule.operations) - 1e-9
    for stream, bytes_per_s in zip(STREAMS, links, strict=True):
        assert step.step_s >= moved_bytes(step, stream) / bytes_per_s - 1e-9
    assert sum(stall.seconds for stall in step.stalls) == pytest.approx(step.stall_s, abs=1e-9)


@settings(deadline=None)
@given(schedules(), SPEEDS)
def test_nothing_starts_too_early(schedule, at) -> None:
    step = simulate(schedule, at)
    last: dict[Stream, int] = {}
    for index, one in enumerate(schedule.operations):
        for waited in one.waits_for:
            assert step.starts_s[index] >= step.ends_s[waited]
        assert step.ends_s[index] >= step.starts_s[index] >= 0
        if one.stream in last:
            assert step.starts_s[index] >= step.ends_s[last[one.stream]], "one at a time, in order"
        if one.stream is not None:
            last[one.stream] = index


@settings(deadline=None)
@given(schedules(), SPEEDS)
def test_bytes_never_fall_below_the_state_and_end_there(schedule, at) -> None:
    step = simulate(schedule, at)
    for curve, floor in ((step.device, schedule.state_bytes), (step.host, 0)):
        assert curve.num_bytes.min() == floor
        assert curve.num_bytes[-1] == floor
        assert (np.diff(curve.times_s) >= 0).all()
        assert curve.sampled(7, step.step_s).max() == curve.peak_bytes


@settings(deadline=None)
@given(schedules(), SPEEDS)
def test_a_faster_link_is_never_slower(schedule, at) -> None:
    before = simulate(schedule, at)
    for name in ("d2h_bytes_per_s", "h2d_bytes_per_s", "collective_bytes_per_s"):
        after = simulate(schedule, replace(at, **{name: 1.5 * getattr(at, name)}))
        assert after.step_s <= before.step_s
        assert (after.ends_s <= before.ends_s).all()


@settings(deadline=None)
@given(schedules(), SPEEDS)
def test_the_same_step_twice(schedule, at) -> None:
    one, two = simulate(schedule, at), simulate(schedule, at)
    assert one.step_s == two.step_s
    assert one.stalls == two.stalls
    assert (one.device.num_bytes == two.device.num_bytes).all()


def test_a_step_by_hand() -> None:
    """2 s of work, 30 bytes out at 10 per second while 1 s goes on, back at 15, 1 s to use them."""
    build = ScheduleBuilder()
    build.compute("make", 2.0, alloc_bytes=30)
    sent = build.to_host("t", 30)
    build.compute("other", 1.0, alloc_bytes=5, free_bytes=5)
    fetched = build.to_device("t", 30, sent)
    build.wait("t", (fetched,))
    build.compute("use", 1.0, free_bytes=30)
    step = simulate(schedule_from(tuple(build.operations)), speeds(10.0, 15.0))
    assert step.step_s == 2 + 3 + 2 + 1
    assert step.stall_s_by_cause == {
        "copies to host": 2.0,
        "copies to device": 2.0,
        "collectives": 0.0,
        "the end of copies": 0.0,
    }
    assert step.device.times_s.tolist() == [0, 0, 2, 3, 5, 5, 8]
    assert step.device.num_bytes.tolist() == [100, 130, 135, 130, 100, 130, 100]
    assert step.host.times_s.tolist() == [0, 2, 7]
    assert step.host.num_bytes.tolist() == [0, 30, 0]
    assert (step.device.peak_bytes, step.device.peak_s) == (135, 2.0)


@pytest.mark.parametrize(("limit", "stall_s"), [(0, 5.0), (20, 4.0), (50, 0.0)])
def test_copies_beyond_the_limit_hold_compute(limit: int, stall_s: float) -> None:
    build = ScheduleBuilder()
    build.allow_in_flight(limit)
    build.compute("make", 1.0, alloc_bytes=50)
    for _ in range(2):
        build.to_host("t", 20)
    build.to_host("t", 10)
    build.compute("other", 9.0)
    build.release("host", 0, (1,))
    operations = [replace(o, host_alloc_bytes=0) for o in build.operations]
    step = simulate(schedule_from(tuple(operations)), speeds(10.0))
    assert step.stall_s == stall_s


def test_mfu_needs_both_figures() -> None:
    build = ScheduleBuilder()
    build.compute("work", 4.0)
    known = replace(schedule_from(tuple(build.operations)), flops=6e12)
    assert simulate(known, replace(speeds(), peak_flops_per_s=3e12)).mfu == 0.5
    assert simulate(known, speeds()).mfu is None


def compute(**other: object) -> Operation:
    return Operation(name="work", kind=Kind.COMPUTE, phase=Phase.FORWARD, seconds=1.0, **other)


def test_a_circle_of_waits_is_named() -> None:
    fetch = Operation(name="t", kind=Kind.TO_DEVICE, phase=Phase.FORWARD, waits_for=(2,))
    schedule = schedule_from((compute(), compute(waits_for=(3,)), compute(), fetch))
    with pytest.raises(ScheduleDeadlock, match=r"3 operations wait for one another.*operation 2"):
        simulate(schedule, speeds())


def test_a_wait_for_a_later_operation_without_a_circle_runs() -> None:
    fetch = Operation(name="t", kind=Kind.TO_DEVICE, phase=Phase.FORWARD, num_bytes=20)
    step = simulate(schedule_from((compute(waits_for=(1,)), fetch)), speeds(h2d=10.0))
    assert step.step_s == 3.0


def test_bytes_freed_before_they_exist_are_refused() -> None:
    schedule = schedule_from((compute(device_free_bytes=8), compute(device_alloc_bytes=8)))
    with pytest.raises(InvalidInput, match="operation 0 frees more bytes on the device"):
        simulate(schedule, speeds())


def test_a_collective_needs_its_speed() -> None:
    build = ScheduleBuilder()
    build.compute("work", 1.0)
    build.collective("q, k, v", 10)
    schedule = schedule_from(tuple(build.operations))
    with pytest.raises(InvalidInput, match="collective_bytes_per_s is None"):
        simulate(schedule, replace(speeds(), collective_bytes_per_s=None))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), "fast", True, None])
def test_speeds_are_checked(bad: object) -> None:
    with pytest.raises(InvalidInput, match="d2h_bytes_per_s"):
        speeds(d2h=bad)  # type: ignore[arg-type]
