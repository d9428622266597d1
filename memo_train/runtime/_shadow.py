"""Leaf aliases of a block's trainable parameters, for the graphs inside a block.

Tile graphs are differentiated many times a step. On the parameters themselves that would fire
user and DDP hooks once per tile; on aliases (same storage, own autograd leaf) it fires none, and
the block hands every parameter's gradient to autograd once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memo_train.runtime._saved import InWeight
from memo_train.runtime._sharded import is_taken_by_zero
from memo_train.runtime._tile import release_data


def trainable_parameters(module: nn.Module) -> tuple[torch.Tensor, ...]:
    """The parameters of `module` that require gradients, each once."""
    return tuple(p for p in module.parameters() if p.requires_grad)


def shadows_of(parameters: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """A leaf alias of every parameter."""
    return tuple(parameter.detach().requires_grad_() for parameter in parameters)


@contextmanager
def installed(
    module: nn.Module, parameters: Sequence[torch.Tensor], shadows: Sequence[torch.Tensor]
) -> Iterator[None]:
    """While active, `module` computes with `shadows` in place of `parameters`."""
    shadow_of = {id(p): shadow for p, shadow in zip(parameters, shadows, strict=True)}
    places = [
        (owner._parameters, name, parameter)
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if id(parameter) in shadow_of
    ]
    for slots, name, parameter in places:
        slots[name] = shadow_of[id(parameter)]  # type: ignore[assignment]
    try:
        yield
    finally:
        for slots, name, parameter in places:
            slots[name] = parameter


class ModuleTensors:
    """The parameters and buffers a module computes with now, to compute with them again later.

    Backward may come when others are in their places: `torch.func.functional_call` puts its own
    in for the length of the forward.
    """

    def __init__(self, module: nn.Module) -> None:
        self._places: list[tuple[dict[str, Any], str, torch.Tensor]] = [
            (slots, name, tensor)
            for owner in module.modules()
            for slots in (owner._parameters, owner._buffers)
            for name, tensor in slots.items()
            if tensor is not None
        ]

    @contextmanager
    def installed(
        self, parameters: Sequence[torch.Tensor], shadows: Sequence[torch.Tensor]
    ) -> Iterator[None]:
        """While active, the module computes with these, and `shadows` in place of `parameters`."""
        shadow_of = {id(p): shadow for p, shadow in zip(parameters, shadows, strict=True)}
        replaced = []
        for slots, name, tensor in self._places:
            wanted, found = shadow_of.get(id(tensor), tensor), slots.get(name)
            if wanted is not found:
                replaced.append((slots, name, found))
                slots[name] = wanted
        try:
            yield
        finally:
            for slots, name, found in replaced:
                slots[name] = found


class Weights:
    """A block's parameters and their aliases, where ZeRO 3 takes their memory away.

    Between forward and backward nothing holds the memory that they had in forward: neither the
    aliases nor what tiles saved of them. In backward they have other memory, with equal values.
    Attributes: move, whether that is so.
    """

    def __init__(
        self, module: nn.Module, parameters: Sequence[torch.Tensor], shadows: Sequence[torch.Tensor]
    ) -> None:
        self._pairs = tuple(zip(parameters, shadows, strict=True))
        taken = [p for p in module.parameters() if is_taken_by_zero(p)]
        self.move = bool(taken)
        self._places: dict[int, list[tuple[int, torch.Tensor]]] = {}
        for parameter in taken:
            at = int(parameter.storage_offset())
            self._places.setdefault(_memory_of(parameter), []).append((at, parameter))

    def place_of(self, tensor: torch.Tensor) -> InWeight | None:
        """Where a tensor lies in them; None if it does not."""
        at = int(tensor.storage_offset())
        for start, parameter in self._places.get(_memory_of(tensor), ()):
            # Several may lie in one buffer.
            if tensor.dtype == parameter.dtype and start <= at < start + parameter.numel():
                return InWeight(parameter, at - start)
        return None

    @contextmanager
    def present(self) -> Iterator[None]:
        """While active, the aliases have the memory that the parameters have now; after it none."""
        if not self.move:
            yield
            return
        for parameter, shadow in self._pairs:
            shadow.data = parameter.detach()
        try:
            yield
        finally:
            for _, shadow in self._pairs:
                release_data(shadow)
            self._places.clear()


def _memory_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def take_written_gradients(shadows: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """What stands in `.grad` of each shadow, which is cleared.

    Nobody but a function inside the block writes there, one that runs a backward of its own (an
    MLP that is tiled already): on the parameters themselves it would have accumulated the same.
    """
    written = [shadow.grad for shadow in shadows]
    for shadow, gradient in zip(shadows, written, strict=True):
        if gradient is not None:
            shadow.grad = None
    return written


class GradientSum:
    """Sums the gradients of `inputs` over tiles: in fp32 for 16-bit dtypes, rounded once."""

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        self._inputs = inputs
        self._sums: list[torch.Tensor | None] = [None] * len(inputs)

    def add(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Add one tile's gradients; None where a parameter was not used."""
        totals, added = [], []
        for index, gradient in enumerate(gradients):
            if gradient is None:
                continue
            total = self._sums[index]
            if total is None:
                # A copy: the sum is added to in place, and autograd may hand out one tensor twice.
                wide = torch.promote_types(gradient.dtype, torch.float32)
                self._sums[index] = gradient.to(wide, copy=True)
            else:
                totals.append(total)
                added.append(gradient)
        if totals:
            # The same sums as one by one, for one call of each tile's backward.
            torch._foreach_add_(totals, added)

    def take(self) -> list[torch.Tensor | None]:
        """The sums in the inputs' dtypes; the references are given away."""
        sums, self._sums = self._sums, []
        return [
            None if total is None else total.to(tensor.dtype)
            for total, tensor in zip(sums, self._inputs, strict=True)
        ]
