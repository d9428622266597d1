"""Proves on a few tokens that a model can be shared: all but attention works on its tokens alone.

The probe of `wrap` looks at single blocks. What a model does around them, and what it makes of
positions, matters only once ranks hold parts of a sequence. So the wrapped model runs on a short
sequence, alone, and what goes into every attention call and comes out of it is recorded. Then its
parts run as on ranks, with the recorded output of attention: they must hand in the same q, k and v,
and give the same logits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from memo_train.errors import UnsupportedModel
from memo_train.parallel._ring import causal_attention, plain_causal_scale
from memo_train.runtime import Call, SharedAttention, attention_shared_by

_NUM_RANKS = 2
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 5e-2}
"""||part - whole|| / ||whole||, by dtype: products of other numbers of rows round otherwise."""

Masks = Callable[[torch.Tensor], AbstractContextManager[None]]
"""(positions of all tokens, [1, tokens]) -> a context in which the model makes masks of them."""


class _Recorded(SharedAttention):
    """Attends alone and remembers: the q, k and v of each call, and its o.

    error: of the ring's kernel against the model's own attention, if `compares` them.
    """

    def __init__(self, *, compares: bool) -> None:
        self._compares = compares
        self.error = 0.0
        self.calls: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []

    def adapted(self, call: Call, num_heads: tuple[int, ...], o_token_dim: int) -> Call:
        """`call` itself."""
        return self._compared(call, o_token_dim) if self._compares else call

    def _compared(self, call: Call, o_token_dim: int) -> Call:
        def compared(*qkv: torch.Tensor, **options: Any) -> torch.Tensor:
            o = call(*qkv, **options)
            plain = causal_attention(qkv, plain_causal_scale(options))
            self.error = max(self.error, _relative_error(plain.movedim(2, o_token_dim), o))
            return o

        return compared

    def enter(self, tensor: torch.Tensor, token_dim: int) -> torch.Tensor:
        """`tensor` itself; a call begins with its q."""
        if not self.calls or self.calls[-1][1]:
            self.calls.append(([], []))
        self.calls[-1][0].append(tensor.movedim(token_dim, 0).clone())
        return tensor

    def leave(self, tensor: torch.Tensor, token_dim: int, num_heads: int) -> torch.Tensor:
        """`tensor` itself."""
        self.calls[-1][1].append(tensor.movedim(token_dim, 0).clone())
        return tensor


class _Part(SharedAttention):
    """The tokens of `span`: attention gives what was recorded. error: the largest of q, k and v."""

    def __init__(self, recorded: _Recorded, span: slice) -> None:
        self._calls = iter(recorded.calls)
        self._span = span
        self._entered: list[torch.Tensor] = []
        self._left: list[torch.Tensor] = []
        self.error = 0.0

    def adapted(self, call: Call, num_heads: tuple[int, ...], o_token_dim: int) -> Call:
        """The recorded o, whatever it is given."""

        def recorded(q: torch.Tensor, *kv: torch.Tensor, **options: Any) -> torch.Tensor:
            return q

        return recorded

    def enter(self, tensor: torch.Tensor, token_dim: int) -> torch.Tensor:
        """`tensor` itself, compared with what was recorded."""
        if not self._entered:
            entered, self._left = next(self._calls, ([], []))
            self._entered = list(entered)
        if not self._entered:
            self.error = float("inf")
            return tensor
        mine, whole = tensor.movedim(token_dim, 0), self._entered.pop(0)[self._span]
        self.error = max(self.error, _relative_error(mine, whole))
        return tensor

    def leave(self, tensor: torch.Tensor, token_dim: int, num_heads: int) -> torch.Tensor:
        """What attention gave for these tokens."""
        return self._left[0][self._span].movedim(0, token_dim)


def prove_shared(
    forward: Callable[..., Any], ids: torch.Tensor, masks: Masks, *, by_ring: bool
) -> None:
    """See that parts of a sequence give what the whole does. Raises: UnsupportedModel.

    forward: the wrapped model's, in eval mode, not yet shared. ids: [1, tokens], an even number of
    them. by_ring: whether attention is to be the ring's, which the model's own must equal.
    """
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    recorded = _Recorded(compares=by_ring)
    with torch.no_grad(), attention_shared_by(recorded):
        whole = _logits(forward, ids, positions)
    allowed = _TOLERANCES.get(whole.dtype, _TOLERANCES[torch.bfloat16])
    if not recorded.error <= allowed:
        raise UnsupportedModel(
            f"the model's attention is not plain causal attention (off by {recorded.error:.2g}, "
            'relative), which ring attention is; use sp="ulysses", with ranks that divide the heads'
        )
    share = ids.shape[1] // _NUM_RANKS
    worst = 0.0
    for rank in range(_NUM_RANKS):
        span = slice(rank * share, (rank + 1) * share)
        part = _Part(recorded, span)
        with torch.no_grad(), attention_shared_by(part), masks(positions):
            logits = _logits(forward, ids[:, span], positions[:, span])
        worst = max(worst, part.error, _relative_error(logits, whole[:, span]))
    if not worst <= allowed:
        raise UnsupportedModel(
            f"a part of a sequence comes out otherwise than the whole (by {worst:.2g}, relative): "
            "tokens meet outside of attention, or positions are not taken from position_ids; "
            "ranks cannot share it, so wrap it without mesh"
        )


def _logits(
    forward: Callable[..., Any], ids: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    output = forward(input_ids=ids, position_ids=positions)
    logits: torch.Tensor = output[0] if isinstance(output, tuple) else output.logits
    return logits


def _relative_error(value: torch.Tensor, exact: torch.Tensor) -> float:
    """||value - exact|| / ||exact||; infinite where shapes differ."""
    if value.shape != exact.shape:
        return float("inf")
    difference = (value.double() - exact.double()).norm()
    return float(difference / exact.double().norm().clamp_min(1e-30))
