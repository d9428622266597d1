"""Runs the cases of ranks that share sequences, and writes what each rank found wrong, as JSON.

torchrun --nproc-per-node N tests/runtime/on_ranks.py OUT.json [CASE...]
"""

from __future__ import annotations

import gc
import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.runtime import shared_refusals, shared_sequences  # noqa: F401  # they add cases
from tests.runtime.shared_cases import (
    CASES,
)


def main(out: str, *names: str) -> None:
    torch.set_num_threads(1)
    # A case that leaves a rank waiting must fail and not hang.
    dist.init_process_group("gloo", timeout=timedelta(seconds=100))
    size = dist.get_world_size()
    mesh = dist.init_device_mesh("cpu", (size,))
    found: dict[str, list[Any]] = {}
    for name, (run, ranks) in CASES.items():
        if size not in ranks or (names and name not in names):
            continue
        why, began = None, time.monotonic()
        try:
            run(mesh)
        except (Exception, pytest.fail.Exception) as error:
            why = f"{type(error).__name__}: {error}"
        every: list[Any] = [None] * size
        dist.all_gather_object(every, why)
        found[name] = every
        if dist.get_rank() == 0:
            print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(found))
    gc.collect()  # what failed cases hold of the group
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
