"""What a training step asked of device memory: every request with its lifetime and its origin.

Types and files only, numpy and no torch: `memo_train.trace` records them, the layout packs them.
"""

from memo_planner.trace.events import requests_of_events
from memo_planner.trace.profile_file import BlockFlops, LinkRates, ProfileFile, ProfileSource
from memo_planner.trace.requests import BEFORE, NOWHERE, PHASES, Requests
from memo_planner.trace.table import read_csv, write_csv
from memo_planner.trace.trace import Trace, TraceSource

__all__ = [
    "BEFORE",
    "NOWHERE",
    "PHASES",
    "BlockFlops",
    "LinkRates",
    "ProfileFile",
    "ProfileSource",
    "Requests",
    "Trace",
    "TraceSource",
    "read_csv",
    "requests_of_events",
    "write_csv",
]
