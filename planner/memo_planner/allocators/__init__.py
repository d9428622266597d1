"""What other allocators make of a recorded step: simulators by published rules, and one measured.

The figures of GPU allocators come from these simulators, not from a GPU.
"""

from memo_planner.allocators._caching import CachingAllocator
from memo_planner.allocators._compare import ComparisonOptions, compare_allocators
from memo_planner.allocators._fits import BestFitAllocator, planned
from memo_planner.allocators._replay import AllocatorRun, event_order, replay

__all__ = [
    "AllocatorRun",
    "BestFitAllocator",
    "CachingAllocator",
    "ComparisonOptions",
    "compare_allocators",
    "event_order",
    "planned",
    "replay",
]
