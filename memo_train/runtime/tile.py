"""One token tile of one block: its forward in two stretches, its graph, its backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from memo_train.runtime.frame import Cut, Frame
from memo_train.runtime.saved import SavedTensors

Gradients = tuple[torch.Tensor | None, ...]


@dataclass(kw_only=True)
class TileGraph:
    """A tile's graph as backward differentiates it; the edges are its roots, x and o its leaves."""

    x: torch.Tensor
    o: torch.Tensor | None = None
    qkv_edges: tuple[GradientEdge | None, ...] = ()
    qkv_dtypes: tuple[torch.dtype, ...] = ()
    y_edge: GradientEdge | None = None

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
            cut = self._frame.run_to_cut((x, *args), kwargs)
        if record:
            qkv = (cut.q, cut.k, cut.v)
            self.graph = TileGraph(
                x=x,
                qkv_edges=tuple(_edge(t) for t in qkv),
                qkv_dtypes=tuple(t.dtype for t in qkv),
            )
        return cut

    def post(
        self, o: torch.Tensor, record: bool, saved: SavedTensors | None = None
    ) -> tuple[torch.Tensor, tuple[Any, ...] | None]:
        """Run from the cut to the end: (y without its graph, further outputs of the block)."""
        if record:
            o = o.detach().requires_grad_()
        with torch.set_grad_enabled(record), _hooks(saved if record else None):
            output = self._frame.resume(o)
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
    """A block's y, and its further outputs if it returns a tuple."""
    return (output[0], tuple(output[1:])) if isinstance(output, tuple) else (output, None)


def _edge(tensor: torch.Tensor) -> GradientEdge | None:
    return get_gradient_edge(tensor) if tensor.requires_grad else None


def _hooks(saved: SavedTensors | None) -> AbstractContextManager[Any]:
    return nullcontext() if saved is None else saved.hooks()


def release_data(leaf: torch.Tensor) -> None:
    """Let go of a leaf's memory but keep its shape: its values are provided by `SavedTensors`."""
    leaf.data = leaf.new_zeros(()).expand(leaf.shape)
