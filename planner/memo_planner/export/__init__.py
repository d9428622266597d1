"""A step's requests for viewers: PyTorch's memory visualiser, Perfetto, and a picture."""

from memo_planner.export._addresses import Addresses
from memo_planner.export._memory_map import memory_map
from memo_planner.export._memory_viz import snapshot, write_snapshot
from memo_planner.export._perfetto import LARGEST_SHOWN, chrome_trace, write_chrome_trace

__all__ = [
    "LARGEST_SHOWN",
    "Addresses",
    "chrome_trace",
    "memory_map",
    "snapshot",
    "write_chrome_trace",
    "write_snapshot",
]
