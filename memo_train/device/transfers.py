"""Host ranges and copies of a device whose memory the host cannot read, over a C++ `Transfer`."""

from typing import Protocol

from memo_train.device.arguments import positive
from memo_train.device.rows import Rows


class CopyEvent(Protocol):
    """A point in the copies given to a device."""

    def done(self) -> bool:
        """Whether the copy has finished; never blocks."""

    def wait(self) -> None:
        """Let compute go on only when the copy has finished; the caller goes on at once."""


class Transfer(Protocol):
    """The methods of csrc/device/transfer.h; a shape is rows, bytes of a row, and two pitches."""

    def alloc_host(self, bytes: int, /) -> int:
        """Address of a new host range."""

    def retire_host(self, data: int, /) -> None:
        """Give a host range up, copies of it under way or not."""

    def to_host(self, target: int, source: int, shape: tuple[int, int, int, int], /) -> CopyEvent:
        """Start a copy to the host."""

    def to_device(self, target: int, source: int, shape: tuple[int, int, int, int], /) -> CopyEvent:
        """Start a copy to the device."""


class Transfers:
    """Host memory and copies, for devices that run behind the calling thread.

    The device keeps the order of the two directions on one host range. On one *device* range the
    caller keeps it, with `CopyEvent.wait`.
    """

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    def host_alloc(self, nbytes: int) -> int:
        """Address of `nbytes` bytes of host memory, page-aligned, rounded up to whole pages.

        Raises:
            HostMemoryExceeded: over the host cap, or refused by the system.
            InvalidDeviceArgument: `nbytes` is not positive.
        """
        return self._transfer.alloc_host(positive("nbytes", nbytes))

    def host_free(self, address: int) -> None:
        """Give back what `host_alloc` returned; it counts as used until its copies are done.

        Raises:
            InvalidDeviceArgument: unknown address, or freed before.
        """
        self._transfer.retire_host(positive("host address", address))

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
