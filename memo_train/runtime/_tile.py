"""One token tile of one block: its range of tokens, its forward in two stretches, its backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from memo_train.runtime._cut import Cut, Frame
from memo_train.runtime._saved import SavedTensors


def tile_spans(tokens: int, tile_tokens: int) -> tuple[range, ...]:
    """The tiles of a block: half-open token ranges; the last one may be shorter."""
    starts = range(0, tokens, tile_tokens)
    return tuple(range(start, min(start + tile_tokens, tokens)) for start in starts)


def tile_of(tensor: torch.Tensor, span: range, dim: int = 1) -> torch.Tensor:
    """The view of `tensor` on the tokens of `span`, counted by dimension `dim`."""
    return tensor.narrow(dim, span.start, len(span))


def tiles_of(tensor: torch.Tensor, tile_tokens: int, dim: int = 1) -> tuple[torch.Tensor, ...]:
    """`tile_of` of every tile, for less than each would cost; `tensor` lives as long as one."""
    tiles: tuple[torch.Tensor, ...] = tensor.split(tile_tokens, dim)  # type: ignore[no-untyped-call]
    return tiles


Path = tuple[str | int, ...]
TokenDims = Mapping[Path, int | None]
"""Where a tensor is among a block's arguments -> its dimension that counts tokens, or None."""


def learn_token_dims(short: Any, long: Any) -> dict[Path, int | None]:
    """The token dimensions of a block's arguments, from calls that differ in length only.

    short, long: (args, kwargs). One dimension differs: it counts tokens. Two or more differ (an
    attention mask) or none: the tensor is the same for every tile.
    """
    longer = dict(_tensors(long))
    dims: dict[Path, int | None] = {}
    for path, tensor in _tensors(short):
        other = longer.get(path)
        if other is None or other.dim() != tensor.dim():
            continue
        moved = [d for d in range(tensor.dim()) if tensor.shape[d] != other.shape[d]]
        dims[path] = moved[0] if len(moved) == 1 else None
    return dims


class TokenArguments:
    """A block's further arguments, cut to tiles where they have one entry per token.

    dims: what the probe learnt. For a tensor it did not see, the first of dimensions 1 and 0 that
    is as long as the sequence; masks, [..., tokens, tokens] or named attention_mask, belong to the
    cut and stay whole.
    """

    def __init__(
        self, tokens: int, args: tuple[Any, ...], kwargs: dict[str, Any], dims: TokenDims
    ) -> None:
        self._tokens = tokens
        self._args = args
        self._kwargs = kwargs
        self._dims = dims
        self._pieces: list[tuple[torch.Tensor, torch.Tensor]] = []
        # Most arguments are the same for every tile: settings, None.
        self._cut_args = any(map(_may_be_cut, args))
        self._cut_kwargs = [key for key, value in kwargs.items() if _may_be_cut(value)]

    def tile(self, span: range) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) for the tile `span`."""
        self._pieces.clear()
        args, kwargs = self._args, self._kwargs.copy()
        if self._cut_args:
            args = self._cut(args, span, (0,))
        for key in self._cut_kwargs:
            kwargs[key] = self._cut(kwargs[key], span, (1, key))
        return args, kwargs

    def whole(self, options: dict[str, Any]) -> dict[str, Any]:
        """`options` of the last tile's attention call, its slices replaced by the whole tensors."""
        whole = {id(piece): tensor for piece, tensor in self._pieces}
        put_back: dict[str, Any] = replaced_in(options, lambda value: whole.get(id(value), value))
        return put_back

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor among the arguments."""
        yield from tensors_in((self._args, self._kwargs))

    def _cut(self, value: Any, span: range, path: Path) -> Any:
        if isinstance(value, torch.Tensor):
            return self._cut_tensor(value, span, path)
        if isinstance(value, dict):
            return {key: self._cut(item, span, (*path, key)) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(self._cut(v, span, (*path, i)) for i, v in enumerate(value))
        return value

    def _cut_tensor(self, value: torch.Tensor, span: range, path: Path) -> torch.Tensor:
        dim = self._dims[path] if path in self._dims else self._guessed_dim(value)
        if dim is None or "attention_mask" in path or value.shape[dim] != self._tokens:
            return value
        piece = tile_of(value, span, dim)
        self._pieces.append((piece, value))
        return piece

    def _guessed_dim(self, value: torch.Tensor) -> int | None:
        is_mask = value.dim() >= 2 and value.shape[-1] == value.shape[-2] == self._tokens
        if is_mask:
            return None
        # Batch first is the rule; tables of positions may have no batch.
        return next((d for d in (1, 0) if value.shape[d : d + 1] == (self._tokens,)), None)


def _may_be_cut(value: Any) -> bool:
    return isinstance(value, torch.Tensor | dict | tuple | list)


def replaced_in(value: Any, replace: Callable[[Any], Any]) -> Any:
    """`value`, where it is a container a copy of it, with `replace` called on what it holds."""
    if type(value) in (tuple, list):
        return type(value)(replaced_in(item, replace) for item in value)
    if type(value) is dict:
        return {key: replaced_in(item, replace) for key, item in value.items()}
    return replace(value)


def holds(value: Any, item: object) -> bool:
    """Whether `item` itself is in `value`, which may be a container."""
    found: list[Any] = []
    replaced_in(value, lambda inner: found.append(inner) if inner is item else inner)
    return bool(found)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in `value`, which may be a container."""
    for _, tensor in _tensors(value):
        yield tensor


def _tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _tensors(item, (*path, index))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, (*path, key))


