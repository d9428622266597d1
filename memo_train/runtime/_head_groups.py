"""Attention by groups of heads: what it gets and gives lies as planes of one group each.

Heads of different groups do not meet in attention (the probe proves it of each kind of block), so
it runs forward and backward one group after the other, and all else of q, k, v, o and their
gradients waits in the host pool (`_planes`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from memo_train.runtime._attend import AttentionRun
from memo_train.runtime._cut import Cut, CutForm
from memo_train.runtime._planes import HostPlanes, KeptPlanes, PlaneForm, Planes
from memo_train.runtime._swap import SwapTarget
from memo_train.runtime._tile import Gradients, tensors_in, tile_of

MASKS = {"attn_mask": 3, "attention_mask": 4}
"""Options that are broadcast to [batch, heads, tokens, tokens], and the fewest dimensions with
which they have heads: PyTorch's own, and that of Transformers' attention functions."""

_HEADS_OF_MASK = -3


MOST_GROUPS = 8
"""More save little: at eight, one group's part of q, k, v, o and their gradients is 1 h of 8."""


def num_groups_of(num_heads: int) -> int:
    """The most groups, up to `MOST_GROUPS`, into which so many key-value heads are cut evenly."""
    return max(n for n in range(1, MOST_GROUPS + 1) if num_heads % n == 0)


@dataclass(frozen=True, kw_only=True)
class HeadCut:
    """What the probe has proven of a block's attention: its heads do not meet.

    num_heads: of k and v, and so the most groups. per_head: options of the call that have one entry
    for each head of q.
    """

    num_heads: int
    per_head: frozenset[str] = frozenset()

    @classmethod
    def of(cls, cut: Cut) -> HeadCut | None:
        """What is to be proven of a cut; None where heads cannot be told."""
        if cut.form.token_dim != 2 or len(cut.tensors) != 3 or cut.form.shared is not None:
            return None
        num_q, num_k, num_v = (t.shape[1] if t.dim() == 4 else 0 for t in cut.tensors)
        if num_k < 2 or num_v != num_k or num_q % num_k:
            return None
        lists = (n for n, v in cut.options.items() if _has_shape(v, (num_q,)))
        return cls(num_heads=num_k, per_head=frozenset(lists))

    def options(
        self, options: Mapping[str, Any], group: int, num_groups: int, num_q_heads: int
    ) -> dict[str, Any]:
        """The options of the call on one group of heads."""
        size = num_q_heads // num_groups
        heads = range(group * size, (group + 1) * size)
        found = dict(options)
        for name, value in options.items():
            if not isinstance(value, torch.Tensor):
                continue
            if name in self.per_head:
                found[name] = tile_of(value, heads, 0)
            elif value.dim() >= MASKS.get(name, value.dim() + 1):
                # A single one is that of all heads.
                one = value.shape[_HEADS_OF_MASK] == 1
                found[name] = value if one else tile_of(value, heads, _HEADS_OF_MASK)
        return found


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, torch.Tensor) and tuple(value.shape) == shape


class GatheredPlanes:
    """q, k and v of all tokens as planes on the host, filled tile by tile; as `Gathered`."""

    def __init__(self, tokens: int, form: CutForm, num_groups: int, target: SwapTarget) -> None:
        self._tokens, self._form = tokens, form
        self._num_groups, self._target = num_groups, target
        self._planes: tuple[HostPlanes, ...] = ()
        self.holds_copies = True

    @property
    def num_bytes(self) -> int:
        """Of all that was put."""
        return sum(planes.num_bytes for planes in self._planes)

    def put(self, qkv: Sequence[torch.Tensor], span: range) -> None:
        """Write the q, k and v of one tile into place, in the dtype attention will use."""
        if not self._planes:
            self._planes = tuple(self._planes_of(tile) for tile in qkv)
        for planes, tile in zip(self._planes, qkv, strict=True):
            planes.put(tile, span)

    def take(self) -> tuple[HostPlanes, ...]:
        """The planes; the references are given away."""
        planes, self._planes = self._planes, ()
        return planes

    def _planes_of(self, tile: torch.Tensor) -> HostPlanes:
        dtype, token_dim = self._form.dtype_of(tile), self._form.token_dim
        form = PlaneForm.of_tile(tile, dtype, self._tokens, token_dim, self._num_groups)
        return HostPlanes(form, self._target)


class GroupedAttention:
    """Attention over all tokens, one group of heads after the other; as `AttentionRun`."""

    def __init__(self, cut: Cut, options: dict[str, Any], heads: HeadCut, num_groups: int) -> None:
        """cut: of any tile. options: of the call on all heads and tokens."""
        self.form, num_q_heads = cut.form, cut.tensors[0].shape[1]
        self._options = options
        self._runs = [
            AttentionRun(
                cut, heads.options(options, group, num_groups, num_q_heads), makes_o_again=True
            )
            for group in range(num_groups)
        ]

    def anew(self) -> GroupedAttention:
        """The same, as if it had never run."""
        made = copy.copy(self)
        made._runs = [run.anew() for run in self._runs]
        return made

    @property
    def roots(self) -> Iterator[Any]:
        """The nodes that its backward starts from."""
        return chain.from_iterable(run.roots for run in self._runs)

    @property
    def leaves(self) -> Iterator[torch.Tensor]:
        """q, k and v as its graphs know them."""
        return chain.from_iterable(run.leaves for run in self._runs)

    @property
    def saved_bytes(self) -> int:
        """Bytes of what it saved besides q, k, v and o."""
        return sum(run.saved_bytes for run in self._runs)

    def reads(self) -> Iterator[torch.Tensor]:
        """The tensors that it reads besides q, k, v, o and their gradients."""
        return tensors_in(self._options)

    def prefetch(self) -> None:
        """Start the copies back of all that it saved."""
        for run in self._runs:
            run.prefetch()

    def forward(
        self, qkv: Sequence[HostPlanes], *, record: bool, swap: SwapTarget | None = None
    ) -> Planes:
        """The attention output. swap: where it, and what attention saves, goes; None keeps it."""
        o: Planes | None = None
        for group, run in enumerate(self._runs):
            given = tuple(planes.plane(group) for planes in qkv)
            part = run.forward(given, record=record, swap=swap)
            del given
            if o is None:
                form = PlaneForm.of_plane(part, self.form.o_token_dim, len(self._runs))
                o = KeptPlanes(form) if swap is None else HostPlanes(form, swap)
            o.put_plane(group, part)
            del part
        assert o is not None
        return o

    def backward(
        self,
        qkv: Sequence[HostPlanes],
        wholes: list[Planes],
        parameters: Sequence[torch.Tensor],
    ) -> tuple[Sequence[HostPlanes], Gradients]:
        """((dq, dk, dv), parameter gradients), the former in the places of q, k and v.

        wholes: o as it was in forward, and its gradient; they are taken.
        """
        o, do = wholes.pop(0), wholes.pop(0)
        sums: Gradients = (None,) * len(parameters)
        for group, run in enumerate(self._runs):
            given = tuple(planes.plane(group) for planes in qkv)
            planes_of = [o.plane(group), do.plane(group)]
            dqkv, gradients = run.backward(given, planes_of, parameters)
            del given
            for planes, gradient in zip(qkv, dqkv, strict=True):
                planes.put_plane(group, gradient)
            # Not one of them beside the next group's planes.
            del dqkv, gradient
            sums = tuple(map(_added, sums, gradients))
        return qkv, sums


def _added(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
