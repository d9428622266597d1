"""From profiling steps at three shapes to the planner's lines and rates.

The shapes are (8 t tokens, tile t), (16 t, t) and (16 t, 2 t): two differ in tokens only, two in
tile size only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memo_planner.profile import BlockTimes, PeakLine
from memo_train.trace._steps import MeasuredStep

STAGES_OF_POINT = {
    "forward": ("pre", "attention", "post"),
    "loss": ("loss", "between"),
    "backward": ("post_backward", "attention_backward", "pre_backward"),
}


# Until every tensor has a planned address, holes stay between them: 2 to 8 % of the peak on
# recorded steps. The rest is for kept tiles and for copies, whose ends nobody can foresee.
_HOLES_OF_TILES = 1.3
_HOLES_OF_TENSORS = 1.15


Shapes = tuple[MeasuredStep, MeasuredStep, MeasuredStep]


def fit_peak_lines(shapes: Shapes, points: Sequence[str]) -> tuple[PeakLine, ...]:
    """A line for every stage at `points`: base + per tile token * tile + per token * tokens."""
    stages = [(point, stage) for point in points for stage in STAGES_OF_POINT[point]]
    return tuple(_fit_line(point, stage, shapes) for point, stage in stages)


def _fit_line(point: str, stage: str, shapes: Shapes) -> PeakLine:
    short, long, wide = shapes
    at_short, at_long, at_wide = (step.peak_bytes.get(stage, 0) for step in shapes)
    per_token = max(at_long - at_short, 0) / (long.tokens - short.tokens)
    per_tile = max(at_wide - at_long, 0) / (wide.tile_tokens - long.tile_tokens)
    base = at_long - per_token * long.tokens - per_tile * long.tile_tokens
    return PeakLine(
        name=point,
        base_bytes=max(base, 0.0),
        bytes_per_tile_token=_HOLES_OF_TILES * per_tile,
        bytes_per_token=_HOLES_OF_TENSORS * per_token,
    )


def with_prefetch(shapes: Shapes, bytes_per_token: float) -> Shapes:
    """The shapes with what a block fetches for the one before it during its last stage."""
    return tuple(  # type: ignore[return-value]
        replace(
            step,
            peak_bytes=step.peak_bytes
            | {
                "pre_backward": step.peak_bytes.get("pre_backward", 0)
                + int(bytes_per_token * step.tokens)
            },
        )
        for step in shapes
    )


_TILED_STAGES = ("pre", "post", "post_backward", "pre_backward")
_PASSES = 3
"""Over a recomputed tile: forward, recomputation (part of post_backward), backward."""


def fit_block_times(recomputed: Shapes, swapped: Shapes) -> BlockTimes:
    """Seconds per token of pre and post, per token squared of attention, per tile of tiling.

    recomputed, swapped: steps of the three shapes with all tiles run that way.
    """
    short, long, wide = recomputed
    overhead_s = _tile_overhead_s(long, wide)
    num_tiles = wide.tokens / wide.tile_tokens
    tilewise_s = _tilewise_s(wide)
    without = max(1.0 - _PASSES * num_tiles * overhead_s / tilewise_s, 0.0) if tilewise_s else 0.0

    def per_token(stage: str) -> float:
        return without * wide.seconds.get(stage, 0.0) / wide.tokens

    def per_token2(stage: str) -> float:
        grown_s = max(long.seconds.get(stage, 0.0) - short.seconds.get(stage, 0.0), 0.0)
        return grown_s / (long.tokens**2 - short.tokens**2)

    recompute_s_per_token = per_token("pre") + per_token("post")
    post_backward = max(per_token("post_backward") - recompute_s_per_token, 0.0)
    return BlockTimes(
        pre_s_per_token=per_token("pre"),
        post_s_per_token=per_token("post"),
        attention_s_per_token2=per_token2("attention"),
        pre_backward_s_per_token=per_token("pre_backward"),
        post_backward_s_per_token=post_backward,
        attention_backward_s_per_token2=per_token2("attention_backward"),
        tile_overhead_s=overhead_s,
        swap_s_per_token=_swap_s(wide, swapped[2]) / wide.tokens,
    )


def _swap_s(recomputed: MeasuredStep, swapped: MeasuredStep) -> float:
    """What swapping every tile adds to a forward that records nothing."""
    forward_s = [sum(s.seconds.get(p, 0.0) for p in ("pre", "post")) for s in (recomputed, swapped)]
    return max(forward_s[1] - forward_s[0], 0.0)


def _tilewise_s(step: MeasuredStep) -> float:
    return sum(step.seconds.get(stage, 0.0) for stage in _TILED_STAGES)


def _tile_overhead_s(long: MeasuredStep, wide: MeasuredStep) -> float:
    """What one more tile adds to a pass: the same tokens in twice as many tiles."""
    more_tiles = long.tokens / long.tile_tokens - wide.tokens / wide.tile_tokens
    return max(_tilewise_s(long) - _tilewise_s(wide), 0.0) / more_tiles / _PASSES