Gradients = tuple[torch.Tensor | None, ...]


@dataclass(kw_only=True)
class TileGraph:
    """A tile's graph as backward differentiates it; the edges are its roots, x and o its leaves."""

    x: torch.Tensor
    o: torch.Tensor | None = None
    qkv_edges: tuple[GradientEdge | None, ...] = ()
    qkv_dtypes: tuple[torch.dtype, ...] = ()
    y_edge: GradientEdge | None = None

    @property
    def roots(self) -> tuple[Any, ...]:
        """The nodes that backward starts from."""
        return tuple(edge.node for edge in (self.y_edge, *self.qkv_edges) if edge is not None)

    def post_backward(self, dy: torch.Tensor, parameters: Sequence[torch.Tensor]) -> Gradients:
        """(dx part, do, *parameter gradients) from dy; the post graph is released."""
        assert self.o is not None
        edge, self.y_edge = self.y_edge, None
        o, self.o = self.o, None
        inputs = (self.x, o, *parameters)
        # Blocks whose post uses pre's values (parallel attention and MLP) share nodes with pre.
        return differentiate([edge], [dy], inputs, retain_graph=True)

    def pre_backward(
        self, dqkv: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]
    ) -> Gradients:
        """(dx part, *parameter gradients) from the gradients of this tile's q, k and v."""
        edges, self.qkv_edges = self.qkv_edges, ()
        # Attention may have run in autocast's dtype; pre's graph ends in its own.
        cast = [d.to(dtype) for d, dtype in zip(dqkv, self.qkv_dtypes, strict=True)]
        return differentiate(edges, cast, (self.x, *parameters), retain_graph=False)


def differentiate(
    edges: Sequence[GradientEdge | None],
    gradients: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    *,
    retain_graph: bool,
) -> Gradients:
    """Gradients of graph roots by `inputs`; None for unused inputs and missing roots."""
    roots = [(edge, g) for edge, g in zip(edges, gradients, strict=True) if edge is not None]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    if not roots or not wanted:
        return (None,) * len(inputs)
    found = iter(
        torch.autograd.grad(
            [edge for edge, _ in roots],
            wanted,
            [gradient for _, gradient in roots],
            retain_graph=retain_graph,
            allow_unused=True,
        )
    )
    return tuple(next(found) if tensor.requires_grad else None for tensor in inputs)


class TileRun:
    """The forward of one tile; records a graph or not, through saved-tensor hooks or not."""

    def __init__(self, forward: Callable[..., Any], span: range, device_type: str) -> None:
        """device_type: of the tensors that `forward` computes on."""
        self.span = span
        self._frame = Frame(forward, device_type)
        self.graph: TileGraph | None = None

    def pre(
        self,
        x: torch.Tensor,
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        record: bool,
        saved: SavedTensors | None = None,
    ) -> Cut:
        """Run up to the cut. x: [batch, tile tokens, hidden], a leaf when `record`.

        saved: hooks for what autograd saves, used when `record`; None saves as usual.
        """
        args, kwargs = arguments
        with torch.set_grad_enabled(record), _hooks(saved if record else None):
            cut = self._frame.run_to_cut((alias_of(x) if record else x, *args), kwargs)
        if record:
            self.graph = TileGraph(
                x=x,
                qkv_edges=tuple(_edge(t) for t in cut.tensors),
                qkv_dtypes=tuple(t.dtype for t in cut.tensors),
            )
        return cut

    def post(
        self, o: torch.Tensor, record: bool, saved: SavedTensors | None = None
    ) -> tuple[torch.Tensor, tuple[Any, ...] | None]:
        """Run from the cut to the end: (y without its graph, further outputs of the block)."""
        if record:
            o = o.detach().requires_grad_()
        with torch.set_grad_enabled(record), _hooks(saved if record else None):
            output = self._frame.resume(alias_of(o) if record else o)
        y, rest = split_output(output)
        if record:
            assert self.graph is not None
            self.graph.o = o
            self.graph.y_edge = _edge(y)
        return y.detach(), rest

    def close(self) -> None:
        """Release a frame that will not be resumed."""
        self._frame.close()


def split_output(output: Any) -> tuple[torch.Tensor, tuple[Any, ...] | None]:
    """A block's y, and its further outputs if it returns a tuple or a list."""
    # Exactly these: the model must get back the type that its block gives.
    if type(output) not in (tuple, list) or not output:
        return output, None
    return output[0], tuple(output[1:])


def _edge(tensor: torch.Tensor) -> GradientEdge | None:
    return get_gradient_edge(tensor) if tensor.requires_grad else None


def _hooks(saved: SavedTensors | None) -> AbstractContextManager[Any]:
    return nullcontext() if saved is None else saved.hooks()


def alias_of(leaf: torch.Tensor) -> torch.Tensor:
    """The same values as a tensor of its own, for the block to see in place of the leaf.

    Whoever holds on to it outside of autograd (an attribute of `ctx`, of a module) holds its memory
    too: `release_data` lets go of the leaf's only.
    """
    # A view of all of it: as an alias, for less time than an operator without a method takes.
    return leaf.view_as(leaf)


def release_data(leaf: torch.Tensor) -> None:
    """Let go of a leaf's memory but keep its shape: its values are provided by `SavedTensors`.

    leaf: nobody but the runtime has seen it (see `alias_of`).
    """
    # One number seen at every index: autograd looks at a leaf's shape only.
    leaf.data = leaf.new_zeros(()).expand(leaf.shape)
