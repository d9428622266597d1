"""What the runtime asks of ranks that share every sequence; who they are, it does not know.

`memo_train.parallel` carries these out. Only the attention of a block and the loss's last line
talk to other ranks: everything else of a step runs on this rank's tokens as on any sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from memo_planner.profile import Exchange

Call = Callable[..., torch.Tensor]
"""(q, k, v, **options) -> attention output."""


class SharedAttention(ABC):
    """Attention over the tokens of all ranks, in the place of attention over this rank's.

    Tensors are [batch, heads, tokens, head_dim] where `token_dim` is 2, and [batch, tokens, heads,
    head_dim] where it is 1. Every method but `adapted` is a collective call.
    """

    @abstractmethod
    def adapted(self, call: Call, num_heads: tuple[int, ...], o_token_dim: int) -> Call:
        """`call` as it runs on what `enter` gives, its options made to fit.

        num_heads: of q, k and v at the cut. o_token_dim: of what it gives.
        Raises: UnsupportedModel, also from the call.
        """

    @abstractmethod
    def enter(self, tensor: torch.Tensor, token_dim: int) -> torch.Tensor:
        """What attention gets of q, k, v, o or do, from this rank's tokens of all heads.

        Its strides hang on nothing but shapes.
        """

    @abstractmethod
    def leave(self, tensor: torch.Tensor, token_dim: int, num_heads: int) -> torch.Tensor:
        """This rank's tokens of all heads again, of what attention gave: o, dq, dk or dv."""


_attention: ContextVar[SharedAttention | None] = ContextVar("shared_attention", default=None)


def shared_attention() -> SharedAttention | None:
    """Who shares the attention that is cut now, or None."""
    return _attention.get()


@contextmanager
def attention_shared_by(attention: SharedAttention | None) -> Iterator[None]:
    """While active, blocks that are run attend by `attention`."""
    token = _attention.set(attention)
    try:
        yield
    finally:
        _attention.reset(token)


@dataclass(frozen=True, kw_only=True)
class SharedStep:
    """What all ranks know of a step.

    arguments: what the model is called with. masked: whether attention will get a mask. num_items:
    what the summed loss is divided by. forward: makes a context in which the model's forward is
    shared. loss: of all ranks, from this rank's share of it; a collective call, as forward is.
    num_items is None, and loss gives what it gets, where the loss is of this rank's labels alone.
    failed: is told of an error that ends the step on this rank, so that others do not wait for it.
    """

    arguments: dict[str, Any]
    masked: bool
    num_items: int | None
    forward: Callable[[], AbstractContextManager[None]]
    loss: Callable[[torch.Tensor], torch.Tensor]
    failed: Callable[[BaseException], None]


class Ranks(ABC):
    """The ranks that share each sequence: every one holds a range of its tokens."""

    @abstractmethod
    def begin(self, arguments: dict[str, Any]) -> SharedStep | None:
        """Agree on a step. A collective call, made by every rank before anything of the step.

        arguments: of the model's call, by name. None: the step is of this rank alone, on all ranks.
        Raises: MemoError, on every rank if on one.
        """

    @abstractmethod
    def rehearse(self, arguments: dict[str, Any]) -> SharedStep:
        """A step for a profile, on this rank alone: its bytes and its work, but not its values.

        arguments: of a call with this rank's tokens, as in one process.
        """

    @property
    @abstractmethod
    def num_ranks(self) -> int:
        """How many share each sequence."""

    @property
    @abstractmethod
    def num_ring_ranks(self) -> int:
        """How many keys and values go around; the others exchange tokens for heads."""

    @property
    @abstractmethod
    def way(self) -> str:
        """How many share attention how: what bytes and seconds of a step hang on."""

    @property
    @abstractmethod
    def bytes_per_s(self) -> float:
        """What each rank sends to others, all ranks at once."""

    @abstractmethod
    def measure_link(self) -> None:
        """Measure `bytes_per_s`. A collective call."""

    @abstractmethod
    def exchange(self) -> Exchange:
        """What a block of the last step that was rehearsed, of one batch, hands to others."""
