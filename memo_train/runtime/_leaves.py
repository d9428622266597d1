"""The tensors that a block's graphs give gradients to: only some of them leave the block again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from memo_train.errors import LostGradient


def leaves_of(roots: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The leaf tensors that the graphs below `roots` (nodes, or None) accumulate gradients into."""
    nodes, visited = list(roots), set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        # Only the nodes that accumulate into a leaf have one.
        variable = getattr(node, "variable", None)
        if variable is not None:
            yield variable
        nodes.extend(following for following, _ in node.next_functions)


def operations_of(root: Any) -> frozenset[str]:
    """The names of the operations in the graph below a node."""
    nodes, visited = [root], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in visited:
            visited.add(node)
            nodes.extend(following for following, _ in node.next_functions)
    return frozenset(node.name() for node in visited)


def refuse_lost_gradients(
    module: nn.Module,
    roots: Iterable[Any],
    parameters: Sequence[torch.Tensor],
    inputs: Iterable[torch.Tensor],
) -> None:
    """Whether every gradient of a block's graph leaves the block.

    parameters: the block's own trainable ones, whose aliases are installed in `module` now and are
    among `inputs`, the leaves whose gradients are taken. A parameter itself in the graph would stay
    without a gradient that plain autograd gives it. One that is not in the graph has none in plain
    autograd either (an expert that no token was routed to), so nothing is said about it.

    Raises: LostGradient, with the parameter's name.
    """
    taken = {id(tensor) for tensor in inputs}
    for leaf in leaves_of(roots):
        if id(leaf) not in taken:
            name = _name(module, leaf, parameters)
            raise LostGradient(
                f"{type(module).__name__}: {name} would get no gradient; "
                "the block uses it past its modules' own parameters (in a closure, a cached copy), "
                "which was not so when the model was wrapped; call memo_train.unwrap(model) and "
                "wrap it again"
            )


def _name(module: nn.Module, leaf: torch.Tensor, parameters: Sequence[torch.Tensor]) -> str:
    names = [name for name, tensor in module.named_parameters() if tensor.requires_grad]
    for name, parameter in zip(names, parameters, strict=False):
        if parameter is leaf:
            return f"parameter {name} {tuple(leaf.shape)}"
    return f"a tensor {tuple(leaf.shape)} that requires a gradient and is none of its parameters"
