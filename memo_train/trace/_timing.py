"""Seconds of a block on a device that runs behind the thread that asks it.

There a short tile takes as long as it takes to ask for its operations, whatever its tokens cost: so
tiles grow until time grows with them. Steps are watched by events in the device's own queue, which
make nothing wait; x and o stay on the device, so that no copy is waited for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from memo_planner.policy import Place, TilePlace
from memo_planner.profile import BlockTimes
from memo_planner.schedule import CopyBudget
from memo_train.device import Device
from memo_train.errors import UnsupportedModel
from memo_train.runtime import NOWHERE, StepPolicy, WrappedModel
from memo_train.trace._steps import Way, profiled_policy, run_step

LONGEST_TIMED_TOKENS = 65536
"""No timed step is longer: attention of so many tokens has long been at its full speed."""

LONGEST_SWAPPED_TOKENS = 16384
"""Of the step that shows what swapping adds to the work of compute: it pins all that it swaps."""

_NUM_TILES = 4
"""Of a timed step: several, so that the host runs ahead in all but the first."""
_REPEATS = 3
_LONG_S = 0.5
"""Repeats that took so long together are enough: what disturbs a step is short beside them."""
_ENOUGH_S = 2.0
"""Where steps have come to take so long, tiles grow no more."""
_CONVERGED = 0.95
"""Twice the tile takes less than a twentieth off a token: the rest is the tokens' own work."""
_PASSES = 3
"""Over a recomputed tile: forward, recomputation (part of post_backward), backward."""
_WAITS = 1.25
"""So many times longer than its work is a tile that waits to be asked for."""
_TILED_STAGES = ("pre", "post", "post_backward", "pre_backward")
_REFUSED = (torch.OutOfMemoryError, UnsupportedModel)


@dataclass(frozen=True, kw_only=True)
class TimedStep:
    """Least seconds of each stage of a step of `tokens` in tiles of `tile_tokens`."""

    tokens: int
    tile_tokens: int
    seconds: dict[str, float]

    @property
    def tile_s(self) -> float:
        """Seconds of one pass over one recomputed tile."""
        tilewise_s = sum(self.seconds.get(stage, 0.0) for stage in _TILED_STAGES)
        return tilewise_s * self.tile_tokens / self.tokens / _PASSES

    @property
    def attention_s(self) -> float:
        """Seconds of attention, both ways."""
        return self.seconds.get("attention", 0.0) + self.seconds.get("attention_backward", 0.0)


class StageClock:
    """An observer (see `runtime.observe`) that notes when each stage begins, and waits for nothing.

    On a GPU by events in its queue, elsewhere by the device's clock without its stalls.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._on_gpu = device.torch_device.type == "cuda"
        self._stages, self._marks = ["between"], [self._mark()]

    def __call__(self, stage: str, block: int = NOWHERE, tile: int = NOWHERE) -> None:
        """`stage` begins."""
        if stage != self._stages[-1]:
            self._stages.append(stage)
            self._marks.append(self._mark())

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, summed, once the device has come to the end of them."""
        marks = [*self._marks, self._mark()]
        if self._on_gpu:
            marks[-1].synchronize()
        found: dict[str, float] = defaultdict(float)
        for stage, begin, end in zip(self._stages, marks, marks[1:], strict=False):
            found[stage] += begin.elapsed_time(end) / 1e3 if self._on_gpu else end - begin
        return dict(found)

    def _mark(self) -> Any:
        if not self._on_gpu:
            return self._device.now() - self._device.counters().stall_s
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device.torch_device))
        return event


def measure_times(
    wrapped: WrappedModel, batch: int, tile: int, longest: int, *, padded: bool = False
) -> BlockTimes:
    """The seconds of the active block, from tiles of `tile` tokens and larger ones.

    No step is longer than `longest` tokens, or four tiles of `tile` where that is more.
    Raises: torch.OutOfMemoryError, UnsupportedModel if not even the smallest step runs.
    """
    way = Way(place=TilePlace.RECOMPUTE, padded=padded)
    steps = [_timed(wrapped, batch, tile, way)]
    while _grows(steps) and 2 * steps[-1].tokens <= longest:
        try:
            steps.append(_timed(wrapped, batch, 2 * steps[-1].tile_tokens, way))
        except _REFUSED:
            break  # what memory or model cannot hold: the steps so far must do
    swap_s = _swap_s_per_token(wrapped, batch, steps, padded=padded)
    return replace(fit_times(steps), swap_s_per_token=swap_s)


def _grows(steps: Sequence[TimedStep]) -> bool:
    """Whether a longer step may show a higher speed than the last one."""
    if sum(steps[-1].seconds.values()) > _ENOUGH_S:
        return False
    if len(steps) < 2:
        return True
    before, last = steps[-2:]
    tokens = 2 * _CONVERGED * before.tile_s > last.tile_s
    pairs = 4 * _CONVERGED * before.attention_s > last.attention_s
    return tokens or pairs


