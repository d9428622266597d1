"""Memory on both sides of a link, to copy for the sake of the copies."""

from __future__ import annotations

from memo_train.device.cpu import CpuDevice
from memo_train.device.cuda import CudaDevice
from memo_train.device.transfers import CopyEvent


class CopyBuffers:
    """`num_bytes` on both sides for one copy each way, of its own for each direction.

    Use as a context manager. Device memory is the device's own, not torch's.
    """

    def __init__(self, device: CpuDevice | CudaDevice, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._device = device
        self._hosts: list[int] = []
        self._blocks: list[int] = []

    def __enter__(self) -> CopyBuffers:
        """Raises: DeviceMemoryExceeded, HostMemoryExceeded."""
        try:
            for _ in range(2):
                self._hosts.append(self._device.host_alloc(self.num_bytes))
                self._blocks.append(self._device.device_alloc(self.num_bytes))
            self._touch()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._device.synchronize()
        while self._hosts:
            self._device.host_free(self._hosts.pop())
        while self._blocks:
            self._device.device_free(self._blocks.pop())

    def to_host(self) -> CopyEvent:
        """Start the copy to the host."""
        return self._device.copy_to_host(self._hosts[0], self._blocks[0], self.num_bytes)

    def to_device(self) -> CopyEvent:
        """Start the copy to the device."""
        return self._device.copy_to_device(self._blocks[1], self._hosts[1], self.num_bytes)

    def _touch(self) -> None:
        """Write every page once: a system gives the CPU's memory when it is first written."""
        for host, block in zip(self._hosts, self._blocks, strict=True):
            self._device.copy_to_device(block, host, self.num_bytes).wait()
            self._device.copy_to_host(host, block, self.num_bytes)
        self._device.synchronize()
