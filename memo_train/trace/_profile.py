"""The profile of a wrapped model on its device, for the planner, and its file.

The file adds FLOPs and the link under load. Source: MEMO §profiler.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial

from torch import nn

from memo_planner.kinds import SHARED, BlockKind, SavedPerToken
from memo_planner.policy import TilePlace
from memo_planner.profile import POINTS, BlockTimes, Exchange, PeakLine, Profile
from memo_planner.trace import ProfileFile, ProfileSource
from memo_train.device.errors import HostMemoryExceeded
from memo_train.runtime import HowToRun, SavedBytes, WrappedModel, kept_model, preserved_rng
from memo_train.trace._fit import (
    HOLES_OF_PLANES,
    HOLES_OF_TENSORS,
    bytes_per_pair,
    fit_block_times,
    fit_peak_lines,
    fit_stage_peaks,
    with_input,
    with_prefetch,
)
from memo_train.trace._flops import count_block_flops
from memo_train.trace._link import measure_link, measure_link_rates
from memo_train.trace._steps import (
    PARTS_OF_LOSS,
    REPEATS,
    MeasuredStep,
    Shapes,
    TileShapes,
    Way,
    measure_saved,
    measure_shapes,
    measure_step,
    measure_tile_shapes,
    only_block,
)
from memo_train.trace._timing import (
    LONGEST_SWAPPED_TOKENS,
    LONGEST_TIMED_TOKENS,
    measure_times,
)

OPTIMIZER_STATES = 2
"""AdamW's moments, each as large as the parameters it trains."""

_TILE_TOKENS = 128
"""Eight tiles of it: long enough that attention kernels use their largest work space, which
changes at a few hundred tokens and would otherwise look like bytes per token."""

_SHORT_TILE_TOKENS = 32
"""Of runs that are compared with plain ones as short: what both take drops out."""

LONGEST_PROFILED_TOKENS = 16 * _TILE_TOKENS
"""No profiling step is longer."""


