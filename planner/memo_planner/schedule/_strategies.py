"""Strategies that handle a block whole, on the clock: the peers of the plan by token tiles.

They are checkpoints, offloaded checkpoints and MEMO's own.

Source: MEMO §overview (two rounding buffers, three streams, the last two blocks kept).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from memo_planner.checks import check_fields, check_int, check_number
from memo_planner.codec import hash_of
from memo_planner.errors import InvalidInput
from memo_planner.policy import MAX_TOKENS
from memo_planner.profile import Profile
from memo_planner.programme import BlockShape
from memo_planner.schedule._builder import ScheduleBuilder
from memo_planner.schedule._of_plan import StepRest
from memo_planner.schedule._schedule import VERSION, Operation, Phase, Schedule

_ROUNDING_BUFFERS = 2


@dataclass(frozen=True, kw_only=True)
class BlockCosts:
    """What one block costs, run whole.

    Attributes:
        forward_s, backward_s: computation; recompute_s: forward that runs again before backward.
        kept_bytes: stay on the device from forward to backward. swapped_bytes: go to the host
            after forward and come back. recomputed_bytes: made again before backward.
        forward_scratch_bytes, backward_scratch_bytes: on the device while the block runs.
        forward_collective_bytes, backward_collective_bytes: sent to other ranks after the block's
            computation, which waits for it.
    """

    forward_s: float
    backward_s: float
    recompute_s: float = 0.0
    kept_bytes: int = 0
    swapped_bytes: int = 0
    recomputed_bytes: int = 0
    forward_scratch_bytes: int = 0
    backward_scratch_bytes: int = 0
    forward_collective_bytes: int = 0
    backward_collective_bytes: int = 0

    def __post_init__(self) -> None:
        check_fields(self, ("forward_s", "backward_s", "recompute_s"))
        for name in self.__dataclass_fields__:
            if name.endswith("_bytes"):
                check_int(f"BlockCosts.{name}", getattr(self, name), 0)


@dataclass(frozen=True, kw_only=True)
class BlockwiseStep:
    """A step of blocks run whole, one after another.

    Attributes:
        num_buffers: blocks that may hold their swapped bytes on the device at a time (2 are
            MEMO's rounding buffers): forward of block i waits until block i - num_buffers has
            left, and a block's copies back start when its buffer is free; None: no limit.
        loss_s, loss_scratch_bytes, optimizer_s: the rest of the step.
    """

    blocks: tuple[BlockCosts, ...]
    num_buffers: int | None = None
    loss_s: float = 0.0
    loss_scratch_bytes: int = 0
    optimizer_s: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, ("loss_s", "optimizer_s"))
        check_int("BlockwiseStep.loss_scratch_bytes", self.loss_scratch_bytes, 0)
        if not self.blocks:
            raise InvalidInput("BlockwiseStep.blocks is empty; a step needs at least one block")
        if self.num_buffers is not None:
            check_int("BlockwiseStep.num_buffers", self.num_buffers, 1)


def block_operations(step: BlockwiseStep) -> tuple[Operation, ...]:
    """The step in the order in which a program issues it."""
    build = ScheduleBuilder()
    sent = _forward(build, step)
    build.at(Phase.LOSS)
    scratch = step.loss_scratch_bytes
    build.compute("loss", step.loss_s, alloc_bytes=scratch, free_bytes=scratch)
    _backward(build, step, sent)
    build.at(Phase.OPTIMIZER)
    build.compute("optimizer", step.optimizer_s)
    return tuple(build.operations)


def _rounding_blocks(
    costs: BlockCosts, num_blocks: int, *, kept_blocks: int = 2
) -> tuple[BlockCosts, ...]:
    """`num_blocks` blocks of which the last `kept_blocks` keep what the others swap.

    Their backward comes at once; they stay in the buffers. Source: MEMO §alpha.
    """
    stays = BlockCosts(
        **{
            **{name: getattr(costs, name) for name in costs.__dataclass_fields__},
            "kept_bytes": costs.kept_bytes + costs.swapped_bytes,
            "swapped_bytes": 0,
        }
    )
    kept = min(kept_blocks, num_blocks)
    return (costs,) * (num_blocks - kept) + (stays,) * kept


def _forward(build: ScheduleBuilder, step: BlockwiseStep) -> list[int | None]:
    """The copies to the host, by block."""
    sent: list[int | None] = []
    for index, block in enumerate(step.blocks):
        build.at(Phase.FORWARD, index)
        before = None if step.num_buffers is None else index - step.num_buffers
        if before is not None and before >= 0:
            build.wait("a free buffer", _known(sent[before : before + 1]))
        scratch = block.forward_scratch_bytes
        saved = block.kept_bytes + block.swapped_bytes
        build.compute("forward", block.forward_s, alloc_bytes=scratch + saved, free_bytes=scratch)
        if block.forward_collective_bytes:
            exchange = build.collective("forward's exchange", block.forward_collective_bytes)
            build.wait("forward's exchange", (exchange,))
        swapped = block.swapped_bytes
        sent.append(build.to_host("saved tensors", swapped) if swapped else None)
    return sent


def _backward(build: ScheduleBuilder, step: BlockwiseStep, sent: Sequence[int | None]) -> None:
    fetched: dict[int, int] = {}

    def fetch(index: int) -> None:
        copy = sent[index] if 0 <= index < len(sent) else None
        if copy is not None and index not in fetched:
            fetched[index] = build.to_device(
                "saved tensors", step.blocks[index].swapped_bytes, copy
            )

    for index, block in reversed(list(enumerate(step.blocks))):
        build.at(Phase.BACKWARD, index)
        fetch(index)
        # The buffer of the block before is free: what held it, two blocks on, is through.
        if step.num_buffers != 1:
            fetch(index - 1)
        build.wait("saved tensors", _known([fetched.get(index)]))
        made = block.recomputed_bytes
        if block.recompute_s or made:
            build.compute("recompute", block.recompute_s, alloc_bytes=made)
        scratch, held = block.backward_scratch_bytes, block.kept_bytes + block.swapped_bytes
        build.compute(
            "backward",
            block.backward_s,
            alloc_bytes=scratch,
            free_bytes=scratch + held + made,
        )
        if block.backward_collective_bytes:
            exchange = build.collective("backward's exchange", block.backward_collective_bytes)
            build.wait("backward's exchange", (exchange,))


def _known(ids: Sequence[int | None]) -> list[int]:
    return [one for one in ids if one is not None]


def strategy_schedule(
    name: str, profile: Profile, tokens: int, *, alpha: float = 1.0, rest: StepRest | None = None
) -> Schedule:
    """A step of `name` (one of `STRATEGIES`) over `tokens` tokens on blocks of `profile`.

    alpha: swapped part of what is neither x nor o, for `memo-paper`. Blocks run whole, so scratch
    is that of one tile of all tokens. Raises: InvalidInput.
    Source: MEMO §alpha for `memo-paper`, its ablation for `swap-all` and `checkpoint`.
    """
    check_int("tokens", tokens, 1, MAX_TOKENS)
    if check_number("alpha", alpha) > 1:
        raise InvalidInput(f"alpha is {alpha}; it must be from 0 to 1")
    if name not in STRATEGIES:
        raise InvalidInput(f"strategy is {name!r}; it must be one of {sorted(STRATEGIES)}")
    rest = rest or StepRest()
    shape = BlockShape(profile=profile, tokens=tokens, tile_tokens=tokens)
    step = STRATEGIES[name](shape, alpha, rest)
    parts = {"strategy": name, "profile": asdict(profile), "tokens": tokens, "alpha": alpha}
    return Schedule(
        version=VERSION,
        strategy=name,
        model=profile.model,
        tokens=tokens,
        state_bytes=profile.state_bytes,
        flops=rest.flops,
        inputs_hash=hash_of({**parts, "rest": asdict(rest)}),
        operations=block_operations(step),
    )


def _costs(shape: BlockShape, **other: float) -> BlockCosts:
    """One block's costs; `other` are fields of `BlockCosts`."""
    x_o = shape.x_bytes + shape.o_bytes
    profile, tokens = shape.profile, shape.tokens
    forward, backward = (profile.peak_bytes(p, tokens, tokens) for p in ("forward", "backward"))
    costs: dict[str, float] = {
        "forward_s": shape.forward_s,
        "backward_s": shape.backward_s,
        "forward_scratch_bytes": max(forward - x_o, 0),
        "backward_scratch_bytes": max(backward - x_o, 0),
    }
    return BlockCosts(**(costs | other))  # type: ignore[arg-type]


def _step(
    shape: BlockShape, blocks: tuple[BlockCosts, ...], rest: StepRest, buffers: int | None = None
) -> BlockwiseStep:
    profile, tokens = shape.profile, shape.tokens
    return BlockwiseStep(
        blocks=blocks,
        num_buffers=buffers,
        loss_s=rest.loss_s,
        loss_scratch_bytes=profile.peak_bytes("loss", tokens, tokens),
        optimizer_s=rest.optimizer_s,
    )


def _tile_bytes(shape: BlockShape) -> int:
    return math.ceil(shape.profile.tile_bytes_per_token * shape.tokens)


def _none(shape: BlockShape, alpha: float, rest: StepRest) -> BlockwiseStep:
    kept = shape.x_bytes + shape.o_bytes + _tile_bytes(shape)
    return _step(shape, (_costs(shape, kept_bytes=kept),) * shape.profile.num_blocks, rest)


def _checkpoint(shape: BlockShape, alpha: float, rest: StepRest) -> BlockwiseStep:
    costs = _costs(
        shape,
        kept_bytes=shape.x_bytes,
        recompute_s=shape.forward_s,
        recomputed_bytes=shape.o_bytes + _tile_bytes(shape),
    )
    return _step(shape, (costs,) * shape.profile.num_blocks, rest)


def _checkpoint_offload(shape: BlockShape, alpha: float, rest: StepRest) -> BlockwiseStep:
    costs = _costs(
        shape,
        swapped_bytes=shape.x_bytes,
        recompute_s=shape.forward_s,
        recomputed_bytes=shape.o_bytes + _tile_bytes(shape),
    )
    return _step(shape, (costs,) * shape.profile.num_blocks, rest, _ROUNDING_BUFFERS)


def _swap_all(shape: BlockShape, alpha: float, rest: StepRest) -> BlockwiseStep:
    return _memo_paper(shape, 1.0, rest)


def _memo_paper(shape: BlockShape, alpha: float, rest: StepRest) -> BlockwiseStep:
    swapped = math.ceil(alpha * _tile_bytes(shape))
    recompute_s = (1.0 - alpha) * shape.profile.times.tilewise_s_per_token * shape.tokens
    costs = _costs(
        shape,
        forward_s=shape.forward_s + alpha * shape.profile.times.swap_s_per_token * shape.tokens,
        swapped_bytes=shape.x_bytes + shape.o_bytes + swapped,
        recompute_s=recompute_s,
        recomputed_bytes=_tile_bytes(shape) - swapped,
    )
    blocks = _rounding_blocks(costs, shape.profile.num_blocks)
    return _step(shape, blocks, rest, _ROUNDING_BUFFERS)


STRATEGIES: dict[str, Callable[[BlockShape, float, StepRest], BlockwiseStep]] = {
    "none": _none,
    "checkpoint": _checkpoint,
    "checkpoint-offload": _checkpoint_offload,
    "memo-paper": _memo_paper,
    "swap-all": _swap_all,
}
"""What puts each strategy's step together."""
