"""Schedules at random: any mix of operations that the builder accepts."""

from __future__ import annotations

from hypothesis import strategies as st

from memo_planner.schedule import Phase, Schedule, ScheduleBuilder, Speeds

SECONDS = st.sampled_from([0.0, 0.25, 1.0, 3.5])
BYTES = st.integers(1, 40)


def schedule_from(operations: tuple, *, state_bytes: int = 100) -> Schedule:
    return Schedule(
        version=1,
        strategy="test",
        model="toy",
        tokens=8,
        state_bytes=state_bytes,
        flops=None,
        inputs_hash="abc",
        operations=operations,
    )


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Up to 40 moves: tensors are made, sent, fetched and dropped, with waits or without."""
    build = ScheduleBuilder()
    build.allow_in_flight(draw(st.sampled_from([0, 30, 2**62])))
    build.at(Phase.FORWARD)
    build.compute("start", draw(SECONDS))
    made: list[int] = []
    sent: list[tuple[int, int]] = []
    fetched: list[tuple[int, int]] = []
    for index in range(draw(st.integers(1, 40))):
        build.at(Phase.FORWARD, index)
        move = draw(st.sampled_from(["make", "send", "fetch", "drop", "exchange", "release"]))
        if move == "make":
            made.append(draw(BYTES))
            build.compute("make", draw(SECONDS), alloc_bytes=made[-1])
        elif move == "send" and made:
            size = made.pop(draw(st.integers(0, len(made) - 1)))
            sent.append((build.to_host("t", size), size))
        elif move == "fetch" and sent:
            copy, size = sent.pop(draw(st.integers(0, len(sent) - 1)))
            fetched.append((build.to_device("t", size, copy), size))
        elif move == "drop" and fetched:
            copy, size = fetched.pop(0)
            build.wait("t", (copy,))
            build.compute("use", draw(SECONDS), free_bytes=size)
        elif move == "exchange":
            build.wait("t", (build.collective("t", draw(BYTES)),))
        elif move == "release" and made:
            build.release("t", made.pop(), (build.last_compute,))
    for copy, size in [(build.to_device("t", s, c), s) for c, s in sent] + fetched:
        build.wait("t", (copy,))
        build.compute("use", 0.0, free_bytes=size)
    build.compute("end", draw(SECONDS), free_bytes=sum(made))
    return schedule_from(tuple(build.operations))


def speeds(d2h: float = 10.0, h2d: float = 10.0, collective: float = 10.0) -> Speeds:
    return Speeds(d2h_bytes_per_s=d2h, h2d_bytes_per_s=h2d, collective_bytes_per_s=collective)


SPEEDS = st.builds(speeds, *(st.sampled_from([1.0, 4.0, 9.0, 1000.0]) for _ in range(3)))
