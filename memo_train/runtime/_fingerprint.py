"""What of a wrapped model may not change, or asks for another look, checked before every step.

Modules put in, taken out or resized are refused: the runtime holds the old ones. A change of dtype,
of the attention function or of what is trained is another `state`, and the model is tried again.
Both read attributes only: well under a millisecond for a model of a thousand modules.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import nn

from memo_train.errors import UnsupportedModel
from memo_train.runtime._parts import ModelParts, configs_of
from memo_train.runtime._sharded import (
    is_fully_sharded,
    is_taken_by_zero,
    refuse_torn_blocks,
    sharded_in,
)

_WAY_OUT = "call memo_train.unwrap(model), change it, and wrap it again"


class Fingerprint:
    """Remembers the modules of a model as it is made."""

    def __init__(self, parts: ModelParts) -> None:
        named = list(parts.causal_lm.named_modules())
        self._modules = [module for _, module in named]
        self._module_names = [name or "the model" for name, _ in named]
        self._types = [type(module) for module in self._modules]
        # The dictionaries themselves, so that a step's check walks no module tree.
        self._children = [module._modules for module in self._modules]
        self._child_ids = self._ids_of_children()
        self._slots = [module._parameters for module in self._modules]
        self._slot_names = [[*slots] for slots in self._slots]
        filled = [
            (f"{name}.{key}".lstrip("."), slots, key)
            for (name, _), slots in zip(named, self._slots, strict=True)
            for key, parameter in slots.items()
            if parameter is not None
        ]
        self._names = [name for name, *_ in filled]
        self._places = [(slots, key) for _, slots, key in filled]
        self._shapes, self._devices = self._shapes_and_devices()
        self._blocks = parts.blocks
        self.configs = configs_of(parts.causal_lm)
        self.is_sharded = False
        """Whether FSDP2 or ZeRO 3 holds the parameters, which then change in mid-step."""
        self.is_away = False
        """Whether parameters come and go: nothing can be measured in a step."""
        self.sharded_inside: tuple[tuple[nn.Module, ...], ...] = ((),) * len(parts.blocks)
        """Of each block the modules inside it that are sharded by themselves, outer ones first."""
        self._look_for_shards()
        self._state = self._read_state()

    def check(self) -> None:
        """Raises: UnsupportedModel if modules or shapes are others than they were."""
        if [type(module) for module in self._modules] != self._types:
            self._note_types()
        ids = self._ids_of_children()
        if ids != self._child_ids:
            where = next(
                name
                for name, now, then in zip(self._module_names, ids, self._child_ids, strict=True)
                if now != then
            )
            raise UnsupportedModel(
                f"modules inside {where} were replaced, added or removed after wrap (an adapter, "
                f"resized embeddings?); {_WAY_OUT}"
            )
        if [[*slots] for slots in self._slots] != self._slot_names:
            raise UnsupportedModel(f"parameters were added or removed after wrap; {_WAY_OUT}")
        if not self.is_sharded and self._shapes_and_devices() != (self._shapes, self._devices):
            if not any(is_taken_by_zero(slots[key]) for slots, key in self._places):
                self._refuse_parameters()
            refuse_torn_blocks(self._blocks)
            self.is_sharded = self.is_away = True

    def state(self, *, trains: bool) -> Hashable:
        """Equal while steps may be run in the ways that were proven.

        trains: whether it counts what is trained now; else the last answer stands.
        """
        if trains and not self.is_sharded:
            self._state = self._read_state()
        return self._state

    def is_changed(self, *, trains: bool) -> bool:
        """Whether `state` is another than at the last call of it.

        trains: whether a change of what is trained counts.
        """
        if self.is_sharded:
            return False
        # What is trained stands last.
        kinds = len(self._state) if trains else len(self._state) - 1
        return self._read_state()[:kinds] != self._state[:kinds]

    def _ids_of_children(self) -> list[list[int]]:
        return [[*map(id, children.values())] for children in self._children]

    def _shapes_and_devices(self) -> tuple[list[Any], list[Any]]:
        tensors: list[Any] = [slots[key] for slots, key in self._places]
        return [tensor.shape for tensor in tensors], [tensor.device for tensor in tensors]

    def _read_state(self) -> tuple[Hashable, ...]:
        """The attention functions, the dtypes, and last what is trained."""
        tensors: list[Any] = [slots[key] for slots, key in self._places]
        attention = tuple(getattr(c, "_attn_implementation", None) for c in self.configs)
        dtypes = tuple(tensor.dtype for tensor in tensors)
        return attention, dtypes, tuple(tensor.requires_grad for tensor in tensors)

    def _refuse_parameters(self) -> NoReturn:
        shapes, devices = self._shapes_and_devices()
        for index, name in enumerate(self._names):
            if shapes[index] != self._shapes[index]:
                then, now = tuple(self._shapes[index]), tuple(shapes[index])
                raise UnsupportedModel(f"{name} was {then} at wrap and is {now}; {_WAY_OUT}")
        moved = next(i for i, device in enumerate(devices) if device != self._devices[i])
        raise UnsupportedModel(
            f"{self._names[moved]} was on {self._devices[moved]} at wrap and is on "
            f"{devices[moved]}; {_WAY_OUT}"
        )

    @contextmanager
    def whole(self) -> Iterator[None]:
        """While active, sharded parameters are whole: their types are those that they have now."""
        self._state, self.is_away = self._read_state(), False
        try:
            yield
        finally:
            self.is_away = self.is_sharded

    def _note_types(self) -> None:
        """FSDP2 changes the class of the modules that it shards."""
        self._types = [type(module) for module in self._modules]
        self._look_for_shards()

    def _look_for_shards(self) -> None:
        self.is_sharded = self.is_away = any(map(is_fully_sharded, self._modules))
        self.sharded_inside = tuple(
            tuple(module for module in sharded_in(block) if module is not block)
            for block in self._blocks
        )
