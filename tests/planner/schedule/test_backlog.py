"""Device bytes that copies to the host need: nothing waits for more, and no more is held."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from memo_planner.plan import Plan
from memo_planner.schedule import (
    CopyBudget,
    Phase,
    Schedule,
    ScheduleBuilder,
    Simulation,
    Speeds,
    copy_budget,
    schedule_of,
    simulate,
)
from memo_planner.schedule._choose import backlog_bytes
from memo_planner.schedule._schedule import VERSION
from tests.planner.schedule.test_of_plan import plans


def step_of(build: ScheduleBuilder, bytes_per_s: float) -> Simulation:
    schedule = Schedule(
        version=VERSION,
        strategy="by hand",
        model="toy",
        tokens=1,
        state_bytes=0,
        flops=None,
        inputs_hash="none",
        operations=tuple(build.operations),
    )
    return simulate(schedule, Speeds(d2h_bytes_per_s=bytes_per_s, h2d_bytes_per_s=1.0))


def two_copies(bytes_per_s: float) -> int:
    """Copies of 100 and 60 bytes, asked for after 1 s and after 2 s of computation."""
    build = ScheduleBuilder()
    build.at(Phase.FORWARD)
    sent = []
    for num_bytes in (100, 60):
        build.compute("pre", 1.0, alloc_bytes=num_bytes)
        sent.append((build.to_host("x", num_bytes), num_bytes))
    build.compute("post", 9.0)
    for copy, num_bytes in sent:
        build.wait("x", (build.to_device("x", num_bytes, copy),))
    build.compute("backward", 1.0, free_bytes=160)
    return backlog_bytes(step_of(build, bytes_per_s))


def test_a_copy_counts_from_its_request_to_its_end() -> None:
    assert two_copies(bytes_per_s=100.0) == 100
    assert two_copies(bytes_per_s=99.0) == 160


def simulated_s(plan: Plan, budget: CopyBudget) -> float:
    speeds = Speeds.of_link(plan.profile.link)
    return simulate(schedule_of(plan, budget=budget), speeds).step_s


@settings(max_examples=60, deadline=None)
@given(plan=plans(), park_pre=st.booleans())
def test_nothing_waits_for_the_bytes_that_are_held_back(plan: Plan, park_pre: bool) -> None:
    free, held = CopyBudget.of(plan, park_pre=park_pre), copy_budget(plan, park_pre=park_pre)
    assert simulated_s(plan, held) == simulated_s(plan, free)
    assert held.ahead_bytes == free.ahead_bytes
    pairs = zip(held.in_flight_bytes, free.in_flight_bytes, strict=True)
    assert all(ours <= theirs for ours, theirs in pairs)
