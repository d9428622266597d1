"""Memory on both sides of a link, to copy for the sake of the copies."""

from __future__ import annotations

import torch

from memo_train.device.device import CopyEvent, Device


class CopyBuffers:
    """`num_bytes` on both sides for one copy each way, of its own for each direction.

    Use as a context manager.
    """

    def __init__(self, device: Device, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._device = device
        self._hosts: list[int] = []
        self._tensors: list[torch.Tensor] = []

    def __enter__(self) -> CopyBuffers:
        """Raises: torch.OutOfMemoryError, HostMemoryExceeded."""
        try:
            for _ in range(2):
                self._hosts.append(self._device.host_alloc(self.num_bytes))
                self._tensors.append(self._tensor())
            self._touch()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._device.synchronize()
        while self._hosts:
            self._device.host_free(self._hosts.pop())
        self._tensors.clear()

    def to_host(self) -> CopyEvent:
        """Start the copy to the host."""
        return self._device.copy_to_host(
            self._hosts[0], self._tensors[0].data_ptr(), self.num_bytes
        )

    def to_device(self) -> CopyEvent:
        """Start the copy to the device."""
        return self._device.copy_to_device(
            self._tensors[1].data_ptr(), self._hosts[1], self.num_bytes
        )

    def _tensor(self) -> torch.Tensor:
        device = self._device.torch_device
        return torch.empty(self.num_bytes, dtype=torch.uint8, device=device)

    def _touch(self) -> None:
        """Write every page once: a system gives the CPU's memory when it is first written."""
        for host, tensor in zip(self._hosts, self._tensors, strict=True):
            self._device.copy_to_device(tensor.data_ptr(), host, self.num_bytes).wait()
            self._device.copy_to_host(host, tensor.data_ptr(), self.num_bytes)
        self._device.synchronize()
