"""Whether heads meet in a block's attention, as tokens may not outside of it.

Each key-value head alone, with the heads of q that it serves, must give what it gives among all;
and with NaN in all others, it must stay the same. So no arithmetic between heads is missed, also
behind a gate that is zero, and options that have an entry for each head were cut rightly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from memo_train.runtime._ambient import Generators
from memo_train.runtime._cut import Cut
from memo_train.runtime._head_groups import HeadCut, num_groups_of
from memo_train.runtime._probe_gradients import is_close
from memo_train.runtime._tile import tile_of


def why_heads_meet(cut: Cut, heads: HeadCut, generators: Generators) -> str | None:
    """Why the attention of a cut is not run in groups of heads; None if it may be.

    cut: with q, k and v of some tokens, as if these were all.
    """
    form, num_q_heads = cut.form, cut.tensors[0].shape[1]
    before = [generator.get_state() for generator in generators]
    with form.ambient.restored(grad=False):
        whole = cut.call(*cut.tensors, **cut.options)
    after = [generator.get_state() for generator in generators]
    if not all(map(torch.equal, before, after)):
        return "its attention draws random numbers, which would fall on other heads"
    head_dim = 3 - form.o_token_dim
    if whole.dim() != 4 or whole.shape[head_dim] != num_q_heads:
        return "its attention does not give each head's output apart"
    for group in range(heads.num_heads):
        parts = [_heads(t, group, heads.num_heads, 1) for t in cut.tensors]
        options = heads.options(cut.options, group, heads.num_heads, num_q_heads)
        with form.ambient.restored(grad=False):
            alone = cut.call(*parts, **options)
        if not is_close(alone, _heads(whole, group, heads.num_heads, head_dim)):
            return "a head alone gives another attention output than among all"
    num_groups = num_groups_of(heads.num_heads)
    for group in range(num_groups):
        with form.ambient.restored(grad=False):
            beside = cut.call(*_only(cut.tensors, group, num_groups), **cut.options)
        expected = _heads(whole, group, num_groups, head_dim)
        if not is_close(_heads(beside, group, num_groups, head_dim), expected):
            return "its heads meet in attention"
    return None


def _heads(tensor: torch.Tensor, group: int, num_groups: int, dim: int) -> torch.Tensor:
    size = tensor.shape[dim] // num_groups
    return tile_of(tensor, range(group * size, (group + 1) * size), dim)


def _only(tensors: Sequence[torch.Tensor], group: int, num_groups: int) -> list[torch.Tensor]:
    """q, k and v with NaN in the heads of all other groups."""
    kept = [torch.full_like(tensor, math.nan) for tensor in tensors]
    for place, tensor in zip(kept, tensors, strict=True):
        _heads(place, group, num_groups, 1).copy_(_heads(tensor, group, num_groups, 1))
    return kept
