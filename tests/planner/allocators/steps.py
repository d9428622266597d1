"""Steps for tests: written as text, drawn at random, and the paper's."""

import numpy as np
from hypothesis import strategies as st

from memo_planner.trace import BEFORE, PHASES, Requests

MIB = 2**20
FORWARD = PHASES.index("forward")

PAPER = (
    "13:128 14:128 -14 15:256 -13 16:512 17:128 18:128 19:256 -17 -19 -18 "
    "20:512 -20 21:1024 22:256 -15 23:128 24:512 -21 -22 -23 -24 -16"
)
"""MEMO's example, one layer forward and backward, sizes in MB. Source: MEMO §bi-level MIP."""


def step(text: str, unit_bytes: int = 1) -> Requests:
    """A step of events one a time: `ID:SIZE` asks, `-ID` frees, `ID!SIZE` lived before the step."""
    made: dict[int, tuple[int, int]] = {}
    freed: dict[int, int] = {}
    time = 0
    for event in text.split():
        if "!" in event:
            name, size = event.split("!")
            made[int(name)] = (0, int(size) * unit_bytes)
            continue
        time += 1
        if event.startswith("-"):
            freed[int(event[1:])] = time
        else:
            name, size = event.split(":")
            made[int(name)] = (time, int(size) * unit_bytes)
    times = np.array([made_at for made_at, _ in made.values()], np.int64)
    num = len(made)
    return Requests(
        ids=np.array(list(made), np.int64),
        malloc_times=times,
        free_times=np.array([freed.get(name, time + 1) for name in made], np.int64),
        size_bytes=np.array([size for _, size in made.values()], np.int64),
        phases=np.where(times == 0, BEFORE, FORWARD),
        blocks=np.full(num, -1),
        tiles=np.full(num, -1),
        ops=np.zeros(num, np.int64),
        op_names=("",),
        end_time=time + 1,
    )


LARGE = st.integers(MIB + 1, 70 * MIB)
SIZES = st.one_of(
    st.integers(1, 2000),
    st.integers(MIB // 2, 3 * MIB),
    st.integers(8 * MIB, 70 * MIB),
)
"""Sizes around the borders of every rule."""


@st.composite
def steps(draw: st.DrawFn, sizes: st.SearchStrategy[int] = SIZES) -> Requests:
    """Up to 40 requests, freed in any order; some outlive the step."""
    live: list[int] = []
    events = []
    for number in range(draw(st.integers(1, 40))):
        while live and draw(st.booleans()):
            events.append(f"-{live.pop(draw(st.integers(0, len(live) - 1)))}")
        events.append(f"{number}:{draw(sizes)}")
        live.append(number)
    return step(" ".join(events))
