"""Ring attention: each rank keeps its queries, and keys and values go around all ranks.

Ranks hold contiguous ranges, of which the last would attend to all tokens and the first to few. So
each range is cut in halves, 2 n in all, and rank r attends for halves r and 2 n - 1 - r:
then every rank has the same work in every round. Partial results are merged by their log-sum-exp.

The module's attention function is not called: this is plain causal attention, and whatever else a
call asks for is refused. `wrap` proves that the model's own function gives the same.

Source: Ring Attention (arXiv 2310.01889); the order of halves, Striped Attention (arXiv 2311.09431)
and Megatron-Core's context parallelism.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from memo_train.errors import UnsupportedModel
from memo_train.parallel._group import SequenceGroup
from memo_train.parallel._ulysses import SharedTokens
from memo_train.runtime import Call, SharedAttention

_SCALES = ("scale", "scaling")
# What attention functions are handed, and plain causal attention has no use for.
_UNUSED = frozenset(
    {
        "position_ids",
        "enable_gqa",
        "labels",
        "shift_labels",
        "num_items_in_batch",
        "use_cache",
        "return_dict",
    }
)
_OFF = (None, False, 0, 0.0)


def plain_causal_scale(options: Mapping[str, Any]) -> float | None:
    """The scale of scores that a call of plain causal attention asks for; None is the usual one.

    Raises: UnsupportedModel if the call asks for anything else.
    """
    for name, value in options.items():
        if name in _SCALES or name in _UNUSED or (name == "is_causal" and value in (True, None)):
            continue
        if isinstance(value, torch.Tensor) or name == "is_causal" or value not in _OFF:
            raise UnsupportedModel(
                f"ring attention is plain causal attention, and this model's asks for {name}; use "
                'sp="ulysses", with ranks that divide the heads'
            )
    scales = [options[name] for name in _SCALES if options.get(name) is not None]
    return float(scales[0]) if scales else None


def causal_attention(qkv: Sequence[torch.Tensor], scale: float | None) -> torch.Tensor:
    """Plain causal attention [batch, heads, tokens, dim] by the kernel that the ring uses."""
    q, k, v = qkv
    return _attend(q, k, v, _Meeting(is_causal=True, scale=scale))[0]


class _Meeting(NamedTuple):
    """How some queries meet some keys."""

    is_causal: bool
    scale: float | None


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, meeting: _Meeting
) -> tuple[torch.Tensor, torch.Tensor]:
    """(o, log-sum-exp [batch, heads, queries] fp32)."""
    o, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, meeting.is_causal, scale=meeting.scale
    )
    return o, log_sum


class _Round(NamedTuple):
    """Which of this rank's rows meet which of the rows at hand: half-open, of its own tokens."""

    queries: slice
    keys: slice
    is_causal: bool


