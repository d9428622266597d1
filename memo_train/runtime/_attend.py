"""The attention of one block: gathered from tiles, run once, differentiated once.

What it gets is called q, k and v here; of a mixer it is what that module gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from memo_train.runtime._cut import Cut, CutForm
from memo_train.runtime._saved import SavedTensors
from memo_train.runtime._swap import SwapTarget
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
    With one tile the tile's own tensors serve and nothing is copied.
    """

    def __init__(self, tokens: int, form: CutForm) -> None:
        """form: of the cut that attention will run for."""
        self._tokens = tokens
        self._form = form
        self._whole: tuple[torch.Tensor, ...] | None = None

    def put(self, qkv: Sequence[torch.Tensor], span: range) -> None:
        """Write the q, k and v of one tile into place, in the dtype attention will use.

        Autocast would cast them whole inside attention; this casts while gathering instead.
        """
        if len(span) == self._tokens:
            self._whole = tuple(t.detach().to(self._dtype(t)) for t in qkv)
            return
        if self._whole is None:
            self._whole = tuple(self._empty(t) for t in qkv)
        for whole, tile in zip(self._whole, qkv, strict=True):
            tile_of(whole, span, self._form.token_dim).copy_(tile.detach())

    def take(self) -> tuple[torch.Tensor, ...]:
        """The gathered tensors; the references are given away."""
        whole, self._whole = self._whole, None
        assert whole is not None
        return whole

    def _empty(self, tile: torch.Tensor) -> torch.Tensor:
        token_dim = self._form.token_dim
        batch, *between = tile.shape[:token_dim]
        shape = (batch, self._tokens, *between, *tile.shape[token_dim + 1 :])
        empty = torch.empty(shape, dtype=self._dtype(tile), device=tile.device)
        return empty.movedim(1, token_dim)

    def _dtype(self, tensor: torch.Tensor) -> torch.dtype:
        form = self._form
        return form.ambient.attention_dtype(tensor.dtype) if form.lowers else tensor.dtype


class AttentionRun:
    """Attention over all tokens, run once; keeps what its backward needs besides q, k, v and o."""

    def __init__(self, cut: Cut, options: dict[str, Any]) -> None:
        self.form = cut.form
        self._call = cut.call
        self._options = options
        self._edge: GradientEdge | None = None
        self._leaves: tuple[torch.Tensor, ...] = ()
        self.saved = SavedTensors()

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
                return self._call(*qkv, **self._options)
        leaves = tuple(t.detach().requires_grad_() for t in qkv)
        with self.form.ambient.restored(grad=True), self.saved.hooks():
            # Aliases: attention may hold what it is given, and the leaves' memory is let go.
            o = self._call(*map(alias_of, leaves), **self._options)
        self.saved.settle(_named(leaves) | {"o": o}, swap=swap, pads=True)
        self._edge = get_gradient_edge(o)
        for leaf in leaves:
            release_data(leaf)
        self._leaves = leaves
        return o.detach()

    def backward(
        self,
        qkv: Sequence[torch.Tensor],
        o: torch.Tensor,
        do: torch.Tensor,
        parameters: Sequence[torch.Tensor],
    ) -> tuple[tuple[torch.Tensor, ...], Gradients]:
        """((dq, dk, dv), parameter gradients); q, k, v, o as they were in forward."""
        self.saved.bind(**_named(qkv), o=o)
        edge, leaves = self._edge, self._leaves
        self._edge, self._leaves = None, ()
        # An attention function may use parameters of its block.
        found = differentiate([edge], [do], (*leaves, *parameters), retain_graph=False)
        self.saved = SavedTensors()
        dqkv = tuple(
            # An input that attention does not use has no gradient; pre's graph wants zeros.
            torch.zeros_like(leaf) if d is None else d
            for leaf, d in zip(leaves, found[: len(leaves)], strict=True)
        )
        return dqkv, found[len(leaves) :]


def _named(qkv: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"given_{index}": tensor for index, tensor in enumerate(qkv)}
