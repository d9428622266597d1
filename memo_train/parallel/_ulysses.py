"""Ulysses: attention of some heads over all tokens on each rank, by an all-to-all on each side.

Source: DeepSpeed Ulysses (arXiv 2309.14509).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from memo_train.errors import UnsupportedModel
from memo_train.parallel._group import Exchanging
from memo_train.runtime import Call, SharedAttention

# Numbers a head, that attention functions of Transformers take.
_BY_HEAD = ("s_aux", "sinks")
# Models hand all they are called with down to attention, which looks at none of these.
_FOR_THE_LOSS = ("labels", "shift_labels")


@dataclass(frozen=True, kw_only=True)
class SharedTokens:
    """One step's tokens: of this rank, of all, and the positions of all, [batch, tokens]."""

    mine: int
    total: int
    positions: torch.Tensor


class HeadsSeen(SharedAttention):
    """Attends alone, and remembers the numbers of heads: of the probe, before anybody shares."""

    def __init__(self) -> None:
        self.num_heads: set[tuple[int, ...]] = set()

    def adapted(self, call: Call, num_heads: tuple[int, ...], o_token_dim: int) -> Call:
        """`call` itself."""
        self.num_heads.add(num_heads)
        return call

    def enter(self, tensor: torch.Tensor, token_dim: int) -> torch.Tensor:
        """`tensor` itself."""
        return tensor

    def leave(self, tensor: torch.Tensor, token_dim: int, num_heads: int) -> torch.Tensor:
        """`tensor` itself."""
        return tensor


def check_heads(num_heads: tuple[int, ...], num_ranks: int) -> None:
    """Raises: UnsupportedModel unless ranks can have equal shares of the heads of q, k and v."""
    q, *kv = num_heads
    if divides(num_ranks, num_heads):
        return
    possible = [n for n in range(1, q + 1) if divides(n, num_heads)]
    raise UnsupportedModel(
        f"{num_ranks} ranks cannot share attention of {q} heads with {max(kv)} key-value heads "
        f'(Ulysses); use a mesh of {", ".join(map(str, possible))} ranks, or sp="ring"'
    )


def divides(num_ranks: int, num_heads: tuple[int, ...]) -> bool:
    """Whether ranks can have equal shares of the heads of q, k and v."""
    q, *kv = num_heads
    return q % num_ranks == 0 and all(h % num_ranks == 0 or num_ranks % h == 0 for h in kv)


def shares_of_heads(rows: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """[tokens, batch, heads, dim] -> [tokens, batch, ranks, heads of one, dim], with replicas."""
    heads = rows.shape[2]
    if heads < num_ranks:
        rows = rows.repeat_interleave(num_ranks // heads, dim=2)
    return torch.unflatten(rows, 2, (num_ranks, -1))


def without_replicas(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """[tokens, batch, heads, dim], of which replicas of a head are summed in fp32."""
    if rows.shape[2] == num_heads:
        return rows
    wide = torch.promote_types(rows.dtype, torch.float32)
    return torch.unflatten(rows, 2, (num_heads, -1)).sum(3, dtype=wide).to(rows.dtype)


class Ulysses(SharedAttention):
    """Each rank has an equal share of the heads; key-value heads fewer than ranks are replicated.

    The gradient of a replicated head is summed in fp32, and rounded once.
    """

    def __init__(self, group: Exchanging, tokens: SharedTokens) -> None:
        self._group, self._tokens = group, tokens

    def adapted(self, call: Call, num_heads: tuple[int, ...], o_token_dim: int) -> Call:
        """`call` with whole positions, and of what is there by head this rank's share."""
        check_heads(num_heads, self._group.size)

        def shared(*qkv: torch.Tensor, **options: Any) -> torch.Tensor:
            fitting = {n: self._fitting(n, o, num_heads[0]) for n, o in options.items()}
            return call(*qkv, **fitting)

        return shared

    @torch.no_grad()
    def enter(self, tensor: torch.Tensor, token_dim: int) -> torch.Tensor:
        """[batch, heads, own tokens, dim] -> [batch, own heads, tokens, dim]; or token_dim 1."""
        rows = tensor.movedim(token_dim, 0)  # [own tokens, batch, heads, dim]
        parts = self._group.exchange(shares_of_heads(rows, self._group.size).movedim(2, 0))
        return parts.flatten(0, 1).movedim(0, token_dim)

    @torch.no_grad()
    def leave(self, tensor: torch.Tensor, token_dim: int, num_heads: int) -> torch.Tensor:
        """[batch, own heads, tokens, dim] -> [batch, heads, own tokens, dim]; or token_dim 1."""
        rows = tensor.movedim(token_dim, 0)  # [tokens, batch, own heads, dim]
        parts = self._group.exchange(torch.unflatten(rows, 0, (self._group.size, -1)))
        rows = parts.movedim(0, 2).flatten(2, 3)  # [own tokens, batch, heads, dim]
        return without_replicas(rows, num_heads).movedim(0, token_dim)

    def _fitting(self, name: str, option: Any, num_heads: int) -> Any:
        """An option of the attention call, as this rank's call over all tokens needs it."""
        if not isinstance(option, torch.Tensor) or name in _FOR_THE_LOSS:
            return option
        if name == "position_ids":
            return self._tokens.positions
        if name in _BY_HEAD and option.shape == (num_heads,):
            return self._own_heads(option, 0)
        if option.dim() < 2:
            return option
        if self._tokens.mine in option.shape[-2:] and self._tokens.total not in option.shape[-2:]:
            raise UnsupportedModel(
                f"the attention call's {name} {tuple(option.shape)} is of the "
                f"{self._tokens.mine:,} tokens of one rank, where all {self._tokens.total:,} "
                "attend to each other; make it for all of them, on every rank"
            )
        if option.dim() > 2 and option.shape[-3] == num_heads > 1:
            return self._own_heads(option, option.dim() - 3)
        return option

    def _own_heads(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        share = tensor.shape[dim] // self._group.size
        return tensor.narrow(dim, self._group.rank * share, share)