class Ring(SharedAttention):
    """Plain causal attention over the tokens of all ranks, for any number of heads."""

    def __init__(self, group: SequenceGroup, tokens: SharedTokens) -> None:
        self.group, self._tokens = group, tokens
        self._is_packed = bool((tokens.positions.diff(dim=-1) != 1).any())
        rank, size = group.rank, group.size
        self._own = (2 * rank, 2 * rank + 1)
        self._there = (rank, 2 * size - 1 - rank)

    def adapted(self, call: Call, num_heads: tuple[int, ...], o_token_dim: int) -> Call:
        """The ring in the place of `call`."""

        def ring(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
            scale = plain_causal_scale(options)
            if self._is_packed:
                raise UnsupportedModel(
                    "ring attention takes no packed documents (position_ids that restart); use "
                    'sp="ulysses", with ranks that divide the heads'
                )
            o: torch.Tensor = _RingAttention.apply(  # type: ignore[no-untyped-call]
                q, k, v, self, scale
            )
            return o.movedim(2, o_token_dim)

        return ring

    @torch.no_grad()
    def enter(self, tensor: torch.Tensor, token_dim: int) -> torch.Tensor:
        """The tokens of halves r and 2 n - 1 - r, from those of halves 2 r and 2 r + 1."""
        return self._moved(tensor, token_dim, (self._own, self._rank_of), (self._there, _owner_of))

    @torch.no_grad()
    def leave(self, tensor: torch.Tensor, token_dim: int, num_heads: int) -> torch.Tensor:
        """The way back."""
        return self._moved(tensor, token_dim, (self._there, _owner_of), (self._own, self._rank_of))

    def round(self, source: int) -> _Round:
        """What this rank does with the keys of rank `source`."""
        rank, everything = self.group.rank, slice(None)
        if source == rank:
            return _Round(everything, everything, is_causal=True)
        if source < rank:
            # Its first half is before both of ours, its last one behind both.
            return _Round(everything, slice(0, self._length(source)), is_causal=False)
        return _Round(slice(self._length(rank), None), everything, is_causal=False)

    def passed_on(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the rank before gives, for what goes to the rank behind."""
        rank, size = self.group.rank, self.group.size
        to, by = [0] * size, [0] * size
        to[(rank + 1) % size] = by[(rank - 1) % size] = 1
        return tuple(self.group.exchange(t[None], to, by)[0] for t in tensors)

    def _moved(
        self,
        tensor: torch.Tensor,
        token_dim: int,
        have: tuple[tuple[int, ...], Callable[[int], int]],
        want: tuple[tuple[int, ...], Callable[[int], int]],
    ) -> torch.Tensor:
        """Other halves. have, want: which, and for each half the rank it goes to or comes from."""
        halves, goes_to = have
        wanted, comes_from = want
        rows = tensor.movedim(token_dim, 0)
        pieces = dict(
            zip(halves, torch.split(rows, [self._length(c) for c in halves]), strict=True)
        )
        # As they lie in an exchange: by rank, those of one rank in their order.
        leaving = sorted(halves, key=lambda c: (goes_to(c), c))
        coming = sorted(wanted, key=lambda c: (comes_from(c), c))
        received = self.group.exchange(
            torch.cat([pieces[c] for c in leaving]),
            self._by_rank(leaving, goes_to),
            self._by_rank(coming, comes_from),
        )
        found = dict(
            zip(coming, torch.split(received, [self._length(c) for c in coming]), strict=True)
        )
        return torch.cat([found[c] for c in wanted]).movedim(0, token_dim)

    def _by_rank(self, halves: Iterable[int], rank_of: Callable[[int], int]) -> list[int]:
        """Tokens of halves that go to each rank, or come from it."""
        lengths = [0] * self.group.size
        for half in halves:
            lengths[rank_of(half)] += self._length(half)
        return lengths

    def _rank_of(self, half: int) -> int:
        """Who attends for a half."""
        return min(half, 2 * self.group.size - 1 - half)

    def _length(self, half: int) -> int:
        """Tokens of a half: the first half of a range is the longer one."""
        return (self._tokens.mine + 1 - half % 2) // 2


def _owner_of(half: int) -> int:
    """Who has a half's tokens."""
    return half // 2


class _RingAttention(torch.autograd.Function):
    """o of this rank's queries; q, k, v [batch, heads, own tokens, dim], heads of k and v fewer."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        ring: Ring,
        scale: float | None,
    ) -> torch.Tensor:
        ctx.ring, ctx.scale = ring, scale
        merged: _Merged | None = None
        keys, values = k, v
        for index, source in enumerate(_sources(ring)):
            if index:
                keys, values = ring.passed_on(keys, values)
            now = ring.round(source)
            part = (q[:, :, now.queries], keys[:, :, now.keys], values[:, :, now.keys])
            if not part[0].shape[2] or not part[1].shape[2]:
                continue
            found = _attend(*part, _Meeting(now.is_causal, scale))
            if merged is None:
                merged = _Merged(*found)
            else:
                merged.add(now.queries, *found)
        assert merged is not None  # every rank begins with its own
        o = merged.o.to(q.dtype)
        ctx.save_for_backward(q, k, v, o, merged.log_sum)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ring: Ring = ctx.ring
        q, k, v, o, log_sum = ctx.saved_tensors
        wide = torch.promote_types(q.dtype, torch.float32)
        dq, dk, dv = (torch.zeros_like(t, dtype=wide) for t in (q, k, v))
        for index, source in enumerate(_sources(ring)):
            if index:
                k, v, dk, dv = ring.passed_on(k, v, dk, dv)
            now = ring.round(source)
            mine = tuple(t[:, :, now.queries] for t in (do, q, o))
            theirs = tuple(t[:, :, now.keys] for t in (k, v))
            if not mine[0].shape[2] or not theirs[0].shape[2]:
                continue
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                mine[0],
                mine[1],
                *theirs,
                mine[2],
                log_sum[:, :, now.queries].contiguous(),
                0.0,
                now.is_causal,
                scale=ctx.scale,
            )
            dq[:, :, now.queries] += found[0]
            dk[:, :, now.keys] += found[1]
            dv[:, :, now.keys] += found[2]
        if ring.group.size > 1:
            # Home again: they are with the rank before their own.
            dk, dv = ring.passed_on(dk, dv)
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), None, None


def _sources(ring: Ring) -> list[int]:
    """Whose keys are at hand, round by round."""
    return [(ring.group.rank - index) % ring.group.size for index in range(ring.group.size)]


class _Merged:
    """o and log-sum-exp of the keys seen so far, in fp32 at least."""

    def __init__(self, o: torch.Tensor, log_sum: torch.Tensor) -> None:
        self.o = o.to(torch.promote_types(o.dtype, torch.float32))
        self.log_sum = log_sum

    def add(self, queries: slice, o: torch.Tensor, log_sum: torch.Tensor) -> None:
        """Take in what `queries` found among other keys."""
        mine, before = self.o[:, :, queries], self.log_sum[:, :, queries]
        total = torch.logaddexp(before, log_sum)
        mine.mul_((before - total).exp()[..., None])
        mine.add_(o * (log_sum - total).exp()[..., None])
        before.copy_(total)
