"""Token tiles: the contiguous ranges of tokens a block is run on, and slicing by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def tile_spans(tokens: int, tile_tokens: int) -> tuple[range, ...]:
    """The tiles of a block: half-open token ranges; the last one may be shorter."""
    starts = range(0, tokens, tile_tokens)
    return tuple(range(start, min(start + tile_tokens, tokens)) for start in starts)


def tile_of(tensor: torch.Tensor, span: range, dim: int = 1) -> torch.Tensor:
    """The view of `tensor` on the tokens of `span`, counted by dimension `dim`."""
    return tensor.narrow(dim, span.start, len(span))


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

    def tile(self, span: range) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) for the tile `span`."""
        self._pieces.clear()
        args, kwargs = self._cut((self._args, self._kwargs), span, ())
        return args, kwargs

    def whole(self, options: dict[str, Any]) -> dict[str, Any]:
        """`options` of the last tile's attention call, its slices replaced by the whole tensors."""
        whole = {id(piece): tensor for piece, tensor in self._pieces}
        return {name: whole.get(id(value), value) for name, value in options.items()}

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor among the arguments."""
        for _, tensor in _tensors((self._args, self._kwargs)):
            yield tensor

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
        return next((d for d in (1, 0) if value.shape[d : d + 1] == (self._tokens,)), None)


def _tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _tensors(item, (*path, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, (*path, key))
