"""Runs the self-test of this process with a fault planted: `faulty.py FAULT ARGUMENTS...`."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import replace

import torch

from memo_train.device import CpuDevice, PlainCopies, Rows
from memo_train.selftest import _gradients as gradients
from memo_train.selftest import _modes as modes
from memo_train.selftest import _step_times as step_times
from memo_train.selftest.__main__ import main


def flip_a_byte() -> None:
    """What comes back to the device has its first byte changed."""
    in_rows, together = CpuDevice.copy_rows_to_device, CpuDevice.copy_all_to_device

    def flipped(self: CpuDevice, device_ptr: int, host: int, rows: Rows) -> object:
        event = in_rows(self, device_ptr, host, rows)
        event.wait()
        ctypes.c_uint8.from_address(device_ptr).value ^= 1
        return event

    def all_flipped(self: CpuDevice, copies: PlainCopies) -> object:
        event = together(self, copies)
        event.wait()
        for device_ptr, _, _ in copies:
            ctypes.c_uint8.from_address(device_ptr).value ^= 1
        return event

    CpuDevice.copy_rows_to_device, CpuDevice.copy_all_to_device = flipped, all_flipped


def flip_on_rank_1() -> None:
    if os.environ["RANK"] == "1":
        flip_a_byte()


def refuse_on_rank_1() -> None:
    """No host memory on one rank."""

    def refuse(self: CpuDevice, nbytes: int) -> int:
        raise MemoryError(f"no {nbytes} bytes")

    if os.environ["RANK"] == "1":
        CpuDevice.host_alloc = refuse


def plan_too_little() -> None:
    """A peak that no step keeps."""
    plan = modes.memo_train.plan

    class TooLittle:
        device_peak_bytes = 1000

    def wrong(model: torch.nn.Module) -> object:
        plan(model)
        return type("Plan", (), {"prediction": TooLittle})

    modes.memo_train.plan = wrong


def refuse_to_wrap() -> None:
    def refuse(*_: object, **__: object) -> None:
        raise gradients.memo_train.errors.UnsupportedModel("no wrap for this device")

    modes.memo_train.wrap = refuse


FAULTS: dict[str, Callable[[], None]] = {
    fault.__name__: fault
    for fault in (flip_a_byte, flip_on_rank_1, refuse_on_rank_1, plan_too_little, refuse_to_wrap)
}

if __name__ == "__main__":
    step_times._CPU_SIZE = replace(step_times._CPU_SIZE, tokens=256)  # no fault is of speed
    FAULTS[sys.argv.pop(1)]()
    sys.exit(main())
