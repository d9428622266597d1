"""Steps without arithmetic: every operation gets its memory, and none touches it.

Shapes, strides and dtypes come from FakeTensorMode. The tensors are ordinary ones in the arena,
whose pages the system gives only when they are touched: so the runtime runs as it is, addresses,
views, storages and all, on models and lengths that no machine holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from memo_train.errors import UnsupportedModel
from memo_train.trace._flops import OpCost, cost_of

_aten = torch.ops.aten
_RUN_ALWAYS = {
    _aten._unsafe_view.default,
    _aten.set_.source_Storage,
    _aten.set_.source_Storage_storage_offset,
    _aten.resize_.default,
}
"""Operations that touch no element although their schema does not say so."""

# Positions and labels are below it; a mask of all pairs of a million tokens is far above.
_EXACT_BYTES = 256 << 20


class Watcher:
    """Is told of every operation that is not a view; this one does not care."""

    def begins(self, func: Any) -> None:
        """Before the operation asks for memory."""

    def ended(self, cost: OpCost) -> None:
        """After it, with what it costs."""


class _How(Enum):
    VIEW = "view"
    IN_PLACE = "in place"
    NEW = "new"


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is known of an operation on tensors of some shapes."""

    make: Callable[[], Any]
    is_exact: bool
    cost: OpCost


class FakeArithmetic(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """While active, operations on CPU tensors give memory of the right size and no values.

    Views are made, and numbers that control a model are computed: 0-dimensional tensors (a step
    count) and whole numbers (positions, labels, masks of a dimension). Reading another value gives
    something arbitrary; operations whose result's shape depends on values are refused.
    watcher: told of every operation; may be set while active.

    Raises: UnsupportedModel.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watcher = Watcher()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._how: dict[Any, _How] = {}
        self._known: dict[Any, _Known] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is ever compiled; guarding against it would double the time of a step."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The operation's result, without its values."""
        kwargs = kwargs or {}
        how = self._how.get(func)
        if how is None:
            how = self._how[func] = _how_to_run(func)
        if how is _How.VIEW:
            return func(*args, **kwargs)
        self.watcher.begins(func)
        result, cost = self._run(func, how, args, kwargs)
        self.watcher.ended(cost)
        return result

    def _run(
        self, func: Any, how: _How, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, OpCost]:
        key = (func, _shape_of(args), _shape_of(tuple(kwargs.items())) if kwargs else ())
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._learn(func, how, args, kwargs)
        if known.is_exact:
            return func(*args, **kwargs), known.cost
        if how is _How.IN_PLACE:
            return _written(func, args, kwargs), known.cost
        return known.make(), known.cost

    def _learn(self, func: Any, how: _How, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Known:
        exact_inputs = all(map(_is_exact, _tensors((args, tuple(kwargs.values())))))
        if how is _How.IN_PLACE:
            cost = cost_of(func, args, kwargs, args[0] if args else None)
            return _Known(make=lambda: None, is_exact=exact_inputs, cost=cost)
        result = self._infer(func, args, kwargs)
        return _Known(
            make=_maker(result),
            is_exact=exact_inputs and all(map(_is_exact, _tensors(result))),
            cost=cost_of(func, args, kwargs, result),
        )

    def _infer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            with self._fake:
                return func(*_fakes(args), **{name: _fakes(v) for name, v in kwargs.items()})
        except DynamicOutputShapeException as error:
            raise UnsupportedModel(
                f"{func} makes a tensor whose shape depends on values, which a fake step has not; "
                "profile the model with a real step"
            ) from error
        except RuntimeError as error:
            raise UnsupportedModel(
                f"FakeTensorMode cannot tell what {func} gives ({error}); "
                "profile the model with a real step"
            ) from error


def _how_to_run(func: Any) -> _How:
    schema = func._schema
    if func in _RUN_ALWAYS or torch.Tag.inplace_view in func.tags:
        return _How.VIEW
    if any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments):
        return _How.IN_PLACE
    returns_tensors = any("Tensor" in str(r.type) for r in schema.returns)
    is_view = any(r.alias_info is not None for r in schema.returns)
    return _How.VIEW if is_view or not returns_tensors else _How.NEW


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation that writes to arguments returns: these."""
    num_returns = len(func._schema.returns)
    if num_returns == 0:
        return None
    written = [
        kwargs.get(argument.name, args[index] if index < len(args) else None)
        for index, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return written[0] if num_returns == 1 else tuple(written[:num_returns])


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _is_exact(tensor: torch.Tensor) -> bool:
    """Whether a tensor's values are computed, so that a model may decide by them."""
    is_whole = not (tensor.is_floating_point() or tensor.is_complex())
    return tensor.dim() == 0 or (is_whole and tensor.nbytes <= _EXACT_BYTES)


def _shape_of(value: Any) -> Any:
    """What a result's shape depends on, hashable."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple([_shape_of(item) for item in value])
    # With the type: 1, 1.0 and True are equal, and give results of other dtypes.
    return type(value), value


def _fakes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    if isinstance(value, list | tuple):
        return type(value)(map(_fakes, value))
    return value


def _maker(result: Any) -> Callable[[], Any]:
    """A function that makes tensors like `result`'s, in device memory."""
    if isinstance(result, torch.Tensor):
        shape, stride, dtype = tuple(result.shape), result.stride(), result.dtype
        return lambda: torch.empty_strided(shape, stride, dtype=dtype)
    if isinstance(result, list | tuple):
        makers, kind = [_maker(item) for item in result], type(result)
        return lambda: kind([make() for make in makers])
    return lambda: result
