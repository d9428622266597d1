"""Saved-tensor hooks of one stretch of a block (pre or post of a tile, or the attention call).

Autograd saves through `hooks`; when the stretch is over, `settle` decides for each saved tensor:
recognised as part of a tensor that backward has anyway (x, o, q, k, v) and let go, swapped to the
host, or kept on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from memo_train.errors import InPlaceModified
from memo_train.runtime._padded import Padded, padded_from
from memo_train.runtime._swap import PAGE_BYTES, SwappedStorages, SwapTarget, is_plain, version_of


class InWeight(NamedTuple):
    """Where a saved tensor lies: so many elements behind the start of a parameter's memory."""

    parameter: torch.Tensor
    elements: int

    def view(self, shape: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
        """The tensor, in the memory that the parameter has now."""
        offset = int(self.parameter.storage_offset()) + self.elements
        return self.parameter.detach().as_strided(shape, stride, offset)


class SavedTensor:
    """One saved tensor: on the device until settled, then wherever `home` says.

    home: None (on the device), the name of a known tensor, such a one padded, swapped storages, of
    which `index` is the number of its own, or a place in a parameter.
    is_plain: whether it may leave the device; a tensor that is more stays there as it is.
    """

    # Dozens are made for each tile of a step, and the garbage collector looks at each.
    __slots__ = ("_geometry", "home", "index", "is_plain", "tensor", "version")
    _geometry: tuple[torch.dtype, int, torch.Size, tuple[int, ...]]
    index: int

    def __init__(self, tensor: torch.Tensor) -> None:
        self.is_plain = is_plain(tensor)
        # A subclass may lose what it carries when detached; only with a graph would it be a cycle.
        untouched = not self.is_plain and tensor.grad_fn is None
        self.tensor: torch.Tensor | None = tensor if untouched else tensor.detach()
        self.version = version_of(tensor)
        self.home: str | Padded | SwappedStorages | InWeight | None = None

    def value(self) -> torch.Tensor:
        """The tensor while it is on the device. Raises: InPlaceModified."""
        tensor = self.tensor
        assert tensor is not None
        # Not by `version_of`: it is asked twice of each of the dozens of tensors that a tile saves.
        if not tensor.is_inference() and tensor._version != self.version:
            raise InPlaceModified(
                f"a tensor {tuple(tensor.shape)} needed for backward was modified in place: "
                f"version {tensor._version}, saved at version {self.version}"
            )
        return tensor

    def leave(self, tensor: torch.Tensor, home: str | SwappedStorages | InWeight) -> None:
        """Let `tensor`, its value, go: from now on it is at `home`."""
        offset = int(tensor.storage_offset())
        self._geometry = tensor.dtype, offset, tensor.shape, tensor.stride()
        self.home, self.tensor = home, None

    def view(self, storage: torch.UntypedStorage) -> torch.Tensor:
        """The tensor that has left, in a storage with the bytes of its own."""
        dtype, offset, shape, stride = self._geometry
        return torch.empty(0, dtype=dtype, device=storage.device).set_(
            storage, offset, shape, stride
        )

    def in_weight(self, home: InWeight) -> torch.Tensor:
        """The tensor that has left, as it is in a parameter's memory now."""
        _, _, shape, stride = self._geometry
        return home.view(shape, stride)


def storage_key(tensor: torch.Tensor) -> int:
    """The identity of a live tensor's memory."""
    return tensor.untyped_storage().data_ptr()


def storage_keys(tensors: Iterable[torch.Tensor]) -> frozenset[int]:
    """The identities of the memory of those that are no more than their memory."""
    return frozenset(storage_key(tensor) for tensor in tensors if is_plain(tensor))


def _is_swappable(storage: torch.UntypedStorage, swap: SwapTarget | None) -> bool:
    """Worth a copy, and device memory at all (tensors older than the device are not)."""
    return swap is not None and storage.nbytes() >= PAGE_BYTES and swap[0].owns(storage.data_ptr())


class SavedTensors:
    """What autograd saved in one stretch, until this object and the graph are dropped."""

    def __init__(self) -> None:
        self._unsettled: list[SavedTensor] = []
        self._swapped: list[SwappedStorages] = []
        self._bound: dict[str, torch.UntypedStorage] = {}
        self._kept: dict[int, int] = {}
        self._homes: set[str] = set()
        self.num_bytes = 0

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """The context in which autograd saves through this object."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def settle(
        self,
        known: Mapping[str, torch.Tensor],
        foreign: frozenset[int] = frozenset(),
        swap: SwapTarget | None = None,
        place_of: Callable[[torch.Tensor], InWeight | None] | None = None,
        *,
        pads: bool = False,
    ) -> None:
        """Decide where the stretch's saved tensors live until backward.

        known: name -> tensor whose memory `bind` will provide again, with the same strides.
        foreign: `storage_keys` of what outlives the step (buffers, position tables): not swapped.
        swap: the device and its copies in flight, or None to keep.
        place_of: finds what lies in a parameter that has other memory in backward.
        pads: whether to look for known tensors that were padded with zeros (`_padded`).
        """
        known = {name: tensor for name, tensor in known.items() if is_plain(tensor)}
        names = {storage_key(tensor): name for name, tensor in known.items()}
        # Storages that stay where they are, and the number of each that leaves.
        stay: set[int] = set(foreign)
        number_of: dict[int, int] = {}
        leaving: list[tuple[SavedTensor, torch.Tensor]] = []
        sources: list[torch.Tensor] = []
        for entry in self._unsettled:
            tensor = entry.value()
            if not entry.is_plain:
                self.num_bytes += tensor.nbytes
                continue
            storage = tensor.untyped_storage()
            key = storage.data_ptr()
            weight = None if place_of is None else place_of(tensor)
            home = names.get(key) if weight is None else weight
            if home is not None:
                self._homes.add(home if isinstance(home, str) else "")
                entry.leave(tensor, home)
                continue
            padded = padded_from(tensor, known) if pads else None
            if padded is not None:
                entry.home, entry.tensor = padded, None
                continue
            if key not in stay and key not in number_of:
                # Counted once, however many saved tensors view it.
                self.num_bytes += storage.nbytes()
                if _is_swappable(storage, swap):
                    number_of[key] = len(sources)
                    sources.append(tensor)
                else:
                    stay.add(key)
                    self._kept[key] = storage.nbytes()
            if key in number_of:
                entry.index = number_of[key]
                leaving.append((entry, tensor))
        self._unsettled.clear()
        if sources:
            assert swap is not None
            swapped = SwappedStorages(sources, *swap)
            self._swapped.append(swapped)
            for entry, tensor in leaving:
                entry.leave(tensor, swapped)

    def bind(self, **known: torch.Tensor) -> None:
        """Provide the known tensors for backward, with the strides they had in forward."""
        self._bound |= {
            n: tensor.untyped_storage() for n, tensor in known.items() if is_plain(tensor)
        }

    def names(self, known: str) -> bool:
        """Whether something saved lies in that known tensor."""
        return known in self._homes

    def unbind(self) -> None:
        """Let go of the known tensors; `bind` provides them again."""
        self._bound.clear()

    def shared_bytes(self, other: SavedTensors) -> int:
        """Bytes of the storages that both keep where they are."""
        both = self._kept.keys() & other._kept.keys()
        return sum(self._kept[key] for key in both)

    @property
    def swapped_bytes(self) -> int:
        """Bytes that will come back from the host."""
        return sum(swapped.swapped_bytes for swapped in self._swapped)

    def prefetch(self) -> None:
        """Start the copies back of everything swapped."""
        for swapped in self._swapped:
            swapped.prefetch()

    def save(self, tensor: torch.Tensor) -> SavedTensor:
        """Save a tensor by hand, under the same rules; `restore` gives it back."""
        return self._pack(tensor)

    def restore(self, entry: SavedTensor) -> torch.Tensor:
        """A tensor saved by `save`."""
        return self._unpack(entry)

    def _pack(self, tensor: torch.Tensor) -> SavedTensor:
        entry = SavedTensor(tensor)
        self._unsettled.append(entry)
        return entry

    def _unpack(self, entry: SavedTensor) -> torch.Tensor:
        if entry.home is None:
            return entry.value()
        if isinstance(entry.home, InWeight):
            return entry.in_weight(entry.home)
        if isinstance(entry.home, str):
            return entry.view(self._bound[entry.home])
        if isinstance(entry.home, Padded):
            return entry.home.made(self._bound[entry.home.of])
        return entry.view(entry.home.take(entry.index))
