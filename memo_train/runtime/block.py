"""One pass of a token-tiled block: a forward and, once, its backward."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memo_train.errors import BackwardTwice
from memo_train.runtime.ambient import Ambient
from memo_train.runtime.block_backward import BlockBackward
from memo_train.runtime.block_forward import BlockForward
from memo_train.runtime.block_state import BlockSpec, BlockState
from memo_train.runtime.shadow import shadows_of


@dataclass(frozen=True, kw_only=True)
class SavedBytes:
    """Bytes a block saved for backward, by class; pre does not count q, k and v."""

    x: int
    o: int
    qkv: int
    attention: int
    pre: int
    post: int


class BlockPass:
    """A block run by tiles. `rest`: its outputs besides y; `previous`: the pass before it."""

    def __init__(
        self,
        spec: BlockSpec,
        parameters: Sequence[torch.Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        record: bool,
    ) -> None:
        """record: whether a backward may follow; without it nothing is saved."""
        self.rest: tuple[Any, ...] | None = None
        self.previous: weakref.ref[Any] | None = None
        self._state = BlockState(
            spec=spec,
            parameters=parameters,
            shadows=shadows_of(parameters) if record else tuple(parameters),
            args=args,
            kwargs=kwargs,
            record=record,
            ambient=Ambient.current(spec.device.torch_device.type),
        )

    def forward(self, x: torch.Tensor, *, x_needs_grad: bool) -> torch.Tensor:
        """x: [batch, tokens, hidden] -> y, the same shape, without a graph."""
        self._state.x_needs_grad = x_needs_grad
        run = BlockForward(self._state)
        y = run.run(x)
        self.rest = run.rest
        return y

    @property
    def gathered_bytes(self) -> int:
        """Bytes of q, k, v and o of all tokens, which only attention and its backward need."""
        o = self._state.o
        return self._state.qkv_bytes + (0 if o is None else o.num_bytes)

    def prefetch(self, limit_bytes: int) -> None:
        """Start copies back for a backward that comes next, up to `limit_bytes`."""
        self._state.prefetch(limit_bytes)

    def backward(self, dy: torch.Tensor) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
        """dy: [batch, tokens, hidden] -> (dx or None, gradients of the parameters).

        Raises: BackwardTwice.
        """
        state = self._state
        if state.x is None or state.o is None:
            raise BackwardTwice(
                "backward ran a second time through a wrapped block; its saved tensors are "
                "released by the first (retain_graph is not supported while wrapped)"
            )
        state.spec.observe("post_backward")
        in_flight = state.spec.in_flight
        # What the block itself sent comes back now, and copies to the host end in order.
        in_flight.allow(0 if state.spec.policy.swaps else state.spec.ahead_bytes)
        in_flight.release_done()
        x, o = state.x.take(), state.o.take()
        state.x = state.o = None
        gradients = BlockBackward(state, x, self._prefetch_previous).run(o, dy)
        state.tiles.clear()
        if state.spec.park_pre:
            in_flight.drain()  # all that was parked has come back
        return gradients

    def saved_bytes(self) -> SavedBytes:
        """What forward saved, on the device or on the host, with all tiles recorded."""
        state = self._state
        assert state.x is not None
        assert state.o is not None
        assert state.attention is not None
        return SavedBytes(
            x=state.x.num_bytes,
            o=state.o.num_bytes,
            qkv=state.qkv_bytes,
            attention=state.attention.saved.num_bytes,
            pre=sum(tile.pre_saved.num_bytes for tile in state.tiles),
            post=sum(tile.post_saved.num_bytes for tile in state.tiles),
        )

    def _prefetch_previous(self, limit_bytes: int) -> None:
        previous = None if self.previous is None else self.previous()
        if previous is not None:
            previous.prefetch(limit_bytes)
