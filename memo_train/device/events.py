"""What device memory was asked, in order: a structured array of events."""

from enum import IntEnum
from typing import TypeAlias

import numpy as np

Events: TypeAlias = np.ndarray[tuple[int], np.dtype[np.void]]
"""Fields of an event [events]:

kind: an `EventKind`.
thread: 0 for the thread that recorded first, 1 for the next, and so on.
offset: where the allocation starts in device memory, in bytes; of a mark: its value.
bytes: its size, rounded up to 64; of a mark: 0.
"""


class EventKind(IntEnum):
    """What happened."""

    ALLOC = 0
    FREE = 1
    MARK = 2
