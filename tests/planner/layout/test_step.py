"""The two-level layout of a step: the paper's example, repeated blocks, and nothing overlapping."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memo_planner.layout import faults
from memo_planner.layout.mip import pack_mip
from memo_planner.layout.packing import Effort
from memo_planner.layout.placement import Placement
from memo_planner.layout.problem import PackingProblem
from memo_planner.layout.step import lay_out_step
from memo_planner.trace.requests import PHASES, Requests

FORWARD, BACKWARD = PHASES.index("forward"), PHASES.index("backward")

PAPER = (
    "m13:128 m14:128 f14 m15:256 f13 m16:512 m17:128 m18:128 m19:256 f17 f19 f18",
    "m20:512 f20 m21:1024 m22:256 f15 m23:128 m24:512 f21 f22 f23 f24 f16",
)


def requests_of(passes: list[tuple[int, int, str]]) -> Requests:
    """Requests from (phase, block, events); an event is `mID:SIZE` or `fID`, one a time."""
    made: dict[str, list[int]] = {}
    freed: dict[str, int] = {}
    time = 0
    for phase, block, events in passes:
        for event in events.split():
            time += 1
            name, _, size = event[1:].partition(":")
            if event[0] == "m":
                made[name] = [time, int(size), phase, block]
            else:
                freed[name] = time
    columns = np.array([[*row, freed.get(name, time + 1)] for name, row in made.items()])
    return Requests(
        ids=np.arange(len(made)),
        malloc_times=columns[:, 0],
        size_bytes=columns[:, 1],
        phases=columns[:, 2],
        blocks=columns[:, 3],
        free_times=columns[:, 4],
        tiles=np.full(len(made), -1),
        ops=np.zeros(len(made), np.int64),
        op_names=("",),
        end_time=time + 1,
    )


def mip(problem: PackingProblem, seconds: float, effort: Effort) -> Placement:
    return pack_mip(problem, seconds=max(seconds, 10.0))


def blocks(num_blocks: int) -> Requests:
    """Every block keeps one tensor from forward to backward and has transients in both."""
    forward = [
        (FORWARD, b, f"mt{b}:100 mk{b}:40 mu{b}:60 ft{b} mv{b}:70 fu{b} fv{b}")
        for b in range(num_blocks)
    ]
    backward = [
        (BACKWARD, b, f"mg{b}:90 mh{b}:50 fg{b} mi{b}:30 fk{b} fh{b} fi{b}")
        for b in reversed(range(num_blocks))
    ]
    return requests_of(forward + backward)


@pytest.mark.parametrize("solver", [None, mip])
def test_the_papers_example_is_laid_out_in_the_least_memory(solver) -> None:
    requests = requests_of([(FORWARD, 0, PAPER[0]), (BACKWARD, 0, PAPER[1])])
    options = {} if solver is None else {"solver": solver}
    layout = lay_out_step(requests, **options)
    assert faults(layout.placement) == []
    # In backward 16 (512) is alive beside 21, 22, 23 and 24.
    assert requests.peak_bytes() == 512 + 1024 + 256 + 128 + 512
    assert layout.placement.peak_bytes == layout.placement.lower_bound_bytes == 2432
    assert layout.num_groups == 2


def test_equal_blocks_are_packed_once() -> None:
    layout = lay_out_step(blocks(40))
    assert faults(layout.placement) == []
    assert layout.num_groups == 80
    assert layout.num_shapes == 2
    assert layout.placement.gap == 0
    few = lay_out_step(blocks(10))
    assert few.num_shapes == 2
    assert few.num_opened == layout.num_opened


@st.composite
def steps(draw: st.DrawFn) -> Requests:
    """A few passes with random requests, freed at random, some in a later pass."""
    passes, live, count = [], [], 0
    for block in range(draw(st.integers(1, 4))):
        events = []
        for _ in range(draw(st.integers(1, 8))):
            if live and draw(st.booleans()):
                events.append(f"f{live.pop(draw(st.integers(0, len(live) - 1)))}")
            else:
                events.append(f"m{count}:{draw(st.integers(1, 9))}")
                live.append(count)
                count += 1
        passes.append((FORWARD, block, " ".join(events)))
    return requests_of(passes)


@settings(max_examples=150, deadline=None)
@given(steps(), st.sampled_from([1, 4]))
def test_any_step_gets_a_valid_layout(requests: Requests, alignment: int) -> None:
    layout = lay_out_step(requests, alignment_bytes=alignment, seconds=2)
    assert faults(layout.placement) == []
    assert layout.placement.peak_bytes >= layout.placement.lower_bound_bytes


def test_no_time_still_gives_a_valid_layout() -> None:
    layout = lay_out_step(blocks(5), seconds=0)
    assert faults(layout.placement) == []
