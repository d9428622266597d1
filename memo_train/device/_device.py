"""What the runtime asks of a device: host memory, copies, counters, and planned addresses.

    device = device_of(model.parameters())   # memo_train.device
    host = device.host_alloc(nbytes)
    sent = device.copy_to_host(host, tensor.data_ptr(), nbytes)
    ...                                      # compute; do not write or free the tensor yet
    sent.wait()                              # now its memory may be freed

Compute is the tensor library's own work: the calling thread on the CPU, torch's current stream on a
GPU. On one host range the device keeps the order of the calls between the two directions. On one
*device* range the caller keeps it, with `CopyEvent.wait`: before the source of a copy to the host
is written or freed, and before the target of a copy to the device is read, written or freed.
Arguments are checked here, before anything is changed.
"""

from __future__ import annotations

import math
import operator
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Protocol, SupportsIndex, TypeAlias

import torch

from memo_train.device._counters import DeviceCounters
from memo_train.device._steps import Events, ReplayCounts, StepAddresses, StepLayout
from memo_train.device.errors import InvalidDeviceArgument

_ABOVE = 1 << 63


def positive(name: str, value: SupportsIndex, way_out: str = "") -> int:
    """`value` as an int in [1, 2**63), else InvalidDeviceArgument; `way_out` ends its message."""
    if type(value) is int and 0 < value < _ABOVE:  # a step asks for every copy
        return value
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    # True is a whole number to Python, and never meant as a size.
    if isinstance(value, bool) or not 0 < number < _ABOVE:
        raise InvalidDeviceArgument(
            f"{name} must be a positive whole number below 2**63, got {value!r}{way_out}"
        )
    return number


def _checked(copies: PlainCopies) -> PlainCopies:
    """`copies`, if there are any and all their figures are positive."""
    if not copies or not 0 < min(map(min, copies)) <= max(map(max, copies)) < _ABOVE:
        raise InvalidDeviceArgument(
            f"copies need positive addresses and sizes below 2**63, got {copies!r}"
        )
    return copies


def cap_bytes(name: str, value: int | None) -> int | None:
    """`value` if it is None (no cap) or positive."""
    return None if value is None else positive(name, value, "; None means no cap")


def bytes_per_s(name: str, value: float | None) -> float | None:
    """`value` if it is None (no limit) or finite and positive."""
    if value is not None and not (isinstance(value, Real) and math.isfinite(value) and value > 0):
        raise InvalidDeviceArgument(
            f"the {name} bandwidth must be finite and positive, got {value!r} bytes/s; "
            "None means no limit"
        )
    return value


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The shape of a two-dimensional copy: `rows` runs of `row_bytes` bytes.

    Pitches are the distances in bytes between the starts of neighbouring runs, at least
    `row_bytes`. A tile `x[:, a:b]` of a contiguous `[batch, tokens, hidden]` tensor is `batch` rows
    of `(b - a) * hidden * itemsize` bytes at a pitch of `tokens * hidden * itemsize`.

    Raises:
        InvalidDeviceArgument: a figure is not positive, or rows overlap.
    """

    rows: int
    row_bytes: int
    device_pitch_bytes: int
    host_pitch_bytes: int

    def __post_init__(self) -> None:
        for name in ("rows", "row_bytes", "device_pitch_bytes", "host_pitch_bytes"):
            positive(name, getattr(self, name))
        if min(self.device_pitch_bytes, self.host_pitch_bytes) < self.row_bytes:
            raise InvalidDeviceArgument(
                f"rows of {self.row_bytes} bytes overlap at a pitch of {self.device_pitch_bytes} "
                f"(device) and {self.host_pitch_bytes} (host) bytes"
            )

    @classmethod
    def one(cls, nbytes: int) -> Rows:
        """The shape of a plain copy of `nbytes` bytes."""
        return cls(rows=1, row_bytes=nbytes, device_pitch_bytes=nbytes, host_pitch_bytes=nbytes)


def memory_share_bytes(root: Path = Path("/")) -> int:
    """This process's equal share of the memory that its machine or container may use.

    The processes that torchrun started on this machine (LOCAL_WORLD_SIZE) have a share each.
    root: where proc and sys are looked for. Source: the kernel's cgroup-v2 and memory pages.
    """
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    local_processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    share = int(local_processes) if local_processes.isdecimal() else 1
    return min(machine_bytes, *_container_limits(root)) // max(share, 1)


def _container_limits(root: Path) -> Iterator[int]:
    """Limits of the control groups around this process, innermost first, and no limit last."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        # Version 2 has one tree, version 1 one for each controller.
        top = root / "sys/fs/cgroup" / controllers
        name = "memory.max" if not controllers else "memory.limit_in_bytes"
        inner = top / group.lstrip("/")
        # Inside a container the group is named as outside, and only the top may be seen.
        for place in (inner, *inner.parents):
            text = _text(place / name).strip()
            if text.isdecimal():
                yield int(text)
            if place == top:
                break
    yield sys.maxsize


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


PlainCopies: TypeAlias = Sequence[tuple[int, int, int]]
"""(target address, source address, bytes) of copies that are asked for together."""


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

    def all_to_host(self, copies: PlainCopies, /) -> CopyEvent:
        """Start copies to the host."""

    def all_to_device(self, copies: PlainCopies, /) -> CopyEvent:
        """Start copies to the device."""


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
    def runs_behind(self) -> bool:
        """Whether operations run behind the thread that asks for them, as a GPU's do."""
        return False

    @property
    @abstractmethod
    def default_limit_bytes(self) -> int:
        """Device memory that a process may plan with if nobody says otherwise."""

    @property
    def rounding_bytes(self) -> int:
        """What a cap may count beyond the tensors' bytes, whatever they are; plans do not count it.

        What is lost between tensors is another matter: the lines of a profile allow for that.
        """
        return 0

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

    def reserve_host(self, nbytes: int) -> None:  # noqa: B027  # most devices have nothing to do
        """Prepare now what host ranges of `nbytes` together will need in steps to come.

        Raises:
            HostMemoryExceeded: the machine refuses that much.
        """

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

    def copy_all_to_host(self, copies: PlainCopies) -> CopyEvent:
        """`copy_to_host` of each in turn, with one event for all, for less than each would cost.

        Raises:
            InvalidDeviceArgument: as `copy_to_host`, or there are none; nothing was started.
        """
        return self._transfer.all_to_host(_checked(copies))

    def copy_all_to_device(self, copies: PlainCopies) -> CopyEvent:
        """`copy_to_device` of each in turn, with one event for all. Raises as its like does."""
        return self._transfer.all_to_device(_checked(copies))

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
