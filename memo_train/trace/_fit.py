"""From profiling steps at four shapes (see `Shapes`) to the planner's lines and rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from memo_planner.kinds import STAGES, StagePeak, Tiling
from memo_planner.policy import TilePlace
from memo_planner.profile import BlockTimes, PeakLine
from memo_train.trace._steps import (
    AFTER_LOSS,
    BEFORE_LOSS,
    IN_LOSS,
    MeasuredStep,
    Shapes,
    TileShapes,
)

STAGES_OF_POINT = {
    "forward": ("pre", "attention", "post"),
    "loss": (BEFORE_LOSS, IN_LOSS, AFTER_LOSS, "between"),
    "backward": ("post_backward", "attention_backward", "pre_backward"),
}


# Until every tensor has a planned address, holes stay between them: 2 to 8 % of the peak on
# recorded steps. The rest is for kept tiles and for copies, whose ends nobody can foresee.
_HOLES_OF_TILES = 1.3
_HOLES_OF_PAIRS = 1.03


@dataclass(frozen=True, kw_only=True)
class Holes:
    """Factors of bytes per token, and of bytes that do not grow with the tokens."""

    of_tokens: float
    of_base: float


HOLES_OF_TENSORS = Holes(of_tokens=1.15, of_base=1.0)
HOLES_OF_PLANES = Holes(of_tokens=1.06, of_base=2.5)
"""By groups of heads: at the peak nothing is there but a few planes or whole tensors, and little
that waits for a copy. Seen are 1 to 3 % of 10,000 tokens and more. Of a few MiB it is up to 20 %:
there a work space of attention's kernel is as large as a plane, and what is fixed counts more."""


_LEAST_BYTES_OF_PAIR = 0.9
"""A tensor over all pairs of tokens has a byte for each and more. What bends less is the work
space of kernels, which changes with the length, or how tokens fell on experts."""


def fit_peak_lines(
    shapes: Shapes,
    points: Sequence[str],
    *,
    with_pairs: bool = False,
    holes: Holes = HOLES_OF_TENSORS,
) -> tuple[PeakLine, ...]:
    """A line of every stage at `points`.

    with_pairs: whether there are tensors over all pairs of tokens. Without them a peak that bends
    is one with more or fewer copies under way, and no longer sequence would fit if that counted.
    """
    stages = [(point, stage) for point in points for stage in STAGES_OF_POINT[point]]
    return tuple(_fit_line(point, stage, shapes, with_pairs, holes) for point, stage in stages)


def fit_stage_peaks(
    shapes: TileShapes, way: TilePlace, *, with_pairs: bool, stages: Sequence[str] = STAGES
) -> tuple[StagePeak, ...]:
    """What every stage takes, to the byte, with tiles and with one tile for the whole sequence."""
    found = []
    for stage in stages:
        halves = [step.peak_bytes.get(stage, 0) for step in shapes.halves]
        tokens = [step.tokens for step in shapes.halves]
        per_token2 = bytes_per_pair(tokens, halves) if with_pairs else 0.0
        base, _ = _straight(stage, shapes.halves[1:], per_token2)
        whole_base, whole = _straight(stage, shapes.wholes, per_token2)
        shares = [
            (step.peak_bytes.get(stage, 0) - base) / step.tokens - per_token2 * step.tokens
            for step in shapes.shares
        ]
        line = StagePeak(
            stage=stage,
            way=way,
            tiling=Tiling.TILES,
            base_bytes=base,
            bytes_per_token=tuple(max(share, 0.0) for share in shares),
            bytes_per_token2=per_token2,
        )
        one_tile = replace(
            line, tiling=Tiling.WHOLE, base_bytes=whole_base, bytes_per_token=(whole,)
        )
        found += [line, one_tile]
    return tuple(found)


def _straight(stage: str, steps: Sequence[MeasuredStep], per_token2: float) -> tuple[float, float]:
    """Of two steps' peaks in a stage: what is fixed, and what each token adds."""
    short, long = steps
    at_short, at_long = (
        step.peak_bytes.get(stage, 0) - per_token2 * step.tokens**2 for step in steps
    )
    per_token = max(at_long - at_short, 0) / (long.tokens - short.tokens)
    return max(at_long - per_token * long.tokens, 0.0), per_token


def _fit_line(point: str, stage: str, shapes: Shapes, with_pairs: bool, holes: Holes) -> PeakLine:
    base, per_tile, per_token, per_token2 = _coefficients(stage, shapes, with_pairs)
    return PeakLine(
        name=point,
        base_bytes=holes.of_base * base,
        bytes_per_tile_token=_HOLES_OF_TILES * per_tile,
        bytes_per_token=holes.of_tokens * per_token,
        bytes_per_token2=_HOLES_OF_PAIRS * per_token2,
    )