@dataclass(frozen=True, kw_only=True)
class PlainSteps:
    """What other kinds of steps are compared with: steps without a mask that park nothing.

    profile: from long runs. steps: short ones, by block, way and shape; made as they are needed.
    """

    profile: Profile
    steps: dict[Hashable, MeasuredStep] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much of a profile is measured.

    repeats: of each run that is timed. timed_tokens: what no step is longer than that finds seconds
    on a device that runs behind; None: no longer than other runs. plain: with it runs are short,
    but by groups of heads; they say what differs from plain steps, and seconds are theirs. times:
    what is known already.
    """

    repeats: int = REPEATS
    timed_tokens: int | None = None
    plain: PlainSteps | None = None
    times: BlockTimes | None = None

    @property
    def known_times(self) -> BlockTimes | None:
        """Seconds that are not measured again."""
        return self.times if self.plain is None else self.plain.profile.times


_ALL = Effort()
PLAIN_WAY = Way(place=TilePlace.KEEP)
"""Of steps without a mask that park nothing and run attention whole."""


def measure_profile(
    wrapped: WrappedModel,
    batch: int,
    tokens: int,
    way: Way = PLAIN_WAY,
    *,
    effort: Effort = _ALL,
) -> Profile:
    """Profile the blocks of an installed `wrapped` for steps of `batch` sequences of `tokens`.

    way: how steps run, of which the tiles' place does not count.
    No run is longer than 2,048 tokens or than `tokens`. Bytes are exact,
    seconds the best of the repeats. One block of each kind is run: of bytes the highest count,
    of seconds the mean. The model's buffers and random numbers are left as they were.
    """
    causal_lm = wrapped.parts.causal_lm
    kinds = kinds_of(wrapped)
    tiled = [kind for kind in kinds if kind.is_tiled]
    # By groups of heads a step differs from a plain one in nearly all that it holds.
    is_long = effort.plain is None or way.num_groups > 1
    ask = _Ask(
        batch=batch,
        tile=_tile_tokens(tokens, _TILE_TOKENS if is_long else _SHORT_TILE_TOKENS),
        as_asked=way,
        effort=effort,
        timed_tokens=min(effort.timed_tokens or tokens, LONGEST_TIMED_TOKENS),
        runs_behind=wrapped.device.runs_behind,
    )
    kept = kept_model(causal_lm, wrapped.parts.blocks)
    with preserved_rng(wrapped.device.generators), kept:
        by_index = {k.index: _measure_kind(wrapped, k, ask) for k in tiled or kinds}
        others = {
            k.index: _measure_whole(wrapped, k, ask) for k in kinds if k.index not in by_index
        }
    found = list(by_index.values())
    peaks = [line for lines, _ in others.values() for line in lines]
    blocks = {index: each.kind for index, each in by_index.items()}
    blocks |= {index: kind for index, (_, kind) in others.items()}
    most = {name: max(each.saved[name] for each in found) for name in found[0].saved}
    return Profile(
        model=type(causal_lm).__name__,
        model_hash=model_hash(causal_lm),
        device=wrapped.device.torch_device.type,
        batch=batch,
        num_blocks=len(wrapped.parts.blocks),
        state_bytes=state_bytes(causal_lm),
        # Kinds that need the same have one line.
        peaks=tuple(dict.fromkeys([*(line for each in found for line in each.peaks), *peaks])),
        times=effort.known_times or _mean_times(found),
        link=measure_link(wrapped.device),
        gradient_bytes=gradient_bytes(causal_lm),
        num_groups=way.num_groups,
        kinds=tuple(blocks[kind.index] for kind in kinds),
        kind_of_block=_kind_of_block(wrapped),
        exchange=_mean_exchange(found),
        **most,
    )


def for_two_sequences(wrapped: WrappedModel, one: Profile, tokens: int) -> Profile:
    """The profile of two sequences from that of one, with saved bytes counted anew.

    tokens: as in `measure_profile`. Of more sequences each is as each of two.
    """
    tile, two = _tile_tokens(tokens, _SHORT_TILE_TOKENS), one.for_batch(2)
    saved = {name: getattr(two, name) for name in _SAVED}
    kept = kept_model(wrapped.parts.causal_lm, wrapped.parts.blocks)
    with preserved_rng(wrapped.device.generators), kept:
        found = [
            _saved_by_two(wrapped, kind, 4 * tile, one.num_groups) for kind in kinds_of(wrapped)
        ]
    # Of attention a part may grow with the square of the tokens: it makes no copies for tiles.
    counted = [{n: v for n, v in each.items() if "attention" not in n} for each in found]
    kinds = tuple(
        replace(kind, tiles=_at_least(kind.tiles, each), whole=_at_least(kind.whole, each))
        for kind, each in zip(two.kinds, counted, strict=True)
    )
    for name in set(counted[0]) - {SHARED}:
        saved[name] = max(saved[name], *(each[name] for each in counted))
    return replace(two, kinds=kinds, **saved)


def _at_least(saved: SavedPerToken, least: dict[str, float]) -> SavedPerToken:
    """With the higher figures of both, and so the lower one of what need not be held twice."""
    figures = saved.figures
    higher = {name: max(n, figures[name]) for name, n in least.items()}
    return replace(saved, **higher | {SHARED: min(least[SHARED], figures[SHARED])})


def _tile_tokens(tokens: int, most: int) -> int:
    """A sixteenth of the longest run, which is never beyond `tokens`."""
    return min(most, max(tokens // 16, 1))


def _saved_by_two(
    wrapped: WrappedModel, kind: Kind, tokens: int, num_groups: int
) -> dict[str, float]:
    with only_block(wrapped, kind.index):
        way = replace(PLAIN_WAY, num_groups=num_groups)
        saved = asdict(measure_saved(wrapped, 2, tokens, way))
    return {f"{name}_bytes_per_token": value / tokens for name, value in saved.items()}


_SAVED = tuple(name for f in fields(SavedBytes) if (name := f"{f.name}_bytes_per_token") != SHARED)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Blocks that ask for the same memory: one of them, and how many there are.

    number: among the kinds.
    """

    number: int
    index: int
    num_blocks: int
    is_tiled: bool


def kinds_of(wrapped: WrappedModel) -> tuple[Kind, ...]:
    """The kinds of blocks of `wrapped`, in the order of the first of each.

    Blocks are of one kind that have equal modules, with parameters of the same shapes and dtypes,
    trained alike, and the same settings. Numbers do not count as settings: a block's index is one.
    """
    rows = _kind_rows(wrapped)
    return tuple(
        Kind(number=number, index=rows.index(row), num_blocks=count, is_tiled=row[1])
        for number, (row, count) in enumerate(Counter(rows).items())
    )


def _kind_rows(wrapped: WrappedModel) -> list[tuple[Hashable, bool]]:
    return [
        (_kind_key(block), verdict.how is HowToRun.TILED)
        for block, verdict in zip(wrapped.parts.blocks, wrapped.verdicts, strict=True)
    ]


