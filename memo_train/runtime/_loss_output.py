"""A model's output whose logits are computed when somebody asks for them.

A loss by tiles leaves no logits. Who wants them beside the loss pays for them then: they are made
of the hidden states, with their graph, until backward has begun.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, SupportsIndex

import torch

from memo_train.errors import InvalidInput


class Logits:
    """Makes a call's logits once; `close` lets go of what that takes."""

    def __init__(self, make: Callable[[], torch.Tensor]) -> None:
        self._make: Callable[[], torch.Tensor] | None = make
        self._made: torch.Tensor | None = None

    def get(self) -> torch.Tensor:
        """[batch, tokens, vocab]. Raises: InvalidInput after `close`."""
        if self._made is None:
            if self._make is None:
                raise _no_logits("backward has begun, and what they are made of is gone")
            self._made = self._make()
        return self._made

    def close(self) -> None:
        """No logits any more, but for those that were asked for."""
        self._make = None


def with_loss(output: Any, loss: torch.Tensor, logits: Logits) -> Any:
    """The model's output for a tile as the whole call's: with this loss, and these logits."""
    if isinstance(output, tuple):
        whole = _LazyTuple((loss, None, *output[2:]))
        whole.lazy_logits = logits
        return whole
    lazy = without_logits(output, loss)
    kind = _lazy_kind(type(output))  # type: ignore[arg-type]
    values = {f.name: getattr(lazy, f.name) for f in dataclasses.fields(lazy)}
    return kind(**values, lazy_logits=logits)


def without_logits(output: Any, loss: torch.Tensor | None) -> Any:
    """The model's output, dataclass or tuple, with this loss and no logits."""
    if isinstance(output, tuple):
        return (loss, None, *output[2:])
    return dataclasses.replace(output, loss=loss, logits=None)


def loss_of(output: Any) -> torch.Tensor | None:
    """The loss in a model's output that was given labels."""
    loss = output[0] if isinstance(output, tuple) else output.loss
    return loss if isinstance(loss, torch.Tensor) else None


class _LazyTuple(tuple[Any, ...]):
    """(loss, logits, ...) whose logits are made when they are looked at."""

    lazy_logits: Logits | None = None
    """None in what somebody has made of its items, which has what they were."""

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        if self.lazy_logits is None:
            return super().__getitem__(index)
        if isinstance(index, slice) or index.__index__() in (1, 1 - len(self)):
            return (super().__getitem__(0), self.lazy_logits.get(), *super().__getitem__(_REST))[
                index
            ]
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


_REST = slice(2, None)


@dataclasses.dataclass
class _Carrier:
    lazy_logits: Logits | None = None


@functools.cache
def _lazy_kind(kind: type) -> type:
    """A kind of output as `kind`, whose `logits` come from `lazy_logits`.

    Walks of its items (DistributedDataParallel, accelerate) meet no logits and ask for none. Nor do
    walks of its fields, which FSDP2 rebuilds an output of: there `lazy_logits` stand for them.
    """

    def init(self: Any, *args: Any, lazy_logits: Logits | None = None, **values: Any) -> None:
        kind.__init__(self, *args, **values)  # type: ignore[misc]
        if lazy_logits is not None and "lazy_logits" not in self.__dict__:
            # An output may be a frozen dataclass, and may list in its items what is set.
            object.__setattr__(self, "lazy_logits", lazy_logits)

    def get_logits(self: Any) -> torch.Tensor:
        lazy: Logits | None = self.lazy_logits
        if lazy is None:
            raise _no_logits("somebody has copied this output since")
        return lazy.get()

    def set_logits(self: Any, value: torch.Tensor | None) -> None:
        if value is not None:
            object.__setattr__(self, "lazy_logits", Logits(lambda: value))

    def to_tuple(self: Any) -> tuple[Any, ...]:
        rest = [value for name, value in self.items() if name not in ("loss", "logits")]
        return (self.loss, self.logits, *rest)

    def getitem(self: Any, index: Any) -> Any:
        if index == 0:
            return self.loss
        return getattr(self, index) if isinstance(index, str) else to_tuple(self)[index]

    def represent(self: Any) -> str:
        return f"{kind.__name__}(loss={self.loss}, logits made when asked for)"

    def reduce(self: Any) -> Any:
        # As a plain output; one that somebody has copied has nothing to make logits of.
        names = [field.name for field in dataclasses.fields(kind)]
        has_logits = self.lazy_logits is not None
        return kind, tuple(
            None if name == "logits" and not has_logits else getattr(self, name) for name in names
        )

    own = {f.name: f for f in dataclasses.fields(kind) if f.name != "logits"}
    members: dict[str, Any] = {
        "__init__": init,
        "__dataclass_fields__": own | _Carrier.__dataclass_fields__,
        "lazy_logits": None,
        "logits": property(get_logits, set_logits),
        "__repr__": represent,
        "__reduce__": reduce,
    }
    if issubclass(kind, dict):  # Transformers' outputs are dictionaries and tuples as well
        members |= {"__getitem__": getitem, "to_tuple": to_tuple}
    return type(kind.__name__, (kind,), members)


def _no_logits(why: str) -> InvalidInput:
    return InvalidInput(
        f"logits beside a loss that is computed by tiles: {why}; look at them before backward, "
        "or call the model without labels, or under torch.no_grad()"
    )