def _coefficients(
    stage: str, shapes: Shapes, with_pairs: bool
) -> tuple[float, float, float, float]:
    """Bytes of a stage's peak: fixed, per token of a tile, per token, per token squared."""
    half, short, long, wide = shapes.half, shapes.short, shapes.long, shapes.wide
    peaks = [step.peak_bytes.get(stage, 0) for step in (half, short, long)]
    lengths = (half.tokens, short.tokens, long.tokens)
    per_token2 = bytes_per_pair(lengths, peaks) if with_pairs else 0.0
    # Without the square first, so that a line is left.
    at_short, at_long, at_wide = (
        step.peak_bytes.get(stage, 0) - per_token2 * step.tokens**2 for step in (short, long, wide)
    )
    per_token = max(at_long - at_short, 0) / (long.tokens - short.tokens)
    per_tile = max(at_wide - at_long, 0) / (wide.tile_tokens - long.tile_tokens)
    base = at_long - per_token * long.tokens - per_tile * long.tile_tokens
    return max(base, 0.0), per_tile, per_token, per_token2


def bytes_per_pair(tokens: Sequence[int], num_bytes: Sequence[float]) -> float:
    """How bytes at three lengths, shortest first, grow with the square of the tokens."""
    steep = [(num_bytes[i + 1] - num_bytes[i]) / (tokens[i + 1] - tokens[i]) for i in range(2)]
    per_token2 = (steep[1] - steep[0]) / (tokens[2] - tokens[0])
    return per_token2 if per_token2 >= _LEAST_BYTES_OF_PAIR else 0.0


def with_input(step: MeasuredStep, bytes_per_token: float) -> MeasuredStep:
    """The step with so much more in every stage of forward."""
    more = int(bytes_per_token * step.tokens)
    forward = STAGES_OF_POINT["forward"]
    peaks = {s: n + more * (s in forward) for s, n in step.peak_bytes.items()}
    return replace(step, peak_bytes=peaks)


def with_prefetch(shapes: Shapes, bytes_per_token: float) -> Shapes:
    """The shapes with what a block fetches for the one before it during its last stage."""
    steps: dict[str, MeasuredStep] = {f.name: getattr(shapes, f.name) for f in fields(shapes)}
    for name, step in steps.items():
        peak = step.peak_bytes.get("pre_backward", 0) + int(bytes_per_token * step.tokens)
        steps[name] = replace(step, peak_bytes=step.peak_bytes | {"pre_backward": peak})
    return Shapes(**steps)


_TILED_STAGES = ("pre", "post", "post_backward", "pre_backward")
_MOST_OVERHEAD = 0.9
"""Of a step's seconds; where a busy machine made one step much slower, tokens still cost some."""
_PASSES = 3
"""Over a recomputed tile: forward, recomputation (part of post_backward), backward."""


def fit_block_times(recomputed: Shapes, swapped: Shapes) -> BlockTimes:
    """Seconds per token of pre and post, per token squared of attention, per tile of tiling.

    recomputed, swapped: steps with all tiles run that way.
    """
    short, long, wide = recomputed.short, recomputed.long, recomputed.wide
    overhead_s = _tile_overhead_s(long, wide)
    num_tiles = wide.tokens / wide.tile_tokens
    tilewise_s = _tilewise_s(wide)
    # The share of the tiles' seconds that is not the overhead of tiling.
    without = max(1.0 - _PASSES * num_tiles * overhead_s / tilewise_s, 0.0) if tilewise_s else 0.0

    def per_token(stage: str) -> float:
        return without * wide.seconds.get(stage, 0.0) / wide.tokens

    def per_token2(stage: str) -> float:
        # A difference of two lengths: what a call costs by itself drops out.
        grown_s = max(long.seconds.get(stage, 0.0) - short.seconds.get(stage, 0.0), 0.0)
        return grown_s / (long.tokens**2 - short.tokens**2)

    recompute_s_per_token = per_token("pre") + per_token("post")
    # The stage of a recomputed tile begins with its pre and post.
    post_backward = max(per_token("post_backward") - recompute_s_per_token, 0.0)
    return BlockTimes(
        pre_s_per_token=per_token("pre"),
        post_s_per_token=per_token("post"),
        attention_s_per_token2=per_token2("attention"),
        pre_backward_s_per_token=per_token("pre_backward"),
        post_backward_s_per_token=post_backward,
        attention_backward_s_per_token2=per_token2("attention_backward"),
        tile_overhead_s=overhead_s,
        swap_s_per_token=_swap_s(wide, swapped.wide) / wide.tokens,
    )


def _swap_s(recomputed: MeasuredStep, swapped: MeasuredStep) -> float:
    """What swapping every tile adds to a forward that records nothing."""
    forward_s = [sum(s.seconds.get(p, 0.0) for p in ("pre", "post")) for s in (recomputed, swapped)]
    return max(forward_s[1] - forward_s[0], 0.0)


def _tilewise_s(step: MeasuredStep) -> float:
    return sum(step.seconds.get(stage, 0.0) for stage in _TILED_STAGES)


def _tile_overhead_s(long: MeasuredStep, wide: MeasuredStep) -> float:
    """What one more tile adds to a pass: the same tokens in twice as many tiles."""
    num_tiles = wide.tokens / wide.tile_tokens
    more_s = max(_tilewise_s(long) - _tilewise_s(wide), 0.0)
    most_s = _MOST_OVERHEAD * _tilewise_s(wide)
    more_tiles = long.tokens / long.tile_tokens - num_tiles
    return min(more_s / more_tiles, most_s / num_tiles) / _PASSES
