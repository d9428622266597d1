"""Every request at its planned address: the layout of the step."""

from __future__ import annotations

import numpy as np

from memo_planner.allocators.replay import Replay
from memo_planner.allocators.run import AllocatorRun
from memo_planner.layout.placement import Placement
from memo_planner.layout.step import lay_out_step
from memo_planner.layout.validate import faults
from memo_planner.trace.requests import Requests


def planned(
    requests: Requests,
    name: str,
    *,
    alignment_bytes: int = 512,
    cap_bytes: int | None = None,
    seconds: float = 10.0,
) -> Replay:
    """The layout as an allocator's run, checked by the independent validator.

    Reserved is the layout's peak, allocated the most bytes alive at once, both with every size
    rounded up to the alignment: fragmentation is 0 exactly where the layout is proved optimal.
    Under a cap, refused is the first request that ends above it.

    Raises: InvalidInput; SolverError.
    """
    placement = lay_out_step(requests, alignment_bytes=alignment_bytes, seconds=seconds)
    found = faults(placement)
    assert not found, f"the layout is invalid: {found[0]}"
    refused = None if cap_bytes is None else _first_above(placement, cap_bytes)
    run = AllocatorRun(
        allocator=name,
        requested_peak_bytes=requests.peak_bytes(),
        allocated_peak_bytes=placement.lower_bound_bytes,
        reserved_peak_bytes=placement.peak_bytes,
        refused_id=None if refused is None else int(requests.ids[refused]),
    )
    return Replay(run=run, addresses=placement.offset_bytes)


def _first_above(placement: Placement, cap_bytes: int) -> int | None:
    ends = placement.offset_bytes + placement.problem.padded_bytes
    above = np.flatnonzero(ends > cap_bytes)
    return int(above[0]) if len(above) else None
