"""Ring attention: each rank keeps its queries, and keys and values go around all ranks.

Ranks hold contiguous ranges, of which the last would attend to all tokens and the first to few. So
each range is cut in halves, 2 n in all, and rank r attends for halves r and 2 n - 1 - r:
then every rank has the same work in every round. Partial results are merged by their log-sum-exp.

Where more ranks share a sequence than have heads for Ulysses, both meet: ranks that follow each
other exchange tokens for heads and are one place of the ring, which goes round among ranks that
have the same heads. Tokens cross once for both.

The module's attention function is not called: this is plain causal attention, and whatever else a
call asks for is refused. `wrap` proves that the model's own function gives the same.

Source: Ring Attention (arXiv 2310.01889); the order of halves, Striped Attention (arXiv 2311.09431)
and Megatron-Core's context parallelism; both ways together, USP (arXiv 2405.07719).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from memo_train.errors import UnsupportedModel
from memo_train.parallel._group import SequenceGroup, Some
from memo_train.parallel._ulysses import (
    SharedTokens,
    check_heads,
    shares_of_heads,
    without_replicas,
)
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
_NUM_BLOCKS = 8
"""Of queries, and of keys: gradients of one of each are there beside the sums. At every length, so
that a short profile tells the bytes of a long step."""


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
    return _attend(q, k, v, meeting=_Meeting(is_causal=True, scale=scale))[0]


class _Meeting(NamedTuple):
    """How some queries meet some keys."""

    is_causal: bool
    scale: float | None


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, meeting: _Meeting
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
    """Plain causal attention over the tokens of all ranks, for any number of heads.

    inside: how many ranks that follow each other exchange tokens for heads; 1 is a ring alone.
    """

    def __init__(self, group: SequenceGroup, tokens: SharedTokens, inside: int = 1) -> None:
        self._group, self._tokens, self._inside = group, tokens, inside
        self._is_packed = bool((tokens.positions.diff(dim=-1) != 1).any())
        own = range(group.size)
        self.ring = Some(group, own[group.rank % inside :: inside])
        # Tokens to each rank, and from each, when this rank's tokens go to who attends for them.
        mine, place = group.rank, self.ring.rank
        self._to = [_length(self._pieces(mine, rank // inside)) for rank in own]
        self._by = [_length(self._pieces(rank, place)) for rank in own]

    def adapted(self, call: Call, num_heads: tuple[int, ...], o_token_dim: int) -> Call:
        """The ring in the place of `call`."""
        if self._inside > 1:
            check_heads(num_heads, self._inside)

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
        """The tokens of halves r and 2 n - 1 - r, in their order, of this rank's share of heads."""
        shares = shares_of_heads(tensor.movedim(token_dim, 0), self._inside)
        leaving = torch.cat([shares[piece, :, share] for piece, share in self._leaving()])
        del tensor, shares
        return self._group.exchange(leaving, self._to, self._by).movedim(0, token_dim)

    @torch.no_grad()
    def leave(self, tensor: torch.Tensor, token_dim: int, num_heads: int) -> torch.Tensor:
        """The way back."""
        coming = self._group.exchange(tensor.movedim(token_dim, 0), self._by, self._to)
        del tensor
        batch, heads, dim = coming.shape[1:]
        whole = coming.new_empty(self._tokens.mine, batch, self._inside, heads, dim)
        places = list(self._leaving())
        parts = torch.split(coming, [_length((piece,)) for piece, _ in places])
        for (piece, share), part in zip(places, parts, strict=True):
            whole[piece, :, share] = part
        return without_replicas(whole.flatten(2, 3), num_heads).movedim(0, token_dim)

    def sources(self) -> list[int]:
        """Whose keys are at hand, round by round: at first a place's own."""
        return [(self.ring.rank - index) % self.ring.size for index in range(self.ring.size)]

    def round(self, source: int) -> _Round:
        """What this rank does with the keys of rank `source`."""
        rank, everything = self.ring.rank, slice(None)
        if source == rank:
            return _Round(everything, everything, is_causal=True)
        if source < rank:
            # Its first half is before both of ours, its last one behind both.
            return _Round(everything, slice(0, self._length(source)), is_causal=False)
        return _Round(slice(self._length(rank), None), everything, is_causal=False)

    def passed_on(self, given: list[torch.Tensor], *, ends: bool = False) -> list[torch.Tensor]:
        """What the place before gives, for what goes to the place behind; `given` is emptied.

        ends: whether nobody reads what is given any more, though autograd still names it; its
        memory is then let go of.
        """
        rank, size = self.ring.rank, self.ring.size
        to, by = [0] * size, [0] * size
        to[(rank + 1) % size] = by[(rank - 1) % size] = 1
        received = []
        while given:  # one by one: what has been handed on is let go of
            own = given.pop(0)
            sent = [own[None].contiguous()]
            memory = own.untyped_storage() if ends else None
            is_copy = sent[0].data_ptr() != own.data_ptr()
            del own
            if memory is not None and is_copy:
                memory.resize_(0)
            received.append(self.ring.exchange(sent.pop(), to, by)[0])
            if memory is not None:
                memory.resize_(0)
        return received

    def _leaving(self) -> Iterator[tuple[slice, int]]:
        """As an exchange has them, by rank: which of this rank's tokens, and which share of heads.

        Ranks' tokens follow each other, so what comes from all of them is in its order.
        """
        for place in range(self.ring.size):
            pieces = self._pieces(self._group.rank, place)
            yield from ((piece, share) for share in range(self._inside) for piece in pieces)

    def _pieces(self, rank: int, place: int) -> tuple[slice, ...]:
        """Of the own tokens of `rank`, those for which a place of the ring attends."""
        index, share = divmod(rank, self._inside)
        mine = self._tokens.mine
        border = min(max(self._length(2 * index) - share * mine, 0), mine)
        halves = ((2 * index, slice(0, border)), (2 * index + 1, slice(border, mine)))
        return tuple(piece for half, piece in halves if self._place_of(half) == place)

    def _place_of(self, half: int) -> int:
        """Who attends for a half."""
        return min(half, 2 * self.ring.size - 1 - half)

    def _length(self, half: int) -> int:
        """Tokens of a half: the first half of a range is the longer one."""
        return (self._tokens.mine * self._inside + 1 - half % 2) // 2


