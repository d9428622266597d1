"""Attention by groups of heads: what it gets and gives lies as planes of one group each.

Heads of different groups do not meet in attention (the probe proves it of each kind of block), so
it runs forward and backward one group after the other. All else waits in the host pool: a plane is
[batch, tokens, heads of the group, head_dim] there; tiles write and read their rows of every plane,
attention takes planes whole. A group is also what ranks would exchange at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

from memo_train.device import CopyEvent
from memo_train.runtime._attend import AttentionRun
from memo_train.runtime._cut import Cut, CutForm
from memo_train.runtime._swap import SwapTarget
from memo_train.runtime._tile import Gradients, tile_of, tile_spans, tiles_of

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


@dataclass(frozen=True, kw_only=True)
class PlaneForm:
    """A tensor of all tokens as planes. token_dim: 1 or 2, heads are counted by the other one."""

    num_groups: int
    batch: int
    tokens: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    token_dim: int

    @classmethod
    def of_tile(
        cls, tile: torch.Tensor, dtype: torch.dtype, tokens: int, token_dim: int, num_groups: int
    ) -> PlaneForm:
        """Of a tensor of which `tile` is a tile, in `dtype`. heads: of one group."""
        return cls(
            num_groups=num_groups,
            batch=tile.shape[0],
            tokens=tokens,
            heads=tile.shape[3 - token_dim] // num_groups,
            head_dim=tile.shape[3],
            dtype=dtype,
            device=tile.device,
            token_dim=token_dim,
        )

    @classmethod
    def of_plane(cls, plane: torch.Tensor, token_dim: int, num_groups: int) -> PlaneForm:
        """Of a tensor of which `plane` is one."""
        form = cls.of_tile(plane, plane.dtype, plane.shape[token_dim], token_dim, 1)
        return replace(form, num_groups=num_groups)

    @property
    def token_bytes(self) -> int:
        """Of one token of one sequence in one plane."""
        return self.heads * self.head_dim * self.dtype.itemsize

    @property
    def plane_bytes(self) -> int:
        """Of one plane."""
        return self.batch * self.tokens * self.token_bytes

    @property
    def num_bytes(self) -> int:
        """Of all planes."""
        return self.num_groups * self.plane_bytes

    def empty_plane(self) -> torch.Tensor:
        """[batch, tokens, heads, head_dim]"""
        shape = (self.batch, self.tokens, self.heads, self.head_dim)
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def empty_rows(self, num_tokens: int) -> torch.Tensor:
        """[groups, batch, num_tokens, heads, head_dim]"""
        shape = (self.num_groups, self.batch, num_tokens, self.heads, self.head_dim)
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def packed(self, tile: torch.Tensor) -> torch.Tensor:
        """The rows of a tile [batch, .., .., head_dim], in memory of their own."""
        rows = self.empty_rows(tile.shape[self.token_dim])
        by_token = self.turned(tile.detach())
        for group in range(self.num_groups):
            heads = range(group * self.heads, (group + 1) * self.heads)
            rows[group].copy_(tile_of(by_token, heads, 2))
        return rows

    def tile(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tile of which these are each group's rows [batch, tokens of the tile, heads, dim]."""
        shape = (self.batch, rows[0].shape[1], self.num_groups, self.heads, self.head_dim)
        tile = torch.empty(shape, dtype=self.dtype, device=self.device)
        for group, part in enumerate(rows):
            tile[:, :, group].copy_(part)
        return self.turned(tile.flatten(2, 3))

    def zero_tile(self, num_tokens: int) -> torch.Tensor:
        """A tile of so many tokens, in the order of the tensor's dimensions."""
        shape = (self.batch, num_tokens, self.num_groups * self.heads, self.head_dim)
        return self.turned(torch.zeros(shape, dtype=self.dtype, device=self.device))

    def turned(self, tensor: torch.Tensor) -> torch.Tensor:
        """From the order of the tensor's dimensions to that of a plane's, and back."""
        return tensor if self.token_dim == 1 else tensor.transpose(1, 2)


class Planes(ABC):
    """Attention's output of all tokens, or its gradient: one plane for each group of heads."""

    form: PlaneForm
    swapped_bytes = 0
    """Of what comes back as a whole: nothing does."""

    @property
    def num_bytes(self) -> int:
        """Of all planes."""
        return self.form.num_bytes

    def take(self) -> Planes:
        """As `WholeTensor`."""
        return self

    def prefetch(self) -> None:  # noqa: B027  # planes come when their turn is
        """As `WholeTensor`."""

    def like(self, target: SwapTarget) -> HostPlanes:
        """Planes on the host for a tensor of the same form."""
        return HostPlanes(self.form, target)

    @abstractmethod
    def put_plane(self, group: int, plane: torch.Tensor) -> None:
        """Write a plane, in the order of the tensor's dimensions."""

    @abstractmethod
    def plane(self, group: int) -> torch.Tensor:
        """A plane, in the order of the tensor's dimensions; of what is kept once."""

    @abstractmethod
    def rows(self, span: range) -> torch.Tensor:
        """The tile of those tokens, all heads, in memory of its own."""


class KeptPlanes(Planes):
    """Planes that stay on the device as they were made."""

    def __init__(self, form: PlaneForm) -> None:
        self.form = form
        self._planes: dict[int, torch.Tensor] = {}

    def put_plane(self, group: int, plane: torch.Tensor) -> None:
        """As `Planes`."""
        self._planes[group] = plane.detach()

    def plane(self, group: int) -> torch.Tensor:
        """As `Planes`."""
        return self._planes.pop(group)

    def rows(self, span: range) -> torch.Tensor:
        """As `Planes`."""
        groups = range(self.form.num_groups)
        planes = (self.form.turned(self._planes[group]) for group in groups)
        return self.form.tile([tile_of(plane, span) for plane in planes])


