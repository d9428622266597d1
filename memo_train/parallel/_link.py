"""The speed of exchanges between ranks that share sequences, all of them sending at once."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from memo_train.parallel._group import SequenceGroup

_CPU_BYTES, _GPU_BYTES = 2**20, 64 * 2**20
"""Of one exchange, to all ranks together."""
_REPEATS = 3
_LEAST_S = 1e-6
_MOST_BYTES_PER_S = 1e15
"""Of a single rank, which sends nothing."""


def link_between(group: SequenceGroup, device: torch.device) -> float:
    """Bytes that each rank sends to others per second, on the slowest. A collective call.

    Of an all-to-all, the best of three. Raises: RanksDiffer, or what the memory for it raises.
    """
    if group.size == 1:
        return _MOST_BYTES_PER_S
    to_each = max(1, (_CPU_BYTES if device.type == "cpu" else _GPU_BYTES) // group.size)
    made: list[torch.Tensor] = []

    def make() -> tuple[dict[str, Any], None]:
        made.append(torch.zeros(group.size, to_each, dtype=torch.uint8, device=device))
        return {}, None

    # A rank without room for it must not leave the others waiting.
    group.agree(make)
    rows = made[0]
    group.exchange(rows)
    seconds = min(_exchange_s(group, rows) for _ in range(_REPEATS))
    slowest_s: float = max(group.gather(seconds))
    return (group.size - 1) * to_each / max(slowest_s, _LEAST_S)


def _exchange_s(group: SequenceGroup, rows: torch.Tensor) -> float:
    dist.barrier(group=group.group)
    start_s = time.perf_counter()
    received = group.exchange(rows)
    # Reading it waits for a GPU, too.
    received[-1, -1].item()
    return time.perf_counter() - start_s
