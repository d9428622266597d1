"""What the runtime asks of a device: host memory, copies, counters, and planned addresses.

    device = device_of(model.parameters())   # memo_train.device.choose
    host = device.host_alloc(nbytes)
    sent = device.copy_to_host(host, tensor.data_ptr(), nbytes)
    ...                                      # compute; do not write or free the tensor yet
    sent.wait()                              # now its memory may be freed

Compute is the tensor library's own work: the calling thread on the CPU, torch's current stream on a
GPU. On one host range the device keeps the order of the calls between the two directions. On one
*device* range the caller keeps it, with `CopyEvent.wait`: before the source of a copy to the host
is written or freed, and before the target of a copy to the device is read, written or freed.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch

from memo_train.device.arguments import positive
from memo_train.device.counters import DeviceCounters
from memo_train.device.events import Events
from memo_train.device.rows import Rows
from memo_train.device.steps import ReplayCounts, StepAddresses, StepLayout


def physical_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class CopyEvent(Protocol):
    """A point in the copies given to a device."""

    def done(self) -> bool:
        """Whether the copy has finished; never blocks."""

    def wait(self) -> None:
        """Let compute go on only when the copy has finished.

        On the CPU, where compute is the caller, that blocks it; on a GPU the caller goes on.
        """


class Transfer(Protocol):
    """The methods of csrc/copies/transfer.h; a shape is rows, bytes of a row, and two pitches."""

    def alloc_host(self, bytes: int, /) -> int:
        """Address of a new host range."""

    def to_host(self, target: int, source: int, shape: tuple[int, int, int, int], /) -> CopyEvent:
        """Start a copy to the host."""

    def to_device(self, target: int, source: int, shape: tuple[int, int, int, int], /) -> CopyEvent:
        """Start a copy to the device."""


class Device(ABC):
    """A device that tensors lie on. Any thread may call any method.

    Attributes:
        torch_device: where torch puts the tensors.
        alignment_bytes: of addresses; sizes of requests are rounded up to it.
        smallest_planned_bytes: smaller requests are scalars and shapes, which no layout plans.
    """

    torch_device: torch.device
    alignment_bytes: int
    smallest_planned_bytes: int
    _transfer: Transfer

    @property
    @abstractmethod
    def generators(self) -> Sequence[torch.Generator]:
        """The random-number generators that computation on this device draws from."""

    @property
    @abstractmethod
    def default_limit_bytes(self) -> int:
        """Device memory that a process may plan with if nobody says otherwise."""

    @property
    @abstractmethod
    def why_no_layouts(self) -> str:
        """Why steps cannot have planned addresses here; empty if they can."""

    @abstractmethod
    def set_device_cap(self, nbytes: int | None) -> None:
        """Limit device memory, fragmentation included; None: no cap.

        Raises:
            InvalidDeviceArgument: not positive, or below what is in use where that is known.
        """

    @abstractmethod
    def set_host_cap(self, nbytes: int | None) -> None:
        """Limit the host pool, cached ranges included; None: no cap.

        Raises:
            InvalidDeviceArgument: not positive, or below what is in use.
        """

    @abstractmethod
    def set_large_bytes(self, nbytes: int | None) -> None:
        """Requests from this size on are placed among their like, where the device does so.

        None: the device chooses. Changes addresses, never results.

        Raises:
            InvalidDeviceArgument: not positive.
        """

    def host_alloc(self, nbytes: int) -> int:
        """Address of `nbytes` bytes of host memory, page-aligned, rounded up to whole pages.

        Raises:
            HostMemoryExceeded: over the host cap, or refused by the system.
            InvalidDeviceArgument: `nbytes` is not positive.
        """
        return self._transfer.alloc_host(positive("nbytes", nbytes))

    @abstractmethod
    def host_free(self, address: int) -> None:
        """Give back what `host_alloc` returned, after its copies were waited for.

        Raises:
            InvalidDeviceArgument: unknown address, or freed before.
        """

    def copy_to_host(self, host: int, device_ptr: int, nbytes: int) -> CopyEvent:
        """Start copying `nbytes` bytes at `device_ptr` to `host`, after compute's work so far.

        Raises:
            InvalidDeviceArgument: the bytes are not in one host range, or not the device's.
        """
        return self.copy_rows_to_host(host, device_ptr, Rows.one(nbytes))

    def copy_to_device(self, device_ptr: int, host: int, nbytes: int) -> CopyEvent:
        """Start copying `nbytes` bytes at `host` to `device_ptr`, after compute's work so far.

        Raises:
            InvalidDeviceArgument: the bytes are not in one host range, or not the device's.
        """
        return self.copy_rows_to_device(device_ptr, host, Rows.one(nbytes))

    def copy_rows_to_host(self, host: int, device_ptr: int, rows: Rows) -> CopyEvent:
        """`copy_to_host` of equally spaced rows. Raises as it does."""
        shape = (rows.rows, rows.row_bytes, rows.host_pitch_bytes, rows.device_pitch_bytes)
        host, device_ptr = positive("host", host), positive("device_ptr", device_ptr)
        return self._transfer.to_host(host, device_ptr, shape)

    def copy_rows_to_device(self, device_ptr: int, host: int, rows: Rows) -> CopyEvent:
        """`copy_to_device` of equally spaced rows. Raises as it does."""
        shape = (rows.rows, rows.row_bytes, rows.device_pitch_bytes, rows.host_pitch_bytes)
        host, device_ptr = positive("host", host), positive("device_ptr", device_ptr)
        return self._transfer.to_device(device_ptr, host, shape)

    @abstractmethod
    def synchronize(self) -> None:
        """Block until all copies are done. Not counted as a stall."""

    @abstractmethod
    def now(self) -> float:
        """When compute is done with what it was given, in seconds; only differences mean something.

        On a GPU this blocks until then, so it is for measurements, not for training steps.
        """

    @abstractmethod
    def owns(self, ptr: int) -> bool:
        """Whether the address `ptr` is memory of this device that its copies reach."""

    @abstractmethod
    def counters(self) -> DeviceCounters:
        """All counters at this moment."""

    @abstractmethod
    def reset_peak(self) -> None:
        """Let peaks and high water start again from what is in use."""

    @abstractmethod
    def reset_counters(self) -> None:
        """Set copies, bytes, busy seconds and stalls to zero."""

    @abstractmethod
    def start_recording(self) -> None:
        """Record device memory's events from now on; a recording under way starts anew.

        Raises:
            NoPlannedAddresses: the device does not know of its tensors' memory.
        """

    @abstractmethod
    def mark(self, value: int) -> None:
        """Tell a recording or a step under way that it has come to place `value`, in [0, 2**64)."""

    @abstractmethod
    def stop_recording(self) -> Events:
        """The events since `start_recording`, in order; empty if it was not called."""

    @abstractmethod
    def make_layout(self, addresses: StepAddresses) -> StepLayout:
        """`addresses` for `begin_step`.

        Raises:
            InvalidDeviceArgument: sizes or offsets are not multiples of `alignment_bytes`, or
                marks are not in order.
        """

    @abstractmethod
    def begin_step(self, layout: StepLayout) -> bool:
        """Serve compute's requests at their planned addresses until `end_step`.

        False if there is no room for the layout: the step is then like any other.
        """

    @abstractmethod
    def end_step(self) -> ReplayCounts | None:
        """End the step under way; what it did, or None if none was begun."""
