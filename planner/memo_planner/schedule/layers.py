"""Schedules of strategies that handle a block whole: checkpoints, offloaded ones, MEMO's own.

Source: MEMO §overview (two rounding buffers, three streams, the last two layers kept).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memo_planner.checks import check_fields, check_int
from memo_planner.errors import InvalidInput
from memo_planner.schedule.builder import ScheduleBuilder
from memo_planner.schedule.operation import Operation, Phase


@dataclass(frozen=True, kw_only=True)
class LayerCosts:
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
                check_int(f"LayerCosts.{name}", getattr(self, name), 0)


@dataclass(frozen=True, kw_only=True)
class LayerStep:
    """A step of blocks run whole, one after another.

    Attributes:
        num_buffers: blocks that may hold their swapped bytes on the device at a time (2 are
            MEMO's rounding buffers): forward of block i waits until block i - num_buffers has
            left, and a block's copies back start when its buffer is free; None: no limit.
        loss_s, loss_scratch_bytes, optimizer_s: the rest of the step.
    """

    layers: tuple[LayerCosts, ...]
    num_buffers: int | None = None
    loss_s: float = 0.0
    loss_scratch_bytes: int = 0
    optimizer_s: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, ("loss_s", "optimizer_s"))
        check_int("LayerStep.loss_scratch_bytes", self.loss_scratch_bytes, 0)
        if not self.layers:
            raise InvalidInput("LayerStep.layers is empty; a step needs at least one block")
        if self.num_buffers is not None:
            check_int("LayerStep.num_buffers", self.num_buffers, 1)


def layer_operations(step: LayerStep) -> tuple[Operation, ...]:
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


def rounding_layers(
    costs: LayerCosts, num_blocks: int, *, kept_blocks: int = 2
) -> tuple[LayerCosts, ...]:
    """`num_blocks` blocks of which the last `kept_blocks` keep what the others swap.

    Their backward comes at once; they stay in the buffers. Source: MEMO §alpha.
    """
    stays = LayerCosts(
        **{
            **{name: getattr(costs, name) for name in costs.__dataclass_fields__},
            "kept_bytes": costs.kept_bytes + costs.swapped_bytes,
            "swapped_bytes": 0,
        }
    )
    kept = min(kept_blocks, num_blocks)
    return (costs,) * (num_blocks - kept) + (stays,) * kept


def _forward(build: ScheduleBuilder, step: LayerStep) -> list[int | None]:
    """The copies to the host, by block."""
    sent: list[int | None] = []
    for index, layer in enumerate(step.layers):
        build.at(Phase.FORWARD, index)
        before = None if step.num_buffers is None else index - step.num_buffers
        if before is not None and before >= 0:
            build.wait("a free buffer", _known(sent[before : before + 1]))
        scratch = layer.forward_scratch_bytes
        saved = layer.kept_bytes + layer.swapped_bytes
        build.compute("forward", layer.forward_s, alloc_bytes=scratch + saved, free_bytes=scratch)
        if layer.forward_collective_bytes:
            exchange = build.collective("forward's exchange", layer.forward_collective_bytes)
            build.wait("forward's exchange", (exchange,))
        swapped = layer.swapped_bytes
        sent.append(build.to_host("saved tensors", swapped) if swapped else None)
    return sent


def _backward(build: ScheduleBuilder, step: LayerStep, sent: Sequence[int | None]) -> None:
    fetched: dict[int, int] = {}

    def fetch(index: int) -> None:
        copy = sent[index] if 0 <= index < len(sent) else None
        if copy is not None and index not in fetched:
            fetched[index] = build.to_device(
                "saved tensors", step.layers[index].swapped_bytes, copy
            )

    for index, layer in reversed(list(enumerate(step.layers))):
        build.at(Phase.BACKWARD, index)
        fetch(index)
        # The buffer of the block before is free: what held it, two blocks on, is through.
        if step.num_buffers != 1:
            fetch(index - 1)
        build.wait("saved tensors", _known([fetched.get(index)]))
        made = layer.recomputed_bytes
        if layer.recompute_s or made:
            build.compute("recompute", layer.recompute_s, alloc_bytes=made)
        scratch, held = layer.backward_scratch_bytes, layer.kept_bytes + layer.swapped_bytes
        build.compute(
            "backward",
            layer.backward_s,
            alloc_bytes=scratch,
            free_bytes=scratch + held + made,
        )
        if layer.backward_collective_bytes:
            exchange = build.collective("backward's exchange", layer.backward_collective_bytes)
            build.wait("backward's exchange", (exchange,))


def _known(ids: Sequence[int | None]) -> list[int]:
    return [one for one in ids if one is not None]