def _kind_of_block(wrapped: WrappedModel) -> tuple[int, ...]:
    """Of each block the number of its kind among `kinds_of`."""
    rows = _kind_rows(wrapped)
    numbers = {row: number for number, row in enumerate(dict.fromkeys(rows))}
    return tuple(numbers[row] for row in rows)


def _kind_key(block: nn.Module) -> Hashable:
    modules = [(name, type(m).__qualname__, _settings(m)) for name, m in block.named_modules()]
    parameters = [(n, p.shape, p.dtype, p.requires_grad) for n, p in block.named_parameters()]
    return tuple(modules), tuple(parameters)


def _settings(module: nn.Module) -> Hashable:
    """Texts and switches of a module; of a number only that it is there, as `sliding_window`."""
    return tuple(
        (name, value if isinstance(value, str | bool) else type(value).__name__)
        for name, value in sorted(vars(module).items())
        if isinstance(value, str | bool | int | float | None) and not name.startswith("_")
    )


@dataclass(frozen=True, kw_only=True)
class _Ask:
    batch: int
    tile: int
    as_asked: Way
    effort: Effort
    timed_tokens: int
    runs_behind: bool

    @property
    def repeats(self) -> int:
        """Of steps whose seconds are used: a device that runs behind has longer ones for that."""
        used = self.effort.known_times is None and not self.runs_behind
        return self.effort.repeats if used else 1

    @property
    def places(self) -> tuple[TilePlace, ...]:
        """Ways of tiles to be measured: by groups of heads plans have but one."""
        if self.as_asked.num_groups > 1 and self.effort.known_times is not None:
            return (TilePlace.RECOMPUTE,)
        return tuple(TilePlace)

    def way(self, place: TilePlace) -> Way:
        return replace(self.as_asked, place=place)


@dataclass(frozen=True, kw_only=True)
class _KindProfile:
    """What was measured of one kind. saved: by the names of the profile's fields."""

    kind: BlockKind
    saved: dict[str, float]
    peaks: tuple[PeakLine, ...]
    times: BlockTimes | None
    num_blocks: int
    exchange: Exchange | None


def _measure_kind(wrapped: WrappedModel, kind: Kind, ask: _Ask) -> _KindProfile:
    with only_block(wrapped, kind.index):
        whole = _saved_fields(wrapped, ask)
        tiles = _saved_by_tiles(wrapped, ask, whole)
        saved = {n: max(value, tiles[n]) for n, value in whole.items() if n != SHARED}
        # Attention that makes such tensors saves some: scores, and the mask that went into them. A
        # mixer saves none of what it makes.
        is_cut_at_mixer = wrapped.verdicts[kind.index].mixer is not None
        with_pairs = is_cut_at_mixer or saved["attention_bytes_per_token2"] > 0
        most_bytes = sum(value for name, value in saved.items() if not name.endswith("token2"))
        _reserve(wrapped, int(most_bytes), ask)
        shapes, by_share = _measure_ways(wrapped, kind, ask)
        exchange = None if wrapped.ranks is None else wrapped.ranks.exchange()
        times = None
        if ask.effort.known_times is None:
            times = _times_of(wrapped, ask, shapes)
    fetched = saved["qkv_bytes_per_token"] + saved["o_bytes_per_token"]
    holes = HOLES_OF_TENSORS
    if ask.as_asked.num_groups > 1:
        holes = HOLES_OF_PLANES
        fetched = 0.0  # nothing was whole that would leave room
        # The model's forward names the first block's input to its end; here it is the block's own.
        beside = partial(with_input, bytes_per_token=saved["x_bytes_per_token"])
        shapes = {place: each.changed(beside) for place, each in shapes.items()}
        by_share = {place: each.changed(beside) for place, each in by_share.items()}
    recomputed = with_prefetch(shapes[TilePlace.RECOMPUTE], fetched)
    peaks = fit_peak_lines(recomputed, POINTS, with_pairs=with_pairs, holes=holes)
    stage_peaks = [
        peak
        for way, each in by_share.items()
        for peak in fit_stage_peaks(each, way, with_pairs=with_pairs)
    ]
    swapped: tuple[PeakLine, ...] = ()
    if ask.as_asked.num_groups == 1:
        swapped = fit_peak_lines(shapes[TilePlace.SWAP], ("forward",), with_pairs=with_pairs)
    return _KindProfile(
        kind=BlockKind(
            gradient_bytes=gradient_bytes(wrapped.parts.blocks[kind.index]),
            tiles=SavedPerToken(**tiles),
            whole=SavedPerToken(**whole),
            peaks=tuple(stage_peaks),
        ),
        saved=saved,
        peaks=peaks + swapped,
        times=times,
        num_blocks=kind.num_blocks,
        exchange=exchange,
    )


