"""A step of two blocks with all that an export shows, and addresses for it."""

import numpy as np

from memo_planner.trace import BEFORE, NOWHERE, PHASES, Requests

FORWARD, LOSS, BACKWARD = (PHASES.index(name) for name in ("forward", "loss", "backward"))
OP_NAMES = ("", "pre:mm", "post", "post_backward:add", "mean")
ROWS = (
    # id, made, freed, bytes, phase, block, tile, op, address
    (10, 0, 9, 100, BEFORE, NOWHERE, NOWHERE, 0, 0),
    (11, 1, 8, 400, FORWARD, 0, 0, 1, 100),
    (12, 2, 3, 50, FORWARD, 0, 1, 1, 500),
    (13, 4, 12, 200, FORWARD, 1, 0, 2, 500),
    (14, 5, 6, 30, LOSS, NOWHERE, NOWHERE, 4, 700),
    (15, 7, 10, 80, BACKWARD, 1, 0, 3, 700),
    (16, 11, 12, 64, BACKWARD, 0, NOWHERE, 0, 0),
)
ADDRESSES = np.array([row[8] for row in ROWS], np.int64)


def placed_step() -> Requests:
    """13 and 16 outlive it, 10 lived before it."""
    columns = [np.array([row[k] for row in ROWS], np.int64) for k in range(8)]
    names = ("ids", "malloc_times", "free_times", "size_bytes", "phases", "blocks", "tiles", "ops")
    return Requests(**dict(zip(names, columns, strict=True)), op_names=OP_NAMES, end_time=12)
