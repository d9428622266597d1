"""Tensors whose memory waits on the host while something runs that does not read them.

Others may hold them: the model's own forward names a block's input and its position tables,
autograd the gradient that a block's backward was given. So they cannot be let go of, but while
attention runs, whose calls the runtime makes itself, nobody reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from memo_train.device import Device
from memo_train.runtime._swap import is_plain


def parkable(
    tensors: Iterable[torch.Tensor], read: frozenset[int], device: Device
) -> tuple[torch.UntypedStorage, ...]:
    """The memory of `tensors` that can be parked, each once.

    read: `storage_keys` of what is read meanwhile. Left out is what is no device memory, what
    shares it with other processes or libraries, and what is more than its memory.
    """
    found: dict[int, torch.UntypedStorage] = {}
    for tensor in filter(is_plain, tensors):
        storage = tensor.untyped_storage()
        at = storage.data_ptr()
        if storage.nbytes() and at not in read and device.owns(at) and storage.resizable():
            found[at] = storage
    return tuple(found.values())


@contextmanager
def parked(
    storages: Sequence[torch.UntypedStorage], device: Device, *, poisons: bool = False
) -> Iterator[None]:
    """While active, these have no device memory; then the same bytes again (numerics level 1).

    poisons: keep the memory and fill it with NaN, to show whether anything reads it after all.
    Raises: HostMemoryExceeded.
    """
    if not storages:
        yield
        return
    sizes = [storage.nbytes() for storage in storages]
    places = _sent(storages, sizes, device)
    try:
        for storage in storages:
            _leave(storage, poisons=poisons)
        yield
    finally:
        _bring_back(storages, sizes, places, device)


def _sent(
    storages: Sequence[torch.UntypedStorage], sizes: Sequence[int], device: Device
) -> list[int]:
    """Where on the host copies of these are now. Raises: HostMemoryExceeded."""
    places: list[int] = []
    try:
        # One by one: they are large, and few.
        for num_bytes in sizes:
            places.append(device.host_alloc(num_bytes))
        pointers = (storage.data_ptr() for storage in storages)
        device.copy_all_to_host(list(zip(places, pointers, sizes, strict=True))).wait()
    except BaseException:
        _free(places, device)
        raise
    return places


def _bring_back(
    storages: Sequence[torch.UntypedStorage],
    sizes: Sequence[int],
    places: list[int],
    device: Device,
) -> None:
    try:
        for storage, num_bytes in zip(storages, sizes, strict=True):
            if storage.nbytes() != num_bytes:
                storage.resize_(num_bytes)
        pointers = (storage.data_ptr() for storage in storages)
        device.copy_all_to_device(list(zip(pointers, places, sizes, strict=True))).wait()
    finally:
        _free(places, device)


def _free(places: Sequence[int], device: Device) -> None:
    for place in places:
        device.host_free(place)


def _leave(storage: torch.UntypedStorage, *, poisons: bool) -> None:
    if not poisons:
        storage.resize_(0)
        return
    num_floats = storage.nbytes() // torch.float32.itemsize
    whole = torch.empty(0, dtype=torch.float32, device=storage.device)
    whole.set_(storage, 0, (num_floats,), (1,)).fill_(math.nan)
