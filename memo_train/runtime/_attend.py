"""The attention of one block: gathered from tiles, run once, differentiated once.

What it gets is called q, k and v here; of a mixer it is what that module gets.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from memo_train.runtime._cut import Cut, CutForm
from memo_train.runtime._saved import SavedTensors
from memo_train.runtime._swap import SwapTarget, is_plain
from memo_train.runtime._tile import (
    Gradients,
    alias_of,
    differentiate,
    release_data,
    tile_of,
)


class Gathered:
    """q, k and v of all tokens, each [batch, heads, tokens, head_dim], filled tile by tile.

    Stored token-major ([batch, tokens, heads, head_dim] in memory, as projections write them).
    With one tile the tile's own tensors serve and nothing is copied (`holds_copies`).
    """

    def __init__(self, tokens: int, form: CutForm) -> None:
        """form: of the cut that attention will run for."""
        self._tokens = tokens
        self._form = form
        self._whole: tuple[torch.Tensor, ...] | None = None
        self.holds_copies = False

    @property
    def num_bytes(self) -> int:
        """Of all that was put."""
        return sum(t.nbytes for t in self._whole or ())

    def put(self, qkv: Sequence[torch.Tensor], span: range) -> None:
        """Write the q, k and v of one tile into place, in the dtype attention will use.

        Autocast would cast them whole inside attention; this casts while gathering instead.
        """
        if len(span) == self._tokens:
            self._whole = tuple(t.detach().to(self._dtype(t)) for t in qkv)
            return
        if self._whole is None:
            self._whole, self.holds_copies = tuple(self._empty(t) for t in qkv), True
        for whole, tile in zip(self._whole, qkv, strict=True):
            tile_of(whole, span, self._form.token_dim).copy_(tile.detach())

    def take(self) -> tuple[torch.Tensor, ...]:
        """What attention gets; the references are given away. Of shared attention a collective."""
        whole, self._whole = self._whole, None
        assert whole is not None
        shared = self._form.shared
        if shared is None:
            return whole
        mine, entered = list(whole), []
        del whole
        while mine:
            # One by one: what has been handed over is let go.
            entered.append(shared.enter(mine.pop(0), self._form.token_dim))
        return tuple(entered)

    def _empty(self, tile: torch.Tensor) -> torch.Tensor:
        token_dim = self._form.token_dim
        batch, *between = tile.shape[:token_dim]
        shape = (batch, self._tokens, *between, *tile.shape[token_dim + 1 :])
        empty = torch.empty(shape, dtype=self._dtype(tile), device=tile.device)
        return empty.movedim(1, token_dim)

    def _dtype(self, tensor: torch.Tensor) -> torch.dtype:
        return self._form.dtype_of(tensor)


@dataclass(frozen=True, kw_only=True)
class _Strides:
    """How a tensor lies in its memory. is_dense: it is all of that memory, without holes."""

    shape: torch.Size
    stride: tuple[int, ...]
    is_dense: bool

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Strides:
        # PyTorch keeps strides only where they leave no holes.
        is_dense = (
            is_plain(tensor)
            and torch.empty_like(tensor, device="meta").stride() == tensor.stride()
            and tensor.untyped_storage().nbytes() == tensor.nbytes
        )
        return cls(shape=tensor.shape, stride=tensor.stride(), is_dense=is_dense)

    def of_values(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values with these strides."""
        if not self.is_dense or tensor.stride() == self.stride:
            return tensor
        return torch.empty_strided(
            self.shape, self.stride, dtype=tensor.dtype, device=tensor.device
        ).copy_(tensor)


