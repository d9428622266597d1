"""Storages that leave the device for the host pool and come back, asynchronously."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate

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
        self._copies: deque[tuple[CopyEvent, Sequence[torch.Tensor], list[int], int]] = deque()
        self._bytes = 0

    def add(self, event: CopyEvent, sources: Sequence[torch.Tensor], num_bytes: int) -> None:
        """Keep `sources` until `event`; waits for older copies beyond the limit.

        num_bytes: of their storages: all of one lives on, whatever part of it a tensor shows.
        """
        self._copies.append((event, sources, [source._version for source in sources], num_bytes))
        self._bytes += num_bytes
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
        event, sources, versions, num_bytes = self._copies.popleft()
        self._bytes -= num_bytes
        event.wait()
        for source, version in zip(sources, versions, strict=True):
            if source._version != version:
                raise InPlaceModified(
                    f"a saved tensor {tuple(source.shape)} of {source.dtype} was modified in place "
                    f"after it was swapped (version {version}, now {source._version}); keep or "
                    "recompute this model's tiles (alpha=0), or remove the in-place operation"
                )


SwapTarget = tuple[Device, CopiesInFlight]


PAGE_BYTES = 4096
"""What the host pool hands out is a multiple of it."""


class SwappedStorages:
    """Storages on the host, in one range of it: `prefetch` starts their way back together.

    Bytes move unchanged (numerics level 1). Host memory is given back once all of them are on the
    device again, or when the object is dropped.
    """

    def __init__(
        self, sources: Sequence[torch.Tensor], device: Device, in_flight: CopiesInFlight
    ) -> None:
        """Start the copies of all of each source's storage. Raises: HostMemoryExceeded.

        sources: of different storages, without graphs.
        """
        storages = [source.untyped_storage() for source in sources]
        self._sizes = [storage.nbytes() for storage in storages]
        self.num_bytes = sum(self._sizes)
        self._device = device
        # Each in pages of its own, as plans count them.
        pages = [-(-num_bytes // PAGE_BYTES) * PAGE_BYTES for num_bytes in self._sizes]
        host = device.host_alloc(sum(pages))
        self._places = list(accumulate(pages[:-1], initial=host))
        copies = zip(self._places, (s.data_ptr() for s in storages), self._sizes, strict=True)
        try:
            self._sent = device.copy_all_to_host(list(copies))
        except BaseException:
            device.host_free(host)
            raise
        self._host = host
        self._returning: list[CopyEvent] = []
        self._here: dict[int, tuple[torch.UntypedStorage, CopyEvent]] = {}
        in_flight.add(self._sent, sources, self.num_bytes)

    @property
    def swapped_bytes(self) -> int:
        """Bytes that will come back from the host; none once they were taken."""
        return self.num_bytes if self._host else 0

    def prefetch(self) -> None:
        """Allocate device memory and start the copies back of all that did not start yet."""
        missing = [i for i in range(len(self._sizes)) if i not in self._here]
        if missing:
            self._fetch(missing)

    def take(self, index: int) -> torch.UntypedStorage:
        """A storage on the device, its copy finished; as often as it is asked for.

        Where nobody has fetched it, it comes alone: memory is short, and the others come later.
        """
        if index not in self._here:
            self._fetch([index])
        storage, returned = self._here[index]
        if self._host:
            returned.wait()
            self._returning = [event for event in self._returning if event is not returned]
            if len(self._here) == len(self._sizes) and not self._returning:
                self._free_host()
        return storage

    def _fetch(self, indices: Sequence[int]) -> None:
        self._sent.wait()
        where = self._device.torch_device
        storages = [
            torch.empty(self._sizes[index], dtype=torch.uint8, device=where).untyped_storage()
            for index in indices
        ]
        returned = self._device.copy_all_to_device(
            [
                (storage.data_ptr(), self._places[index], self._sizes[index])
                for index, storage in zip(indices, storages, strict=True)
            ]
        )
        self._returning.append(returned)
        self._here |= {i: (s, returned) for i, s in zip(indices, storages, strict=True)}

    def _free_host(self) -> None:
        self._device.host_free(self._host)
        self._host = 0

    def __del__(self) -> None:
        # Absent where host memory was refused; set where no backward took the storages.
        if getattr(self, "_host", 0):
            self._sent.wait()
            for event in self._returning:
                event.wait()
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
        sources = (tensor.detach(),)
        self._swapped = SwappedStorages(sources, device, in_flight) if swap else None

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
            storage, self._swapped = self._swapped.take(0), None
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
