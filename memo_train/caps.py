"""The caps that wrapped models put on their device."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from memo_train.device import Device, InvalidDeviceArgument
from memo_train.runtime import ModelParts, held_here

CapsBytes = tuple[int | None, int | None]
"""Of the device and of the host pool; None is no cap of one's own."""


class Caps:
    """The caps that one model sets on its device; `set` sets some, `restore` takes them back.

    Several models may have set some. The last one's count, and when it is unwrapped or dropped
    those of the one before; after the first, what was there before all of them.
    """

    _of_devices: ClassVar[dict[Device, list[Caps]]] = {}
    """Who has set some, first to last."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._before = _caps_of(device)
        self._own: CapsBytes = (None, None)

    def set(self, device_bytes: int | None, host_bytes: int | None, parts: ModelParts) -> None:
        """Set the caps that are given, until `restore` or the end of the model.

        The model's tensors that are older than the device count against its cap, though not in it.
        Raises: InvalidDeviceArgument if more is in use already, where the device knows of it.
        """
        self._of_devices.setdefault(self._device, []).append(self)
        weakref.finalize(parts.causal_lm, self.restore).atexit = False
        if device_bytes is not None:
            where = self._device.torch_device
            every = (*parts.causal_lm.parameters(), *parts.causal_lm.buffers())
            tensors = map(held_here, every)
            here = [tensor for tensor in tensors if tensor.device == where]
            older = sum(t.nbytes for t in here if not self._device.owns(t.data_ptr()))
            # 0 is no cap that may be set; under 1 byte the first request says what is short.
            device_bytes = max(device_bytes - older, 1)
            try:
                self._device.set_device_cap(device_bytes)
            except InvalidDeviceArgument:
                # A model that was dropped, wrapped, is in cycles and may still be there.
                gc.collect()
                self._device.set_device_cap(device_bytes)
            self._own = (device_bytes, None)
        if host_bytes is not None:
            self._device.set_host_cap(host_bytes)
            self._own = (self._own[0], host_bytes)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """While active, the device's cap is what it was before this object set one."""
        cap_bytes = self._device.counters().device_cap_bytes
        if self._own[0] is not None:
            self._device.set_device_cap(self._before[0])
        try:
            yield
        finally:
            if self._own[0] is not None:
                self._device.set_device_cap(cap_bytes)

    def restore(self) -> None:
        """The caps become what they were before, or stay if others have set theirs since."""
        models = self._of_devices.get(self._device, [])
        if self not in models:
            return
        at = models.index(self)
        if at + 1 < len(models):
            # Whoever came after comes after what was before this one.
            models[at + 1]._before = self._before
        else:
            for own, before, put in zip(
                self._own,
                self._before,
                (self._device.set_device_cap, self._device.set_host_cap),
                strict=True,
            ):
                if own is not None:
                    put(before)
        models.remove(self)
        self._own = (None, None)


def _caps_of(device: Device) -> CapsBytes:
    counters = device.counters()
    return counters.device_cap_bytes, counters.host_cap_bytes
