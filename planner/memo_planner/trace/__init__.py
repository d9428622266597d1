"""What a training step asked of device memory: every request with its lifetime and its origin.

Types and files only, numpy and no torch: `memo_train.trace` records them, the layout packs them.
"""

from memo_planner.trace._profile_file import BlockFlops, LinkRates, ProfileFile, ProfileSource
from memo_planner.trace._requests import (
    BEFORE,
    NOWHERE,
    PHASES,
    Column,
    EventLog,
    Requests,
    int_column,
    requests_of_events,
)
from memo_planner.trace._trace import (
    Trace,
    TraceSource,
    is_trace,
    read_csv,
    read_requests,
    write_csv,
)

__all__ = [
    "BEFORE",
    "NOWHERE",
    "PHASES",
    "BlockFlops",
    "Column",
    "EventLog",
    "LinkRates",
    "ProfileFile",
    "ProfileSource",
    "Requests",
    "Trace",
    "TraceSource",
    "int_column",
    "is_trace",
    "read_csv",
    "read_requests",
    "requests_of_events",
    "write_csv",
]