def _reserve(wrapped: WrappedModel, bytes_per_token: int, ask: _Ask) -> None:
    """Host memory for the longest runs that swap: to pin each tensor's takes longer than a run."""
    times = ask.effort.known_times is None and ask.runs_behind
    tokens = min(ask.timed_tokens, LONGEST_SWAPPED_TOKENS) if times else 16 * ask.tile
    with suppress(HostMemoryExceeded):
        wrapped.device.reserve_host(bytes_per_token * tokens)


_Ways = tuple[dict[TilePlace, Shapes], dict[TilePlace, TileShapes]]


def _measure_ways(wrapped: WrappedModel, kind: Kind, ask: _Ask) -> _Ways:
    """The active block's steps in every way."""
    shapes: dict[TilePlace, Shapes] = {}
    by_share: dict[TilePlace, TileShapes] = {}
    for place in ask.places:
        way, done = ask.way(place), []
        if ask.runs_behind:
            # Libraries of a GPU take work spaces at their first call, and keep them.
            measure_step(wrapped, ask.batch, 16 * ask.tile, 8 * ask.tile, way, repeats=1)
        if place is not TilePlace.KEEP:
            shapes[place] = measure_shapes(wrapped, ask.batch, ask.tile, way, ask.repeats)
            done = [shapes[place].short]
        by_share[place] = measure_tile_shapes(wrapped, ask.batch, ask.tile, way, done)
    plain = ask.effort.plain
    if plain is None or ask.as_asked.num_groups > 1:
        return shapes, by_share
    beside = partial(_beside_plain, wrapped, kind, ask, plain)
    return (
        {place: each.changed(partial(beside, place)) for place, each in shapes.items()},
        {place: each.changed(partial(beside, place)) for place, each in by_share.items()},
    )


def _beside_plain(
    wrapped: WrappedModel,
    kind: Kind,
    ask: _Ask,
    plain: PlainSteps,
    place: TilePlace,
    step: MeasuredStep,
) -> MeasuredStep:
    """A short step as if kernels had the work space, and gradients the weight, of a long one.

    Its bytes are what a plain one would take by long runs, and what it took more than such.
    """
    key = (kind.index, place, step.tokens, step.tile_tokens)
    if key not in plain.steps:
        way = Way(place=place)
        plain.steps[key] = measure_step(
            wrapped, ask.batch, step.tokens, step.tile_tokens, way, repeats=1
        )
    by_long = plain.profile.kinds[kind.number]
    peaks = dict(step.peak_bytes)
    of_plain = plain.steps[key].peak_bytes
    for stage, num_bytes in of_plain.items():
        long_bytes = by_long.peak_bytes(stage, place, step.tokens, step.tile_tokens)
        if long_bytes and stage in peaks:
            of_stage = (stage, *PARTS_OF_LOSS) if stage == "loss" else (stage,)
            for part in peaks.keys() & of_stage:
                peaks[part] += long_bytes - num_bytes
    return replace(step, peak_bytes=peaks)


def _times_of(wrapped: WrappedModel, ask: _Ask, shapes: dict[TilePlace, Shapes]) -> BlockTimes:
    """Of the active block."""
    if not wrapped.device.runs_behind:
        return fit_block_times(shapes[TilePlace.RECOMPUTE], shapes[TilePlace.SWAP])
    longest, padded = ask.timed_tokens, ask.as_asked.padded
    return measure_times(wrapped, ask.batch, ask.tile, longest, padded=padded)


def _measure_whole(
    wrapped: WrappedModel, kind: Kind, ask: _Ask
) -> tuple[tuple[PeakLine, ...], BlockKind]:
    """A block that is not tiled has no stages of its own: its peaks are between those of others."""
    with only_block(wrapped, kind.index):
        way = ask.way(TilePlace.RECOMPUTE)
        shapes = measure_shapes(wrapped, ask.batch, ask.tile, way, 1)
        by_share = measure_tile_shapes(wrapped, ask.batch, ask.tile, way, [shapes.short])
        if ask.effort.plain is not None:
            beside = partial(_beside_plain, wrapped, kind, ask, ask.effort.plain, way.place)
            shapes, by_share = shapes.changed(beside), by_share.changed(beside)
    nothing = dict.fromkeys((f.name for f in fields(SavedPerToken)), 0.0)
    x_bytes = float(ask.batch * wrapped.parts.hidden_bytes)
    saved = SavedPerToken(**nothing | {"x_bytes_per_token": x_bytes})
    outside = ("loss", "between")
    peaks = fit_stage_peaks(by_share, way.place, with_pairs=False, stages=outside)
    gradients = gradient_bytes(wrapped.parts.blocks[kind.index])
    found = BlockKind(gradient_bytes=gradients, tiles=saved, whole=saved, peaks=peaks)
    return fit_peak_lines(shapes, ("loss",)), found


