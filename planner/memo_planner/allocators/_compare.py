"""One step by every allocator, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from memo_planner.allocators._caching import CachingAllocator, ExpandableAllocator
from memo_planner.allocators._fits import BestFitAllocator, TwoEndedAllocator, least_cap, planned
from memo_planner.allocators._glibc import can_measure, measure_glibc
from memo_planner.allocators._replay import Allocator, AllocatorRun, replay
from memo_planner.checks import check_int, check_number
from memo_planner.trace import Requests

CACHING = "caching allocator"
EXPANDABLE = "expandable segments"
BEST_FIT = "best fit"
TWO_ENDED = "two-ended first fit"
GLIBC = "glibc malloc"


def layout_name(alignment_bytes: int) -> str:
    """The name of the layout's run at an alignment."""
    return f"layout, {alignment_bytes} B"


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """How to compare.

    num_steps: how often allocators serve the step, one after the other without emptying a cache;
        the layout is the same in every step.
    cap_bytes: of the device; None for no limit. glibc has none and is left out under one.
    alignments: of the layouts, in bytes; simulators round to 512.
    seconds: most for each layout.

    Raises: InvalidInput.
    """

    num_steps: int = 3
    cap_bytes: int | None = None
    # A GPU allocator's, and the CPU arena's.
    alignments: tuple[int, ...] = (512, 64)
    seconds: float = 10.0

    def __post_init__(self) -> None:
        check_int("num_steps", self.num_steps, 1, 1000)
        check_number("seconds", self.seconds)
        for alignment_bytes in self.alignments:
            check_int("alignment", alignment_bytes, 1)
        if self.cap_bytes is not None:
            check_int("cap_bytes", self.cap_bytes, 512)


def compare_allocators(
    requests: Requests, options: ComparisonOptions | None = None
) -> list[AllocatorRun]:
    """Runs of the four simulators, of glibc where it can be measured, and of the layouts.

    Raises: InvalidInput; SolverError.
    """
    options = options or ComparisonOptions()
    cap, num_steps = options.cap_bytes, options.num_steps
    simulators: dict[str, Allocator] = {
        CACHING: CachingAllocator(cap_bytes=cap),
        EXPANDABLE: ExpandableAllocator(cap_bytes=cap),
        BEST_FIT: BestFitAllocator(cap_bytes=cap),
    }
    runs = [
        replay(requests, allocator, name, num_steps=num_steps).run
        for name, allocator in simulators.items()
    ]
    if cap is None:
        runs.append(least_cap(requests, TWO_ENDED).run)
    else:
        runs.append(replay(requests, TwoEndedAllocator(cap_bytes=cap), TWO_ENDED).run)
    if cap is None and can_measure():
        runs.append(measure_glibc(requests, GLIBC, num_steps=num_steps))
    for alignment_bytes in options.alignments:
        name = layout_name(alignment_bytes)
        found = planned(
            requests,
            name,
            alignment_bytes=alignment_bytes,
            cap_bytes=cap,
            seconds=options.seconds,
        )
        runs.append(found.run)
    return runs
