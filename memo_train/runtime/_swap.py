"""Storages that leave the device for the host pool and come back, asynchronously."""

from __future__ import annotations

from collections import deque

import torch

from memo_train.device import CopyEvent, Device
from memo_train.errors import InPlaceModified


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether dtype, shape, stride, offset and the bytes of the storage are all of a tensor.

    They are not of a subclass (DTensor, quantised weights), of a nested, sparse or quantised
    tensor, nor where a conjugation or a sign waits to be applied.
    """
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and not (tensor.is_conj() or tensor.is_neg() or tensor.is_quantized or tensor.is_nested)
    )


def version_of(tensor: torch.Tensor) -> int:
    """Counts writes to a tensor; inference tensors do not count theirs."""
    return 0 if tensor.is_inference() else tensor._version


class CopiesInFlight:
    """Device-to-host copies under way; keeps their sources alive until they are done.

    At most `limit_bytes` of sources are kept: beyond that the oldest are waited for (a stall).
    hold: whether a source is kept until the limit lets it go, as it would be if copies were slow.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.hold = False
        self._limit_bytes = limit_bytes
        self._copies: deque[tuple[CopyEvent, torch.Tensor, int]] = deque()
        self._bytes = 0

    def add(self, event: CopyEvent, source: torch.Tensor) -> None:
        """Keep `source` until `event`; waits for older copies beyond the limit."""
        self._copies.append((event, source, source._version))
        # All of the storage lives on, whatever part of it the tensor shows.
        self._bytes += source.untyped_storage().nbytes()
        self.allow(self._limit_bytes)
        self.release_done()

    def allow(self, limit_bytes: int) -> None:
        """Keep at most so many bytes from now on."""
        self._limit_bytes = limit_bytes
        while self._copies and self._bytes > limit_bytes:
            self._finish_oldest()

    def release_done(self) -> None:
        """Let go of the sources whose copies are done, unless they are held."""
        while not self.hold and self._copies and self._copies[0][0].done():
            self._finish_oldest()

    def drain(self) -> None:
        """Wait for every copy."""
        while self._copies:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        event, source, version = self._copies.popleft()
        self._bytes -= source.untyped_storage().nbytes()
        event.wait()
        if source._version != version:
            raise InPlaceModified(
                f"a saved tensor {tuple(source.shape)} of {source.dtype} was modified in place "
                f"after it was swapped (version {version}, now {source._version}); keep or "
                "recompute this model's tiles (alpha=0), or remove the in-place operation"
            )


SwapTarget = tuple[Device, CopiesInFlight]


class SwappedStorage:
    """One storage on the host: `prefetch` starts its way back, `take` waits for it.

    Bytes move unchanged (numerics level 1). Host memory is given back once the storage is on the
    device again, or when the object is dropped.
    """

    def __init__(self, source: torch.Tensor, device: Device, in_flight: CopiesInFlight) -> None:
        """Start the copy of all of `source`'s storage. Raises: HostMemoryExceeded."""
        storage = source.untyped_storage()
        self.num_bytes = storage.nbytes()
        self._device = device
        self._host = device.host_alloc(self.num_bytes)
        self._sent = device.copy_to_host(self._host, storage.data_ptr(), self.num_bytes)
        self._returned: tuple[torch.UntypedStorage, CopyEvent] | None = None
        in_flight.add(self._sent, source.detach())

    def prefetch(self) -> None:
        """Allocate device memory and start the copy back; no-op when already started."""
        if self._returned is not None:
            return
        self._sent.wait()
        storage = torch.empty(
            self.num_bytes, dtype=torch.uint8, device=self._device.torch_device
        ).untyped_storage()
        event = self._device.copy_to_device(storage.data_ptr(), self._host, self.num_bytes)
        self._returned = (storage, event)

    def take(self) -> torch.UntypedStorage:
        """The storage on the device, its copy finished."""
        self.prefetch()
        assert self._returned is not None
        storage, event = self._returned
        event.wait()
        self._free_host()
        return storage

    def _free_host(self) -> None:
        if self._host:
            self._device.host_free(self._host)
            self._host = 0

    def __del__(self) -> None:
        # Absent where host memory was refused; set where no backward took the storage.
        if getattr(self, "_host", 0):
            self._sent.wait()
            if self._returned is not None:
                self._returned[1].wait()
            self._free_host()


class WholeTensor:
    """A block's input x or attention output o between forward and backward: kept or swapped.

    A tensor that is no device memory (older than the device), or more than its memory, is kept.
    """

    def __init__(
        self, tensor: torch.Tensor, device: Device, in_flight: CopiesInFlight, *, swap: bool
    ) -> None:
        self.num_bytes = tensor.nbytes
        self._shape, self._stride = tensor.shape, tensor.stride()
        self._offset, self._dtype = int(tensor.storage_offset()), tensor.dtype
        swap = swap and is_plain(tensor) and device.owns(tensor.untyped_storage().data_ptr())
        self._kept: torch.Tensor | None = None if swap else tensor.detach()
        self._version = tensor._version
        self._swapped = SwappedStorage(tensor, device, in_flight) if swap else None

    @property
    def swapped_bytes(self) -> int:
        """Bytes that will come back from the host."""
        return 0 if self._swapped is None else self._swapped.num_bytes

    def prefetch(self) -> None:
        """Start the copy back, if it was swapped."""
        if self._swapped is not None:
            self._swapped.prefetch()

    def take(self) -> torch.Tensor:
        """The tensor, once: the reference is given away."""
        if self._swapped is not None:
            storage, self._swapped = self._swapped.take(), None
            return torch.empty(0, dtype=self._dtype, device=storage.device).set_(
                storage, self._offset, self._shape, self._stride
            )
        tensor, self._kept = self._kept, None
        assert tensor is not None
        if tensor._version != self._version:
            raise InPlaceModified(
                f"a block input or attention output {tuple(self._shape)} was modified in place "
                f"(version {self._version}, now {tensor._version}) after it was saved for backward"
            )
        return tensor
