"""Counts the floating-point operations of a block's pre, attention and post, each way."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from memo_planner.policy import TilePlace
from memo_planner.trace.profile_file import BlockFlops
from memo_train.runtime.observe import NOWHERE
from memo_train.runtime.rng import preserved_rng
from memo_train.runtime.verdict import HowToRun
from memo_train.runtime.wrapped import WrappedModel
from memo_train.trace.flops import flops_of
from memo_train.trace.steps import Way, only_block, run_step, uniform_policy

_TILES = 4
_TILE_TOKENS = 16


class StageFlops(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """While active, adds up FLOPs by stage; also the observer that is told of stages."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: dict[str, float] = defaultdict(float)
        self._stage = "between"

    def __call__(self, stage: str, block: int = NOWHERE, tile: int = NOWHERE) -> None:
        """`stage` begins."""
        self._stage = stage

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.flops[self._stage] += flops_of(func, args, kwargs, result)
        return result


def count_block_flops(wrapped: WrappedModel, batch: int) -> BlockFlops:
    """FLOPs of one block of an installed `wrapped`, by one short step of `batch` sequences.

    FLOPs depend on shapes alone, so a short step tells all lengths: pre's and post's grow with the
    tokens, attention's with their square.
    """
    tokens = _TILES * _TILE_TOKENS
    tiled = [i for i, v in enumerate(wrapped.verdicts) if v.how is HowToRun.TILED]
    counter = StageFlops()
    policy = uniform_policy(wrapped, tokens, _TILE_TOKENS, Way(place=TilePlace.KEEP))
    preserved = preserved_rng(wrapped.device.generators)
    with preserved, only_block(wrapped, tiled[0] if tiled else 0), counter:
        run_step(wrapped, counter, batch, policy)
    flops = counter.flops
    return BlockFlops(
        pre_flops_per_token=flops["pre"] / tokens,
        post_flops_per_token=flops["post"] / tokens,
        attention_flops_per_token2=flops["attention"] / tokens**2,
        pre_backward_flops_per_token=flops["pre_backward"] / tokens,
        post_backward_flops_per_token=flops["post_backward"] / tokens,
        attention_backward_flops_per_token2=flops["attention_backward"] / tokens**2,
    )
