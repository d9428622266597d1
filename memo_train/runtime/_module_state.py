"""What a block's forward leaves on its modules besides its output: buffers and attributes.

A counter of tokens, running statistics, a loss left for the model to add. By tiles each must end as
the whole run leaves it, which the probe compares; and a forward that runs again in backward must
leave everything as it found it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from memo_train.runtime._swap import is_plain, version_of

# `forward`: where the runtime and other libraries put replacements.
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) | {"forward"}
"""Attributes that PyTorch keeps on each module; parameters are not what forward leaves."""


class StatePlace(NamedTuple):
    """Where a value stands: the module's path in the block, and the attribute's name."""

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}.{self.name}" if self.path else self.name


class _Held(NamedTuple):
    """A value as it was: the object, its contents where they can change, a tensor's version."""

    value: Any
    contents: Any
    version: int


class ModuleState:
    """Buffers and attributes of `module`'s modules, to be compared and put back.

    places: None looks at all of them; else only at these.
    """

    def __init__(self, module: nn.Module, places: Collection[StatePlace] | None = None) -> None:
        self._places = places
        self._owners = dict(module.named_modules())
        self._held = {place: _hold(slots[place.name]) for place, slots in self._walk()}

    def changed(self) -> dict[StatePlace, Any]:
        """The values, as they are now, of all that was written to or replaced since."""
        now = {place: slots[place.name] for place, slots in self._walk()}
        return {
            place: value
            for place, value in now.items()
            if place not in self._held or _is_changed(self._held[place], value)
        }

    def restore(self) -> None:
        """Put everything back as it was."""
        # A list: entries are deleted on the way.
        for place, slots in list(self._walk()):
            held = self._held.get(place)
            if held is None:
                del slots[place.name]
            elif _is_changed(held, slots[place.name]):
                _refill(held)
                slots[place.name] = held.value

    def _walk(self) -> Iterator[tuple[StatePlace, dict[str, Any]]]:
        for path, owner in self._owners.items():
            for name in (*owner._buffers, *owner.__dict__):
                place = StatePlace(path, name)
                if name not in _OF_EVERY_MODULE and self._looks_at(place):
                    yield place, owner._buffers if name in owner._buffers else owner.__dict__

    def _looks_at(self, place: StatePlace) -> bool:
        return self._places is None or place in self._places


@contextmanager
def kept_state(module: nn.Module, places: Collection[StatePlace] | None = None) -> Iterator[None]:
    """Buffers and attributes (of `places`, or all) are afterwards as they were before."""
    if places is not None and not places:
        yield
        return
    state = ModuleState(module, places)
    try:
        yield
    finally:
        state.restore()


@contextmanager
def kept_buffers(module: nn.Module) -> Iterator[None]:
    """Buffers (running statistics, say) get their values back."""
    owners = list(module.modules())
    held = [(owner._buffers, dict(owner._buffers)) for owner in owners]
    values = [_hold(buffer) for _, buffers in held for buffer in buffers.values()]
    try:
        yield
    finally:
        for slots, buffers in held:
            slots.clear()
            slots.update(buffers)
        for value in values:
            if _is_changed(value, value.value):
                _refill(value)


@contextmanager
def kept_model(model: nn.Module, blocks: Iterable[nn.Module]) -> Iterator[None]:
    """The model's buffers, gradients, and all that stands on its blocks, are afterwards as before.

    Attributes outside of the blocks are left alone: Transformers notes there which hooks it has put
    in place.
    """
    with ExitStack() as stack:
        stack.enter_context(kept_buffers(model))
        stack.enter_context(kept_gradients(model))
        for block in blocks:
            stack.enter_context(kept_state(block))
        yield


@contextmanager
def kept_gradients(module: nn.Module) -> Iterator[None]:
    """Nothing is in `.grad` while active, and afterwards what was there before.

    What a run left there, a user's next step would add to.

    A function that runs a backward of its own writes there, whatever the runtime differentiates by:
    that of reversible blocks (Reformer) does so for all of them.
    """
    held = [(p, p.grad) for p in module.parameters() if p.is_leaf]
    for parameter, gradient in held:
        if gradient is not None:
            parameter.grad = None  # else it would be added to in place
    try:
        yield
    finally:
        for parameter, gradient in held:
            if parameter.grad is not gradient:
                parameter.grad = gradient


def graph_holders(changed: Mapping[StatePlace, Any]) -> list[StatePlace]:
    """The places that now hold a tensor that requires a gradient, or a container of one."""
    return [
        place
        for place, value in changed.items()
        if any(tensor.requires_grad for tensor in _tensors(value))
    ]


def _hold(value: Any) -> _Held:
    if isinstance(value, torch.Tensor):
        return _Held(value, value.detach().clone(), version_of(value))
    if isinstance(value, list | dict | set):
        return _Held(value, value.copy(), 0)
    return _Held(value, None, 0)


def _is_changed(held: _Held, value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value is not held.value or _is_written(held)
    if isinstance(value, bool | int | float | str):
        # By value: equal numbers need not be one object. By type: True equals 1.
        return type(value) is not type(held.value) or bool(value != held.value)
    if value is not held.value:
        return True
    if not isinstance(value, list | dict | set):
        return False
    return len(value) != len(held.contents) or any(
        a is not b for a, b in zip(_items(value), _items(held.contents), strict=True)
    )


def _is_written(held: _Held) -> bool:
    """Whether a tensor has other values. Batch norm writes its statistics without a new version."""
    if version_of(held.value) != held.version:
        return True
    return is_plain(held.value) and not torch.equal(held.value, held.contents)


def _refill(held: _Held) -> None:
    """Give a value that can be written to its contents back."""
    if isinstance(held.value, torch.Tensor):
        if _is_written(held):
            with torch.no_grad():
                held.value.copy_(held.contents)
    elif isinstance(held.value, list):
        held.value[:] = held.contents
    elif isinstance(held.value, dict | set):
        held.value.clear()
        held.value.update(held.contents)


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple | set):
        for item in _items(value):
            if isinstance(item, torch.Tensor):
                yield item