def _saved_by_tiles(wrapped: WrappedModel, ask: _Ask, whole: dict[str, float]) -> dict[str, float]:
    """As `_saved_fields`, of several tiles. whole: of one."""
    tokens = 4 * ask.tile
    found = asdict(measure_saved(wrapped, ask.batch, tokens, ask.as_asked, by_tiles=True))
    per_token2 = whole["attention_bytes_per_token2"]
    found["attention"] = max(found["attention"] - per_token2 * tokens**2, 0)
    fields = {f"{name}_bytes_per_token": value / tokens for name, value in found.items()}
    return fields | {"attention_bytes_per_token2": per_token2}


def _saved_fields(wrapped: WrappedModel, ask: _Ask) -> dict[str, float]:
    """Bytes per token of each class, from one tile of four and more tiles' tokens."""
    tokens = [4 * ask.tile, 8 * ask.tile, 16 * ask.tile]
    found = [measure_saved(wrapped, ask.batch, n, ask.as_asked) for n in tokens]
    per_token2 = bytes_per_pair(tokens, [saved.attention for saved in found])
    # All but attention's grow with the tokens alone, so the shortest run tells them.
    fields = {
        f"{name}_bytes_per_token": value / tokens[0] for name, value in asdict(found[0]).items()
    }
    attention = found[2].attention - per_token2 * tokens[2] ** 2
    fields["attention_bytes_per_token"] = max(attention, 0.0) / tokens[2]
    fields["attention_bytes_per_token2"] = per_token2
    return fields


def _mean_times(found: Sequence[_KindProfile]) -> BlockTimes:
    """Of one block, over all of them."""
    timed = [(each.num_blocks, each.times) for each in found if each.times is not None]
    num_blocks = sum(count for count, _ in timed)
    return BlockTimes(
        **{
            f.name: sum(count * getattr(times, f.name) for count, times in timed) / num_blocks
            for f in fields(BlockTimes)
        }
    )


def _mean_exchange(found: Sequence[_KindProfile]) -> Exchange | None:
    """Of one block, over all of them."""
    seen = [(each.num_blocks, each.exchange) for each in found if each.exchange is not None]
    if not seen:
        return None
    num_blocks = sum(count for count, _ in seen)
    means = {
        name: sum(count * getattr(exchange, name) for count, exchange in seen) / num_blocks
        for name in ("forward_bytes_per_token", "backward_bytes_per_token")
    }
    return replace(seen[0][1], **means)


def state_bytes(model: nn.Module) -> int:
    """Parameters, buffers, gradients and AdamW's moments, in bytes."""
    resident = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    return resident + (1 + OPTIMIZER_STATES) * gradient_bytes(model)


def gradient_bytes(module: nn.Module) -> int:
    """Of the trained parameters of a model or a block."""
    return sum(p.nbytes for p in module.parameters() if p.requires_grad)


def model_hash(model: nn.Module) -> str:
    """sha256 of the model's class and of its parameters' names, shapes, dtypes and training."""
    rows = [
        f"{n} {tuple(p.shape)} {p.dtype} {p.requires_grad}" for n, p in model.named_parameters()
    ]
    return hashlib.sha256("\n".join([type(model).__name__, *rows]).encode()).hexdigest()


def measure_profile_file(
    wrapped: WrappedModel, batch: int, tokens: int, way: Way = PLAIN_WAY
) -> ProfileFile:
    """`measure_profile`, and what a planner for a whole node wants to know besides.

    With torch.distributed initialised this is a collective call: all ranks must make it.
    """
    profile = measure_profile(wrapped, batch, tokens, way)
    source = ProfileSource(
        kind="measured",
        model_hash=profile.model_hash,
        device=profile.device,
        batch=batch,
        tokens=min(tokens, LONGEST_PROFILED_TOKENS),
        assumptions="none",
    )
    return ProfileFile.of(
        source,
        profile,
        flops=count_block_flops(wrapped, batch),
        link_rates=measure_link_rates(wrapped.device),
    )
