"""The caps that a wrapped model puts on the device, and takes off again."""

from __future__ import annotations

from memo_train.device.device import Device
from memo_train.runtime.parts import ModelParts


class Caps:
    """Remembers the device's caps as it is made; `set` changes some, `restore` puts those back."""

    def __init__(self, device: Device) -> None:
        counters = device.counters()
        self._device = device
        self._before = (counters.device_cap_bytes, counters.host_cap_bytes)
        self._is_set = [False, False]

    def set(self, device_bytes: int | None, host_bytes: int | None, parts: ModelParts) -> None:
        """Set the caps that are given.

        The model's tensors that are older than the device count against its cap, though not in it.
        Raises: InvalidDeviceArgument if more is in use already, where the device knows of it.
        """
        if device_bytes is not None:
            where = self._device.torch_device
            tensors = (*parts.causal_lm.parameters(), *parts.causal_lm.buffers())
            here = [tensor for tensor in tensors if tensor.device == where]
            older = sum(t.nbytes for t in here if not self._device.owns(t.data_ptr()))
            self._device.set_device_cap(max(device_bytes - older, 1))
            self._is_set[0] = True
        if host_bytes is not None:
            self._device.set_host_cap(host_bytes)
            self._is_set[1] = True

    def restore(self) -> None:
        """The caps this object set become what they were before."""
        if self._is_set[0]:
            self._device.set_device_cap(self._before[0])
        if self._is_set[1]:
            self._device.set_host_cap(self._before[1])
        self._is_set = [False, False]