class AttentionRun:
    """Attention over all tokens, run once; keeps what its backward needs besides q, k, v and o.

    Ranks that share it hand q, k and v over in `Gathered.take`; o, and what backward gets and
    gives, are handed over here. So o is saved once, as this rank's tokens of it.
    """

    def __init__(self, cut: Cut, options: dict[str, Any], *, makes_o_again: bool = False) -> None:
        """makes_o_again: whether backward gets o in other memory than forward gave it."""
        self.form = cut.form
        self._makes_o_again = makes_o_again or cut.form.shared is not None
        self._call = cut.call
        self._options = options
        # A mixer, which ranks never share, may get tensors without heads.
        head_dim = 3 - cut.form.token_dim
        self._num_heads = tuple(t.shape[head_dim] for t in cut.tensors if cut.form.shared)
        self._o_strides: _Strides | None = None
        self._edge: GradientEdge | None = None
        self._leaves: tuple[torch.Tensor, ...] = ()
        self.saved = SavedTensors()

    def anew(self) -> AttentionRun:
        """The same, as if it had never run."""
        made = copy.copy(self)
        made._o_strides = made._edge = None
        made._leaves, made.saved = (), SavedTensors()
        return made

    @property
    def roots(self) -> tuple[Any, ...]:
        """The nodes that its backward starts from, and the leaves it ends at."""
        return () if self._edge is None else (self._edge.node,)

    @property
    def leaves(self) -> tuple[torch.Tensor, ...]:
        """q, k and v as its graph knows them; they have no values any more."""
        return self._leaves

    def forward(
        self, qkv: Sequence[torch.Tensor], *, record: bool, swap: SwapTarget | None = None
    ) -> torch.Tensor:
        """The attention output without a graph; with `record`, backward can follow.

        What attention saves besides q, k, v and o goes where `swap` says (None keeps it).
        """
        if not record:
            with self.form.ambient.restored(grad=False):
                return self._left(self._call(*qkv, **self._options))
        leaves = tuple(t.detach().requires_grad_() for t in qkv)
        with self.form.ambient.restored(grad=True), self.saved.hooks():
            # Aliases: attention may hold what it is given, and the leaves' memory is let go.
            o = self._call(*map(alias_of, leaves), **self._options)
        known = _named(leaves) | {"o": o}
        if self._makes_o_again:
            self._o_strides = _Strides.of(o)
            if not self._o_strides.is_dense:
                # It could not be made again with the strides that saved tensors have in it.
                del known["o"]
        self.saved.settle(known, swap=swap, pads=True)
        self._edge = get_gradient_edge(o)
        for leaf in leaves:
            release_data(leaf)
        self._leaves = leaves
        return self._left(o.detach())

    def backward(
        self,
        qkv: Sequence[torch.Tensor],
        wholes: list[torch.Tensor],
        parameters: Sequence[torch.Tensor],
    ) -> tuple[tuple[torch.Tensor, ...], Gradients]:
        """((dq, dk, dv), parameter gradients); q, k, v as they were in forward.

        wholes: o as it was in forward, and its gradient; they are taken, so that what has been
        handed to other ranks is let go.
        """
        o = self._entered(wholes.pop(0))
        do = self._entered(wholes.pop(0))
        self.saved.bind(**_named(qkv), o=o)
        edge, leaves = self._edge, self._leaves
        self._edge, self._leaves = None, ()
        # An attention function may use parameters of its block.
        found = differentiate([edge], [do], (*leaves, *parameters), retain_graph=False)
        self.saved = SavedTensors()
        of_parameters, dqkv = found[len(leaves) :], list(found[: len(leaves)])
        # Gradients leave in the memory that these give back.
        del o, do, qkv, found
        whole = [
            # An input that attention does not use has no gradient; pre's graph wants zeros.
            torch.zeros_like(leaf) if d is None else d
            for leaf, d in zip(leaves, dqkv, strict=True)
        ]
        del dqkv
        return self._gradients_left(whole), of_parameters

    @property
    def saved_bytes(self) -> int:
        """Bytes of what it saved besides q, k, v and o."""
        return self.saved.num_bytes

    def prefetch(self) -> None:
        """Start the copies back of what it saved."""
        self.saved.prefetch()

    def _left(self, o: torch.Tensor) -> torch.Tensor:
        """This rank's tokens of what attention gave."""
        form = self.form
        if form.shared is None:
            return o
        return form.shared.leave(o, form.o_token_dim, self._num_heads[0])

    def _entered(self, o: torch.Tensor) -> torch.Tensor:
        """o or do as attention's graph knows it, with the strides that o had in forward."""
        if self.form.shared is not None:
            o = self.form.shared.enter(o, self.form.o_token_dim)
        return o if self._o_strides is None else self._o_strides.of_values(o)

    def _gradients_left(self, dqkv: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """This rank's tokens of dq, dk and dv, which are taken one by one."""
        form = self.form
        if form.shared is None:
            return tuple(dqkv)
        left: list[torch.Tensor] = []
        for heads in self._num_heads:
            left.append(form.shared.leave(dqkv.pop(0), form.token_dim, heads))
        return tuple(left)


def _named(qkv: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"given_{index}": tensor for index, tensor in enumerate(qkv)}
