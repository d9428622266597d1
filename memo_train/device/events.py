"""What device memory was asked, in order: a structured array of events."""

from enum import IntEnum
from typing import TypeAlias

import numpy as np

Events: TypeAlias = np.ndarray[tuple[int], np.dtype[np.void]]
"""Fields of an event [events]:

kind: an `EventKind`.
source: 0 for whoever recorded first, 1 for the next, and so on: threads on the CPU, streams on a
    GPU. Marks are always compute's.
offset: where the allocation starts: in bytes from the start of the CPU's arena, the address on a
    GPU; of a mark: its value.
bytes: its size, rounded up to the device's alignment; of a mark: 0.
"""


class EventKind(IntEnum):
    """What happened."""

    ALLOC = 0
    FREE = 1
    MARK = 2
