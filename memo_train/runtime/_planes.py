"""Tensors of all tokens as planes, one for each group of heads, on the device or in the host pool.

A plane is [batch, tokens, heads of the group, head_dim] in memory. Tiles write and read their rows
of every plane; attention takes planes whole, one group's after another's. A block's input and its
gradient lie on the host the same way, as one plane.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from memo_train.device import CopyEvent
from memo_train.runtime._swap import SwapTarget
from memo_train.runtime._tile import tile_of, tile_spans, tiles_of


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


class HostInput:
    """A block's input or output, or a part of a gradient, in the host pool, written by tiles.

    Bytes move unchanged (numerics level 1).
    """

    swapped_bytes = 0
    """Of what comes back as a whole: nothing does."""

    def __init__(self, shape: torch.Size, like: torch.Tensor, target: SwapTarget) -> None:
        """shape: [batch, tokens, ...]. like: of its dtype and on its device.

        Raises: HostMemoryExceeded.
        """
        form = PlaneForm(
            num_groups=1,
            batch=shape[0],
            tokens=shape[1],
            heads=1,
            head_dim=math.prod(shape[2:]),
            dtype=like.dtype,
            device=like.device,
            token_dim=1,
        )
        self.shape, self.num_bytes = shape, form.num_bytes
        self._planes = HostPlanes(form, target)

    @classmethod
    def of(cls, x: torch.Tensor, target: SwapTarget) -> HostInput:
        """A copy of x on the host. x: not written to while the copy is under way."""
        made = cls(x.shape, x, target)
        made._planes.put_plane(0, x.flatten(2)[:, :, None])
        return made

    def take(self) -> HostInput:
        """As `WholeTensor`."""
        return self

    def prefetch(self) -> None:
        """As `WholeTensor`: tiles come when their turn is."""

    def whole(self) -> torch.Tensor:
        """All of it, on the device."""
        return self._planes.plane(0).view(self.shape)

    def empty(self) -> torch.Tensor:
        """A tensor of that form on the device."""
        form = self._planes.form
        return torch.empty(self.shape, dtype=form.dtype, device=form.device)

    def like(self, target: SwapTarget) -> HostInput:
        """Memory on the host for a tensor of the same form."""
        made = copy.copy(self)
        made._planes = HostPlanes(self._planes.form, target)
        return made

    def write(self, tile: torch.Tensor | None, span: range) -> None:
        """Send a tile; None are zeros."""
        if tile is None:
            self._planes.put(self._planes.form.zero_tile(len(span)), span)
        else:
            self._planes.put(tile.flatten(2)[:, :, None], span)

    def rows(self, span: range) -> torch.Tensor:
        """A tile, in memory of its own."""
        return self._planes.rows(span).view(self.shape[0], len(span), *self.shape[2:])


class TilesOf:
    """The tiles of a tensor of all tokens: views of it, or rows of what is not there as a whole.

    apart: whether tiles of a tensor are copies, too.
    """

    def __init__(
        self,
        tensor: torch.Tensor | Planes | HostInput,
        tile_tokens: int,
        token_dim: int = 1,
        *,
        apart: bool = False,
    ) -> None:
        self._of, self._apart = tensor, apart
        self._views: tuple[torch.Tensor, ...] = ()
        self._spans: tuple[range, ...] = ()
        if isinstance(tensor, torch.Tensor):
            self._views = tiles_of(tensor, tile_tokens, token_dim)
        else:
            tokens = tensor.shape[1] if isinstance(tensor, HostInput) else tensor.form.tokens
            self._spans = tile_spans(tokens, tile_tokens)

    def tile(self, index: int) -> torch.Tensor:
        """Tile number `index`, a copy if it is no view."""
        if not isinstance(self._of, torch.Tensor):
            return self._of.rows(self._spans[index])
        view = self._views[index]
        return view.clone(memory_format=torch.contiguous_format) if self._apart else view

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
        return self._of if isinstance(self._of, torch.Tensor) and not self._apart else tile


class InputGradient:
    """dx of all tokens: each tile is written by post's backward and added to by pre's."""

    def __init__(
        self, x: torch.Tensor | HostInput, tile_tokens: int, target: SwapTarget | None
    ) -> None:
        """target: where what post gives waits for pre; None: where dx will be, on the device."""
        self._x, self._tile_tokens = x, tile_tokens
        self._spans = tile_spans(x.shape[1], tile_tokens)
        self._part: HostInput | None = None
        self._dx: torch.Tensor | None = None
        self._tiles: tuple[torch.Tensor, ...] = ()
        if target is None:
            self._make()
        elif isinstance(x, torch.Tensor):
            self._part = HostInput(x.shape, x, target)
        else:
            self._part = x.like(target)

    def write(self, index: int, value: torch.Tensor | None) -> None:
        """What post's backward gave of a tile; None are zeros."""
        if self._part is None:
            # No zeroes of all tokens are needed.
            write(self._tiles[index], value)
        else:
            self._part.write(value, self._spans[index])

    def add(self, index: int, value: torch.Tensor | None) -> None:
        """What pre's backward gave of a tile, once for each; None adds nothing."""
        if self._dx is None:
            self._make()
        if self._part is not None:
            self._tiles[index].copy_(self._part.rows(self._spans[index]))
        if value is not None:
            self._tiles[index].add_(value)

    def take(self) -> torch.Tensor:
        """dx; the reference is given away."""
        dx, self._dx, self._tiles = self._dx, None, ()
        assert dx is not None
        return dx

    def _make(self) -> None:
        x = self._x
        # Not in dy's memory: nobody can tell who else holds dy (docs/design.md).
        self._dx = torch.empty_like(x) if isinstance(x, torch.Tensor) else x.empty()
        self._tiles = tiles_of(self._dx, self._tile_tokens)


class Output:
    """y of all tokens, written by tiles: on the device, or on the host until the last is there."""

    def __init__(self, shape: torch.Size, tile_tokens: int, target: SwapTarget | None) -> None:
        """target: where tiles wait; None: on the device."""
        self._shape, self._target = shape, target
        self._spans = tile_spans(shape[1], tile_tokens)
        self._y: torch.Tensor | HostInput | None = None
        self._tiles: tuple[torch.Tensor, ...] = ()

    def write(self, index: int, tile: torch.Tensor) -> None:
        """Write tile number `index`; the only one is y."""
        if len(self._spans) == 1:
            self._y = tile
            return
        if self._y is None:
            self._y = self._made(tile)
        if isinstance(self._y, HostInput):
            self._y.write(tile, self._spans[index])
        else:
            self._tiles[index].copy_(tile)

    def take(self) -> torch.Tensor:
        """y; the reference is given away."""
        y, self._y, self._tiles = self._y, None, ()
        assert y is not None
        return y.whole() if isinstance(y, HostInput) else y

    def _made(self, tile: torch.Tensor) -> torch.Tensor | HostInput:
        # Only a tile tells y's dtype: autocast may have made it another.
        if self._target is not None:
            return HostInput(self._shape, tile, self._target)
        y = torch.empty(self._shape, dtype=tile.dtype, device=tile.device)
        self._tiles = tiles_of(y, len(self._spans[0]))
        return y


def write(place: torch.Tensor, value: torch.Tensor | None) -> None:
    """Write `value`, or zeros where there is none."""
    if value is None:
        place.zero_()
    else:
        place.copy_(value)
