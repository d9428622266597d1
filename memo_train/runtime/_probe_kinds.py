"""Which blocks of a model are alike, so that one of them is probed for all.

Alike are blocks of the same classes and code, with the same values in their attributes, the same
parameters, buffers and calls, and whose graphs on a few tokens are made of the same operations.
A number that is a block's place in the list, up to a constant, does not count; what a block decides
by it shows in the operations.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memo_train.runtime._leaves import operations_of
from memo_train.runtime._tile import split_output, tensors_in

LEAVES_IN_ARGUMENTS = "it leaves tensors in its arguments, for others to use"
"""Run again in backward, it would find what it left."""

# Below that a value counts by its class alone.
_DEPTH = 4
# A longer list counts by its identity, and its block is a kind of its own.
_MOST_ITEMS = 64
_Attributes = dict[tuple[str, str], Hashable]


class WatchedBlocks:
    """Runs a model's blocks and remembers their operations and outputs, then lets them idle."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks = blocks
        self.operations: dict[int, frozenset[str]] = {}
        self.leave_in_arguments: set[int] = set()
        self._rest: dict[int, tuple[Any, ...] | None] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While active, calls of blocks run on graphs of their own, which are looked at."""
        with _replaced(self._blocks, self._watched):
            yield

    def hand_on(self, rest: Sequence[tuple[Any, ...] | None]) -> None:
        """Let idle blocks return these besides y; None leaves what a block was seen to return."""
        for block, others in zip(self._blocks, rest, strict=True):
            if others is not None and id(block) in self._rest:
                self._rest[id(block)] = others

    @contextmanager
    def idling(self) -> Iterator[None]:
        """While active, blocks hand on x, in the form of the output they were seen to give."""
        with _replaced(self._blocks, self._idle):
            yield

    def _watched(
        self, block: nn.Module, forward: Callable[..., Any], x: torch.Tensor, rest: Any
    ) -> Any:
        args, kwargs = rest
        if not isinstance(x, torch.Tensor):
            return forward(*args(x), **kwargs(x))
        leaf = x.detach().requires_grad_(x.is_floating_point())
        # A block may write to its input, which a leaf forbids.
        given = args(leaf.clone()), kwargs(leaf)
        before = list(tensors_in(given))
        output = forward(*given[0], **given[1])
        if [id(tensor) for tensor in before] != [id(tensor) for tensor in tensors_in(given)]:
            self.leave_in_arguments.add(id(block))
        y, others = split_output(output)
        if not isinstance(y, torch.Tensor) or y.shape != x.shape:
            return output
        self.operations[id(block)] = operations_of(y.grad_fn)
        self._rest[id(block)] = others
        return output

    def _idle(
        self, block: nn.Module, forward: Callable[..., Any], x: torch.Tensor, rest: Any
    ) -> Any:
        args, kwargs = rest
        if id(block) not in self._rest:  # its output cannot be told from x
            return forward(*args(x), **kwargs(x))
        others = self._rest[id(block)]
        # FSDP2 warns of an output that is a view, as its own hooks have made x one.
        x = x.clone() if x._is_view() else x
        return x if others is None else (x, *others)


@contextmanager
def _replaced(blocks: Sequence[nn.Module], run: Callable[..., Any]) -> Iterator[None]:
    """While active, a call of a block is run(block, its forward, x, how to give the arguments)."""
    found = {id(block): (block, block.__dict__.get("forward")) for block in blocks}

    def replace(block: nn.Module) -> None:
        forward = block.forward

        @functools.wraps(forward)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            if args:
                return run(block, forward, args[0], (lambda x: (x, *args[1:]), lambda x: kwargs))
            name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
            give = (lambda x: (), lambda x: kwargs | {name: x.clone()})
            return run(block, forward, kwargs[name], give)

        block.forward = replacement

    for block, _ in found.values():
        replace(block)
    try:
        yield
    finally:
        for block, own in found.values():
            if own is None:
                del block.forward
            else:
                block.forward = own


def kinds_of(
    blocks: Sequence[nn.Module],
    arguments: Sequence[Any],
    operations: Sequence[Hashable],
) -> list[Hashable]:
    """Equal for blocks that are alike. arguments: of each block's call, without x."""
    attributes = [dict(_attributes(block)) for block in blocks]
    _drop_places_in_list(blocks, attributes)
    return [
        (frozenset(found.items()), _value(given, _DEPTH), made)
        for found, given, made in zip(attributes, arguments, operations, strict=True)
    ]


def _drop_places_in_list(blocks: Sequence[nn.Module], attributes: Sequence[_Attributes]) -> None:
    """Forget attributes that are the block's place in the list, up to a constant."""
    for indices in _by_class(blocks).values():
        of_class = [attributes[index] for index in indices]
        places = [
            key
            for key in of_class[0]
            if len(indices) > 1 and _is_place([found.get(key) for found in of_class], indices)
        ]
        for found, key in itertools.product(of_class, places):
            del found[key]


def _is_place(values: Sequence[Any], indices: Sequence[int]) -> bool:
    return all(type(v) is int for v in values) and (
        len({value - index for value, index in zip(values, indices, strict=True)}) == 1
    )


def _by_class(blocks: Sequence[nn.Module]) -> dict[type, list[int]]:
    indices: dict[type, list[int]] = defaultdict(list)
    for index, block in enumerate(blocks):
        indices[type(block)].append(index)
    return indices


_INTERNAL = frozenset(nn.Module().__dict__)


def _attributes(block: nn.Module) -> Iterator[tuple[tuple[str, str], Hashable]]:
    for path, module in block.named_modules():
        yield (path, "class"), _name_of(type(module))
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            trained = tensor is not None and tensor.requires_grad
            yield (path, name), (_value(tensor, 1), trained)
        for name, value in module.__dict__.items():
            # Hooks are part of what a block computes.
            if name not in _INTERNAL or name.endswith("_hooks"):
                yield (path, name), _value(value, _DEPTH)


def _name_of(kind: type) -> Hashable:
    # Classes made inside a function may share a name.
    return f"{kind.__module__}.{kind.__qualname__}", id(kind)


def _value(value: Any, depth: int) -> Hashable:
    """What a value is, as far as a block could decide by it."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return value if not isinstance(value, bool | float) else (type(value), value)
    if isinstance(value, torch.Tensor):
        return type(value), tuple(value.shape), value.dtype
    if isinstance(value, nn.Module) or depth == 0:
        return _name_of(type(value))
    if isinstance(value, types.MethodType):
        return _value(value.__func__, depth), type(value.__self__)
    if isinstance(value, types.FunctionType):
        closure = [cell.cell_contents for cell in value.__closure__ or ()]
        held = (closure, value.__defaults__, value.__kwdefaults__)
        return value.__code__, _value(held, depth - 1)
    if isinstance(value, functools.partial):
        return functools.partial, _value((value.func, value.args, value.keywords), depth - 1)
    if isinstance(value, dict):
        return dict, _value([(str(key), item) for key, item in value.items()], depth)
    if isinstance(value, list | tuple) and len(value) <= _MOST_ITEMS:
        return type(value), tuple(_value(item, depth - 1) for item in value)
    return type(value), id(value)
