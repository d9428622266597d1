"""Short profiling steps through one block of a wrapped model: seconds and bytes of every stage.

The other blocks pass x through.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from torch import nn

from memo_planner.kinds import TILE_SHARES
from memo_planner.policy import BlockPolicy, Place, Policy, TilePlace
from memo_planner.schedule import CopyBudget
from memo_train.device import Device
from memo_train.runtime import (
    NOWHERE,
    Observer,
    SavedBytes,
    StepPolicy,
    WrappedModel,
    ignore,
    installed,
    shadows_of,
    trainable_parameters,
)


class StageRecorder:
    """An observer (see `runtime.observe`): sums seconds and keeps the peak of every stage.

    seconds[stage]: s, summed, without waiting for copies. peak_bytes[stage]: most device bytes
    above those in use when the recorder was made.
    """

    def __init__(self, device: Device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.peak_bytes: dict[str, int] = defaultdict(int)
        self._device = device
        self._before_bytes = device.counters().device_used_bytes
        self._stage = "between"
        device.reset_peak()
        self._begin("between")

    def __call__(self, stage: str, block: int = NOWHERE, tile: int = NOWHERE) -> None:
        """`stage` begins: note what the one before it took."""
        if stage == "between" and self._stage in ("loss", AFTER_LOSS):
            stage = AFTER_LOSS
        if stage == self._stage:
            return
        # Before the counters, which take time that is no stage's: on a GPU torch's own are slow.
        now = self._device.now()
        counters = self._device.counters()
        self.seconds[self._stage] += now - self._since - (counters.stall_s - self._stalled_s)
        peak = counters.device_peak_bytes - self._before_bytes
        self.peak_bytes[self._stage] = max(self.peak_bytes[self._stage], peak)
        if stage == "loss" and BEFORE_LOSS not in self.peak_bytes:
            # What was between blocks so far was in forward: gradients are made later.
            self.peak_bytes[BEFORE_LOSS] = self.peak_bytes.pop("between", 0)
        self._device.reset_peak()
        self._begin(stage)

    def end(self) -> None:
        """The step is over.

        What came before the first backward of a block (the last norm's) was the loss's: then there
        are no gradients of blocks yet. Where blocks tell of no backward, it was theirs.
        """
        self("end")
        was = "loss" if "post_backward" in self.peak_bytes else "between"
        self.seconds[was] += self.seconds.pop(AFTER_LOSS, 0.0)
        peak = self.peak_bytes.pop(AFTER_LOSS, 0)
        before = self.peak_bytes.pop(BEFORE_LOSS, 0)
        # Each by itself, too: one grows with a tile, the others with all tokens.
        self.peak_bytes[IN_LOSS] = self.peak_bytes.get("loss", 0)
        if was == "loss":
            self.peak_bytes[AFTER_LOSS], self.peak_bytes[BEFORE_LOSS] = peak, before
        self.peak_bytes[was] = max(self.peak_bytes[was], peak, before)

    def _begin(self, stage: str) -> None:
        self._stage, self._stalled_s = stage, self._device.counters().stall_s
        self._since = self._device.now()  # last: see above


BEFORE_LOSS, IN_LOSS, AFTER_LOSS = PARTS_OF_LOSS = "before loss", "in loss", "after loss"
"""Of the stage `loss`: what forward does outside of blocks (embedding, position tables, the last
norm), its own tiles, and the backward that comes before that of the last block."""

REPEATS = 3
_ENOUGH_S = 1.0
"""A step that took so long is not repeated: it is long against what disturbs it."""


@dataclass(frozen=True, kw_only=True)
class MeasuredStep:
    """Seconds and device bytes (above those before the step) of each stage, at one shape."""

    tokens: int
    tile_tokens: int
    seconds: dict[str, float]
    peak_bytes: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How all tiles of a profiling step are run. park_pre: as in `CopyBudget`.

    padded: whether each sequence's last token is padding, for which a mask is made. num_groups: as
    in `Policy`.
    """

    place: TilePlace
    park_pre: bool = False
    num_groups: int = 1
    padded: bool = False


def trained_first(blocks: Sequence[nn.Module]) -> list[int]:
    """The blocks' numbers, those with something to train first: the others have no backward."""
    return sorted(range(len(blocks)), key=lambda i: not trainable_parameters(blocks[i]))


@contextmanager
def only_block(wrapped: WrappedModel, index: int) -> Iterator[None]:
    """While active, only that block of `wrapped` does anything; counts are left as found."""
    chosen, counts = wrapped.choose_policy, wrapped.tile_counts.copy()
    wrapped.active_block = index
    try:
        yield
    finally:
        wrapped.choose_policy, wrapped.observer = chosen, ignore
        wrapped.active_block = None
        wrapped.tile_counts.clear()
        wrapped.tile_counts.update(counts)


def measure_saved(
    wrapped: WrappedModel, batch: int, tokens: int, way: Way, *, by_tiles: bool = False
) -> SavedBytes:
    """What the active block saves for backward with everything kept, in one tile of `tokens`.

    way: of which the tiles' place does not count. by_tiles: in four tiles. More than one sequence
    always is: a tile of it is not contiguous, and operations that want it so save a copy. A block
    that is not run by tiles saves its input only.
    """
    tile_tokens = tokens if batch == 1 and not by_tiles else -(-tokens // 4)
    policy = profiled_policy(wrapped, tokens, tile_tokens, replace(way, place=TilePlace.KEEP))
    loss = _loss(wrapped, batch, policy, padded=way.padded)
    block_pass = wrapped.last_pass()
    if block_pass is not None:
        saved: SavedBytes = block_pass.saved_bytes()
        del loss
        return saved
    x_bytes = batch * tokens * wrapped.parts.hidden_bytes
    return SavedBytes(x=x_bytes, o=0, qkv=0, attention=0, pre=0, post=0, shared=0)


def measure_step(
    wrapped: WrappedModel,
    batch: int,
    tokens: int,
    tile_tokens: int,
    way: Way,
    repeats: int = REPEATS,
) -> MeasuredStep:
    """A step with all tiles run one way, x and o swapped: least seconds, highest peaks."""
    seconds: dict[str, float] = {}
    peak_bytes: dict[str, int] = {}
    policy, began_s = profiled_policy(wrapped, tokens, tile_tokens, way), wrapped.device.now()
    for repeat in range(repeats):
        if repeat and wrapped.device.now() - began_s > _ENOUGH_S:
            break
        recorder = StageRecorder(wrapped.device)
        run_step(wrapped, recorder, batch, policy, padded=way.padded)
        recorder.end()
        for stage, value in recorder.seconds.items():
            seconds[stage] = min(value, seconds.get(stage, value))
        for stage, peak in recorder.peak_bytes.items():
            peak_bytes[stage] = max(peak, peak_bytes.get(stage, 0))
    return MeasuredStep(
        tokens=tokens, tile_tokens=tile_tokens, seconds=seconds, peak_bytes=peak_bytes
    )


def run_step(
    wrapped: WrappedModel,
    observer: Observer,
    batch: int,
    policy: StepPolicy,
    *,
    padded: bool = False,
) -> None:
    """Forward and backward of a step under `policy`, watched; no gradient is kept."""
    causal_lm = wrapped.parts.causal_lm
    trained = _trained(wrapped)
    # On aliases of the parameters, hooks that users put on them do not fire.
    shadows = shadows_of(trained)
    wrapped.observer = observer
    with installed(causal_lm, trained, shadows):
        loss = _loss(wrapped, batch, policy, padded=padded)
        if loss.requires_grad:  # nothing before a frozen last block, say, has a backward
            torch.autograd.grad(loss, shadows, allow_unused=True)


def _trained(wrapped: WrappedModel) -> tuple[torch.Tensor, ...]:
    """What a step can have gradients of: not what blocks alone hold that pass x through."""
    trained, blocks = trainable_parameters(wrapped.parts.causal_lm), wrapped.parts.blocks
    if wrapped.active_block is None:
        return trained
    idle = {id(p) for block in blocks for p in block.parameters()}
    idle -= {id(p) for p in blocks[wrapped.active_block].parameters()}
    return tuple(parameter for parameter in trained if id(parameter) not in idle)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Steps of (4 t tokens, tile t), (8 t, t), (16 t, t) and (16 t, 2 t).

    Three differ in tokens only, two in tile size only.
    """

    half: MeasuredStep
    short: MeasuredStep
    long: MeasuredStep
    wide: MeasuredStep

    def changed(self, change: Callable[[MeasuredStep], MeasuredStep]) -> Shapes:
        """With each step replaced by what `change` makes of it."""
        return Shapes(**{f.name: change(getattr(self, f.name)) for f in fields(self)})


def measure_shapes(
    wrapped: WrappedModel, batch: int, tile: int, way: Way, repeats: int = REPEATS
) -> Shapes:
    """Steps of all shapes for a tile of `tile` tokens."""
    return Shapes(
        # Of this shape only bytes are used.
        half=measure_step(wrapped, batch, 4 * tile, tile, way, repeats=1),
        short=measure_step(wrapped, batch, 8 * tile, tile, way, repeats),
        long=measure_step(wrapped, batch, 16 * tile, tile, way, repeats),
        wide=measure_step(wrapped, batch, 16 * tile, 2 * tile, way, repeats),
    )


@dataclass(frozen=True, kw_only=True)
class TileShapes:
    """Steps whose tiles are shares of the sequence, for bytes only.

    halves: of 4 t, 8 t and 16 t tokens, each in two tiles. shares: of 8 t tokens, in tiles of each
    of `TILE_SHARES`. wholes: of 8 t and 16 t tokens, each in one tile.
    """

    halves: tuple[MeasuredStep, ...]
    shares: tuple[MeasuredStep, ...]
    wholes: tuple[MeasuredStep, ...]

    def changed(self, change: Callable[[MeasuredStep], MeasuredStep]) -> TileShapes:
        """With each step replaced by what `change` makes of it."""
        return TileShapes(
            **{f.name: tuple(map(change, getattr(self, f.name))) for f in fields(self)}
        )


def measure_tile_shapes(
    wrapped: WrappedModel, batch: int, tile: int, way: Way, done: Sequence[MeasuredStep] = ()
) -> TileShapes:
    """Steps of all those shapes, each once, for a tile of `tile` tokens; not again those `done`."""
    tokens = 8 * tile
    known = {(step.tokens, step.tile_tokens): step for step in done}

    def step(num_tokens: int, tile_tokens: int) -> MeasuredStep:
        shape = (num_tokens, tile_tokens)
        return known.get(shape) or measure_step(wrapped, batch, *shape, way, repeats=1)

    shares = tuple(step(tokens, int(share * tokens)) for share in TILE_SHARES)
    return TileShapes(
        halves=(
            step(4 * tile, 2 * tile),
            shares[TILE_SHARES.index(1 / 2)],
            step(2 * tokens, tokens),
        ),
        shares=shares,
        wholes=(step(tokens, tokens), step(2 * tokens, 2 * tokens)),
    )


def _loss(
    wrapped: WrappedModel, batch: int, policy: StepPolicy, *, padded: bool = False
) -> torch.Tensor:
    wrapped.choose_policy = lambda batch, tokens: policy
    where = wrapped.device.torch_device
    shape = (batch, policy.policy.tokens)
    ids = torch.randint(wrapped.parts.vocab_size, shape, device=where)
    batch_of_ids = {"input_ids": ids, "labels": ids}
    if padded:
        mask = torch.ones(shape, dtype=torch.long, device=where)
        mask[:, -1] = 0
        batch_of_ids["attention_mask"] = mask
    with torch.enable_grad():
        if wrapped.parts.predicts_tokens:
            loss: torch.Tensor = wrapped.run_model(**batch_of_ids).loss
            return loss
        del batch_of_ids["labels"]
        scores: torch.Tensor = wrapped.run_model(**batch_of_ids).logits
        return scores.float().sum()


_MOST_LOSS_TILES = 2
"""The first makes the sum of gradients and the second adds to it; more need no more bytes, no plan
asks how long they take, and beside one block a large vocabulary is most of a step."""


def profiled_policy(wrapped: WrappedModel, tokens: int, tile_tokens: int, way: Way) -> StepPolicy:
    """`uniform_policy` with as much of the loss as shows what it needs."""
    policy = uniform_policy(wrapped, tokens, tile_tokens, way)
    return replace(policy, most_loss_tiles=_MOST_LOSS_TILES)


def uniform_policy(wrapped: WrappedModel, tokens: int, tile_tokens: int, way: Way) -> StepPolicy:
    """All tiles of all blocks run one way; x and o are kept with kept tiles, swapped otherwise."""
    num_tiles, place = -(-tokens // tile_tokens), way.place
    whole = Place.KEEP if place is TilePlace.KEEP else Place.SWAP
    block = BlockPolicy(
        keep_tiles=num_tiles if place is TilePlace.KEEP else 0,
        swap_tiles=num_tiles if place is TilePlace.SWAP else 0,
        recompute_tiles=num_tiles if place is TilePlace.RECOMPUTE else 0,
        x=whole,
        o=whole,
    )
    blocks = (block,) * len(wrapped.parts.blocks)
    return StepPolicy(
        policy=Policy(
            tokens=tokens, tile_tokens=tile_tokens, blocks=blocks, num_groups=way.num_groups
        ),
        loss_tile_tokens=wrapped.parts.loss_tile_tokens(tile_tokens),
        # Each copy is waited for, so that peaks do not hang on the link.
        copies=CopyBudget.same(
            len(blocks), in_flight_bytes=0, ahead_bytes=0, park_pre=way.park_pre
        ),
    )