def _timed(wrapped: WrappedModel, batch: int, tile: int, way: Way) -> TimedStep:
    """The best of three steps of four tiles, or of fewer where they are long."""
    tokens, seconds, spent_s = _NUM_TILES * tile, dict[str, float](), 0.0
    policy = _without_waiting(profiled_policy(wrapped, tokens, tile, way))
    for repeat in range(_REPEATS):
        # The first loads kernels: it never stands alone.
        if repeat > 1 and spent_s > _LONG_S:
            break
        clock = StageClock(wrapped.device)
        run_step(wrapped, clock, batch, policy, padded=way.padded)
        found = clock.seconds()
        spent_s += sum(found.values())
        for stage, value in found.items():
            seconds[stage] = min(value, seconds.get(stage, value))
    return TimedStep(tokens=tokens, tile_tokens=tile, seconds=seconds)


def _without_waiting(step: StepPolicy) -> StepPolicy:
    """The same tiles, with x and o kept and all copies let run behind."""
    blocks = tuple(replace(block, x=Place.KEEP, o=Place.KEEP) for block in step.policy.blocks)
    nbytes = torch.iinfo(torch.int64).max // 4
    copies = CopyBudget.same(len(blocks), in_flight_bytes=nbytes, ahead_bytes=0)
    return replace(step, policy=replace(step.policy, blocks=blocks), copies=copies)


def _swap_s_per_token(
    wrapped: WrappedModel, batch: int, steps: Sequence[TimedStep], *, padded: bool
) -> float:
    """What swapping adds to forward, of the longest step that memory holds swapped."""
    way = Way(place=TilePlace.SWAP, padded=padded)
    short = [step for step in steps[1:] if step.tokens <= LONGEST_SWAPPED_TOKENS]
    for step in reversed([steps[0], *short]):
        try:
            swapped = _timed(wrapped, batch, step.tile_tokens, way)
        except _REFUSED:
            continue
        more_s = sum(
            swapped.seconds.get(s, 0.0) - step.seconds.get(s, 0.0) for s in ("pre", "post")
        )
        return max(more_s, 0.0) / step.tokens
    return 0.0


def fit_times(steps: Sequence[TimedStep]) -> BlockTimes:
    """The rates of steps in growing tiles, the smallest first; swap_s_per_token is 0.

    A token's work is read off the largest tile, a tile's overhead off the last three, and what the
    smallest took beyond both is the time in which it was asked for.
    """
    first, last = steps[0], steps[-1]
    overhead_s = _overhead_s(steps[-3:])
    work_s = max(last.tile_s - overhead_s, 0.0) / last.tile_tokens
    issued_s = overhead_s + work_s * first.tile_tokens
    share = work_s * last.tile_tokens / last.tile_s if last.tile_s else 0.0

    def per_token(stage: str) -> float:
        return share * last.seconds.get(stage, 0.0) / last.tokens

    def per_token2(stage: str) -> float:
        before = steps[-2] if len(steps) > 1 else None
        grown_s = last.seconds.get(stage, 0.0)
        if before is None:
            return grown_s / last.tokens**2
        grown_s = max(grown_s - before.seconds.get(stage, 0.0), 0.0)
        return grown_s / (last.tokens**2 - before.tokens**2)

    again_s = per_token("pre") + per_token("post")
    return BlockTimes(
        pre_s_per_token=per_token("pre"),
        post_s_per_token=per_token("post"),
        attention_s_per_token2=per_token2("attention"),
        pre_backward_s_per_token=per_token("pre_backward"),
        post_backward_s_per_token=max(per_token("post_backward") - again_s, 0.0),
        attention_backward_s_per_token2=per_token2("attention_backward"),
        tile_overhead_s=overhead_s,
        tile_issue_s=first.tile_s if first.tile_s > _WAITS * issued_s else 0.0,
    )


def _overhead_s(steps: Sequence[TimedStep]) -> float:
    """What a tile takes at no tokens, by a line through the last tile sizes.

    Errors are shares of a tile's seconds, so each size weighs as its seconds' inverse square.
    A line that ends below 0 or above the smallest tile is noise.
    """
    weights = [1.0 / max(step.tile_s, 1e-12) ** 2 for step in steps]
    total = sum(weights)
    sizes = [float(step.tile_tokens) for step in steps]
    mean = sum(w * t for w, t in zip(weights, sizes, strict=True)) / total
    mean_s = sum(w * step.tile_s for w, step in zip(weights, steps, strict=True)) / total
    spread = sum(w * (t - mean) ** 2 for w, t in zip(weights, sizes, strict=True))
    if not spread:
        return 0.0
    together = sum(
        w * (t - mean) * (step.tile_s - mean_s)
        for w, t, step in zip(weights, sizes, steps, strict=True)
    )
    return min(max(mean_s - together / spread * mean, 0.0), steps[0].tile_s)