def _length(pieces: Sequence[slice]) -> int:
    return sum(piece.stop - piece.start for piece in pieces)


class _Asked(NamedTuple):
    """What the queries of a rank bring to backward."""

    do: torch.Tensor
    q: torch.Tensor
    o: torch.Tensor
    log_sum: torch.Tensor
    scale: float | None

    def gradients(
        self, at_hand: Sequence[torch.Tensor], now: _Round
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(dq, dk, dv) of the queries and keys that meet now."""
        do, q, o, log_sum = (t[:, :, now.queries] for t in self[:4])
        k, v = (t[:, :, now.keys] for t in at_hand)
        found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                do, q, k, v, o, log_sum.contiguous(), 0.0, now.is_causal, scale=self.scale
            )
        )
        return found

    def add(self, sums: list[torch.Tensor], at_hand: Sequence[torch.Tensor], now: _Round) -> None:
        """Add those gradients to the sums of all queries, and of all keys at hand.

        Block by block, so that little lies beside the sums. All queries must meet all keys.
        """
        assert not now.is_causal
        for queries in _blocks(now.queries, self.q.shape[2]):
            for keys in _blocks(now.keys, at_hand[0].shape[2]):
                found = self.gradients(at_hand, _Round(queries, keys, is_causal=False))
                sums[0][:, :, queries] += found[0]
                sums[1][:, :, keys] += found[1]
                sums[2][:, :, keys] += found[2]
                del found


def _blocks(rows: slice, num_rows: int) -> Iterator[slice]:
    """Equal parts of some rows, the last one shorter."""
    here = range(num_rows)[rows]
    length = max(1, -(-len(here) // _NUM_BLOCKS))
    return (slice(at, min(at + length, here.stop)) for at in range(here.start, here.stop, length))


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
        at_hand = [k, v]
        for index, source in enumerate(ring.sources()):
            if index:
                at_hand = ring.passed_on(at_hand)
            now = ring.round(source)
            mine, theirs = q[:, :, now.queries], [t[:, :, now.keys] for t in at_hand]
            if not mine.shape[2] or not theirs[0].shape[2]:
                continue
            found = _attend(mine, *theirs, meeting=_Meeting(now.is_causal, scale))
            del theirs  # else they live beside the keys that come next
            if merged is None:
                merged = _Merged(*found)
            else:
                merged.add(now.queries, *found)
            del found
        assert merged is not None  # every rank begins with its own
        o = merged.o.to(q.dtype)
        ctx.save_for_backward(q, k, v, o, merged.log_sum)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ring: Ring = ctx.ring
        q, k, v, o, log_sum = ctx.saved_tensors
        asked = _Asked(do=do, q=q, o=o, log_sum=log_sum, scale=ctx.scale)
        dtypes = (q.dtype, k.dtype, v.dtype)
        at_hand: list[torch.Tensor] = [k, v]
        sums: list[torch.Tensor] = []
        for index, source in enumerate(ring.sources()):
            if index:
                # This rank's own keys were entered for this backward alone.
                at_hand = ring.passed_on(at_hand, ends=index == 1)
                sums = [sums.pop(0), *ring.passed_on(sums)]
            now = ring.round(source)
            if sums:
                asked.add(sums, at_hand, now)
            else:
                # A place begins with its own keys, which all of its queries meet.
                wide = torch.promote_types(dtypes[0], torch.float32)
                sums = [t.to(wide) for t in asked.gradients(at_hand, now)]
        del at_hand
        if ring.ring.size > 1:
            # Home again: they are with the place before their own.
            sums = [sums.pop(0), *ring.passed_on(sums)]
        return *(d.to(dtype) for d, dtype in zip(sums, dtypes, strict=True)), None, None


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
