"""A device for fake steps: memory of the process's arena, copies that move nothing, a clock.

The clock goes by the speeds of a device that is only imagined.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from memo_planner.checks import check_fields
from memo_train.device import CpuCounters, CpuDevice, PlainCopies, Rows, get_cpu_device
from memo_train.trace._flops import OpCost

_PAGE_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """What a fake step's clock counts by. All figures are assumptions of whoever gives them.

    flops_per_s: the device's peak. matmul_efficiency, attention_efficiency: the share of it that
    matrix products and attention reach, above 0 and at most 1.
    memory_bytes_per_s: for all other operations, by the bytes that they read and write.
    op_overhead_s: seconds that every operation takes besides.
    op_issue_s: seconds in which the host asks for an operation: none is shorter. A stage begins
        when the one before it is over, as under a clock that waits.
    d2h_bytes_per_s, h2d_bytes_per_s: the link's, each way.

    Raises: InvalidInput.
    """

    flops_per_s: float
    matmul_efficiency: float
    attention_efficiency: float
    memory_bytes_per_s: float
    d2h_bytes_per_s: float
    h2d_bytes_per_s: float
    op_overhead_s: float = 0.0
    op_issue_s: float = 0.0

    def __post_init__(self) -> None:
        rates = ("flops_per_s", "memory_bytes_per_s", "d2h_bytes_per_s", "h2d_bytes_per_s")
        check_fields(self, rates, least=1.0)
        check_fields(self, ("matmul_efficiency", "attention_efficiency"), least=1e-6, most=1.0)
        check_fields(self, ("op_overhead_s", "op_issue_s"))


A800 = Speeds(
    flops_per_s=312e12,
    matmul_efficiency=0.6,
    attention_efficiency=0.55,
    memory_bytes_per_s=2.0e12,
    d2h_bytes_per_s=32e9,
    h2d_bytes_per_s=32e9,
)
"""312 TFLOP/s in bf16 and 32 GB/s: MEMO §experiments; 2 TB/s of memory: the vendor's data sheet
of the A100 80 GB. The efficiencies are round guesses, to be replaced by measured ones."""


class FakeDevice(CpuDevice):
    """Counts bytes and copies as the CPU device does, on a clock that only `compute` and waits
    move: so a step's seconds, stalls included, follow from `speeds`.

    Device memory is the arena's own, so that every request gets its address; host memory has
    addresses and no pages.
    """

    def __init__(self, speeds: Speeds) -> None:
        self.core = get_cpu_device().core
        self.speeds = speeds
        self.flops = 0.0
        self._now_s = 0.0
        self._links = {"d2h": _Link(speeds.d2h_bytes_per_s), "h2d": _Link(speeds.h2d_bytes_per_s)}
        self._host_bytes: dict[int, int] = {}
        # No range is at address 0, which checks of addresses refuse.
        self._next_host = _PAGE_BYTES
        self._host_used = self._host_peak = 0
        self._stalls, self._stall_s = 0, 0.0

    @property
    def runs_behind(self) -> bool:
        """Where asking for an operation takes time of its own."""
        return self.speeds.op_issue_s > 0

    def now(self) -> float:
        """Seconds that the steps so far would have taken."""
        return self._now_s

    def compute(self, cost: OpCost) -> None:
        """An operation runs: the clock moves on."""
        speeds = self.speeds
        self.flops += cost.flops
        if cost.flops:
            efficiency = speeds.matmul_efficiency
            if cost.is_attention:
                efficiency = speeds.attention_efficiency
            work_s = cost.flops / (speeds.flops_per_s * efficiency)
        else:
            work_s = cost.touched_bytes / speeds.memory_bytes_per_s
        self._now_s += max(work_s + speeds.op_overhead_s, speeds.op_issue_s)

    def host_alloc(self, nbytes: int) -> int:
        """An address of `nbytes` of host memory, in whole pages, without memory behind it."""
        address, num_bytes = self._next_host, -(-nbytes // _PAGE_BYTES) * _PAGE_BYTES
        self._next_host += num_bytes
        self._host_bytes[address] = num_bytes
        self._host_used += num_bytes
        self._host_peak = max(self._host_peak, self._host_used)
        return address

    def host_free(self, address: int) -> None:
        """Give back what `host_alloc` returned."""
        self._host_used -= self._host_bytes.pop(address)

    def copy_rows_to_host(self, host: int, device_ptr: int, rows: Rows) -> Any:
        """The event of a copy that takes its time and moves nothing."""
        return self._copy("d2h", rows)

    def copy_rows_to_device(self, device_ptr: int, host: int, rows: Rows) -> Any:
        """The event of a copy that takes its time and moves nothing."""
        return self._copy("h2d", rows)

    def copy_all_to_host(self, copies: PlainCopies) -> Any:
        """The event of the last of copies that take their time and move nothing."""
        return [self.copy_to_host(*copy) for copy in copies][-1]

    def copy_all_to_device(self, copies: PlainCopies) -> Any:
        """The event of the last of copies that take their time and move nothing."""
        return [self.copy_to_device(*copy) for copy in copies][-1]

    def synchronize(self) -> None:
        """Let the clock reach the end of all copies."""
        self._now_s = max(self._now_s, *(link.free_at_s for link in self._links.values()))

    def stall_until(self, time_s: float) -> None:
        """Compute waits for a copy that is done at `time_s`."""
        if time_s > self._now_s:
            self._stalls += 1
            self._stall_s += time_s - self._now_s
            self._now_s = time_s

    def counters(self) -> CpuCounters:
        """The arena's counters, and this device's own of host memory, copies and stalls."""
        d2h, h2d = self._links["d2h"], self._links["h2d"]
        return replace(
            super().counters(),
            host_used_bytes=self._host_used,
            host_peak_bytes=self._host_peak,
            host_cached_bytes=0,
            host_cap_bytes=None,
            d2h_copies=d2h.copies,
            d2h_bytes=d2h.bytes,
            d2h_busy_s=d2h.busy_s,
            h2d_copies=h2d.copies,
            h2d_bytes=h2d.bytes,
            h2d_busy_s=h2d.busy_s,
            stalls=self._stalls,
            stall_s=self._stall_s,
        )

    def reset_peak(self) -> None:
        """Let peaks start again from what is in use."""
        super().reset_peak()
        self._host_peak = self._host_used

    def _copy(self, way: str, rows: Rows) -> _FakeEvent:
        done_at_s = self._links[way].start(rows.rows * rows.row_bytes, self._now_s)
        return _FakeEvent(self, done_at_s)


class _Link:
    """One direction: copies take their turn."""

    def __init__(self, bytes_per_s: float) -> None:
        self.copies = self.bytes = 0
        self.busy_s = self.free_at_s = 0.0
        self._bytes_per_s = bytes_per_s

    def start(self, num_bytes: int, now_s: float) -> float:
        """When a copy that is asked for now will be done."""
        took_s = num_bytes / self._bytes_per_s
        self.copies += 1
        self.bytes += num_bytes
        self.busy_s += took_s
        self.free_at_s = max(self.free_at_s, now_s) + took_s
        return self.free_at_s


class _FakeEvent:
    """The end of a fake copy; as `memo_train.device.CopyEvent`."""

    def __init__(self, device: FakeDevice, done_at_s: float) -> None:
        self._device, self._done_at_s = device, done_at_s

    def done(self) -> bool:
        return self._device.now() >= self._done_at_s

    def wait(self) -> None:
        self._device.stall_until(self._done_at_s)