class HostPlanes(Planes):
    """Planes in the host pool. The device orders copies of both directions on one host range."""

    def __init__(self, form: PlaneForm, target: SwapTarget) -> None:
        """Raises: HostMemoryExceeded."""
        self.form = form
        self._device, self._in_flight = target
        self._host = self._device.host_alloc(form.num_bytes)
        # Copies of one direction end in the order in which they were asked for.
        self._last: dict[str, CopyEvent] = {}
        self._coming: dict[int, tuple[torch.Tensor, CopyEvent]] = {}

    def put(self, tile: torch.Tensor, span: range) -> None:
        """Send a tile's rows of all planes."""
        rows = self.form.packed(tile)
        self._send(rows, self._copies_of_rows(rows, span))

    def put_plane(self, group: int, plane: torch.Tensor) -> None:
        """As `Planes`."""
        source = self.form.turned(plane.detach()).contiguous()
        self._send(source, [(self._at(group), source.data_ptr(), self.form.plane_bytes)])

    def fetch(self, group: int) -> None:
        """Let a plane come to the device; `plane` gives it."""
        plane = self.form.empty_plane()
        copies = [(plane.data_ptr(), self._at(group), self.form.plane_bytes)]
        self._last["back"] = self._device.copy_all_to_device(copies)
        self._coming[group] = plane, self._last["back"]

    def plane(self, group: int) -> torch.Tensor:
        """As `Planes`."""
        if group not in self._coming:
            self.fetch(group)
        plane, returned = self._coming.pop(group)
        returned.wait()
        return self.form.turned(plane)

    def rows(self, span: range) -> torch.Tensor:
        """As `Planes`."""
        rows = self.form.empty_rows(len(span))
        copies = [(a, b, n) for b, a, n in self._copies_of_rows(rows, span)]
        self._last["back"] = self._device.copy_all_to_device(copies)
        self._last["back"].wait()
        return self.form.tile(rows.unbind())

    def _send(self, source: torch.Tensor, copies: list[tuple[int, int, int]]) -> None:
        self._last["sent"] = self._device.copy_all_to_host(copies)
        self._in_flight.add(self._last["sent"], (source,), source.nbytes)

    def _at(self, group: int) -> int:
        return self._host + group * self.form.plane_bytes

    def _copies_of_rows(self, rows: torch.Tensor, span: range) -> list[tuple[int, int, int]]:
        """(host, device, bytes) of each sequence's rows in each plane."""
        form, at = self.form, rows.data_ptr()
        num_bytes = len(span) * form.token_bytes
        return [
            (
                self._host + (index * form.tokens + span.start) * form.token_bytes,
                at + index * num_bytes,
                num_bytes,
            )
            for index in range(form.num_groups * form.batch)
        ]

    def __del__(self) -> None:
        # Absent where host memory was refused.
        if getattr(self, "_host", 0):
            for event in self._last.values():
                event.wait()
            self._device.host_free(self._host)


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
        self._runs = [
            AttentionRun(
                cut, heads.options(options, group, num_groups, num_q_heads), makes_o_again=True
            )
            for group in range(num_groups)
        ]

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
        o: Planes,
        do: Planes,
        parameters: Sequence[torch.Tensor],
    ) -> tuple[Sequence[HostPlanes], Gradients]:
        """((dq, dk, dv), parameter gradients), the former in the places of q, k and v."""
        sums: Gradients = (None,) * len(parameters)
        for group, run in enumerate(self._runs):
            given = tuple(planes.plane(group) for planes in qkv)
            dqkv, gradients = run.backward(given, o.plane(group), do.plane(group), parameters)
            del given
            for planes, gradient in zip(qkv, dqkv, strict=True):
                planes.put_plane(group, gradient)
            del dqkv
            sums = tuple(map(_added, sums, gradients))
        return qkv, sums


def _added(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


class TilesOf:
    """The tiles of a tensor of all tokens: views of it, or rows of its planes."""

    def __init__(self, tensor: torch.Tensor | Planes, tile_tokens: int, token_dim: int) -> None:
        self._of = tensor
        self._views: tuple[torch.Tensor, ...] = ()
        self._spans: tuple[range, ...] = ()
        if isinstance(tensor, torch.Tensor):
            self._views = tiles_of(tensor, tile_tokens, token_dim)
        else:
            self._spans = tile_spans(tensor.form.tokens, tile_tokens)

    def tile(self, index: int) -> torch.Tensor:
        """Tile number `index`; of planes a copy."""
        if isinstance(self._of, torch.Tensor):
            return self._views[index]
        return self._of.rows(self._spans[index])

    def write(self, index: int, value: torch.Tensor | None) -> None:
        """Write tile number `index`; None are zeros. What is kept on the device is not written."""
        if isinstance(self._of, torch.Tensor):
            write(self._views[index], value)
            return
        assert isinstance(self._of, HostPlanes)
        span = self._spans[index]
        self._of.put(self._of.form.zero_tile(len(span)) if value is None else value, span)

    def memory_of(self, tile: torch.Tensor) -> torch.Tensor:
        """The tensor in whose memory a tile lies, in forward and again in backward."""
        return self._of if isinstance(self._of, torch.Tensor) else tile


def write(place: torch.Tensor, value: torch.Tensor | None) -> None:
    """Write `value`, or zeros where there is none."""
    if value is None:
        place.zero_()
    else:
        place.copy_(value)
