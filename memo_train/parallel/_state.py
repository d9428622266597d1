"""What a rank holds of a model's state, and what comes and goes beside it, put into a profile.

A profile is measured with whole parameters, which is what one process holds. `HeldState.of` counts,
from the parameters alone, what is left of that where something divides it among ranks; `applied`
puts the counts in the place of a profile's own.

Source: FSDP2's _fsdp_param_group.py (what is gathered when, and how long the buffers of a
collective are held); DistributedDataParallel's reducer; DeepSpeed's stage_1_and_2.py and stage3.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import nn

from memo_planner import PeakLine, Profile
from memo_planner.kinds import BACKWARD_STAGES, FORWARD_STAGES, BlockKind, StagePeak
from memo_train.errors import InvalidInput
from memo_train.runtime import ModelParts, is_fully_sharded

STATES = ("whole", "ddp", "ddp-views", "fsdp2", "zero1", "zero2", "zero3")
_MOMENTS = 2
_MASTER_BYTES = 4
"""Of one parameter's copy that DeepSpeed's optimiser trains, in fp32 whatever the model is in."""


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """Who looks after parameters, gradients and AdamW's moments, so that the plan counts them.

    kind: "whole": each rank for itself; "ddp": DistributedDataParallel, whose buckets are as large
        as the gradients; "ddp-views": the same with gradient_as_bucket_view=True; "fsdp2":
        `fully_shard` of each block and of the model; "zero1", "zero2", "zero3": DeepSpeed's stages.
    num_ranks: over how many the state is divided; None: all of the default process group.
    bucket_bytes: DeepSpeed's reduce_bucket_size in bytes, all buffers of that size together.

    Raises: InvalidInput.
    """

    kind: str = "whole"
    num_ranks: int | None = None
    bucket_bytes: int = 0

    def __post_init__(self) -> None:
        if self.kind not in STATES:
            names = ", ".join(map(repr, STATES))
            raise InvalidInput(f"state must be one of {names}, got {self.kind!r}")
        for name, least in (("num_ranks", 1), ("bucket_bytes", 0)):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value >= least):
                raise InvalidInput(
                    f"ModelState.{name} must be a whole number of at least {least}, got {value!r}"
                )

    @property
    def zero_stage(self) -> int:
        """As DeepSpeed counts: 1 divides moments, 2 gradients as well, 3 parameters as well."""
        return {"fsdp2": 3, "zero1": 1, "zero2": 2, "zero3": 3}.get(self.kind, 0)

    @classmethod
    def told(cls, state: str | ModelState | None, model: nn.Module) -> ModelState:
        """What `wrap` was told, over how many ranks; None is what `model` shows. Raises: as it."""
        if not isinstance(model, nn.Module):
            return cls(num_ranks=1)  # which the look at the model refuses
        if state is None:
            sharded = any(map(is_fully_sharded, model.modules()))
            state = "fsdp2" if sharded else "whole"
        given = state if isinstance(state, ModelState) else cls(kind=state)
        if given.num_ranks is not None:
            return given
        return replace(given, num_ranks=_num_ranks(model))


def _num_ranks(model: nn.Module) -> int:
    meshes = (getattr(p, "device_mesh", None) for p in model.parameters())
    mesh = next((m for m in meshes if m is not None), None)
    if mesh is not None:
        return int(mesh.size())
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Bytes of some of the parameters.

    whole, trained: of all and of those that are trained; held, held_trained: this rank's share of
    both. num_trained: numbers, this rank's share.
    """

    whole: int
    trained: int
    held: int
    held_trained: int
    num_trained: int

    @classmethod
    def of(cls, parameters: Iterable[nn.Parameter], num_ranks: int) -> _Part:
        every = list({id(p): p for p in parameters}.values())
        trained = [p for p in every if p.requires_grad]
        return cls(
            whole=sum(p.nbytes for p in every),
            trained=sum(p.nbytes for p in trained),
            held=sum(_share(p, num_ranks) for p in every),
            held_trained=sum(_share(p, num_ranks) for p in trained),
            num_trained=sum(-(-p.numel() // num_ranks) for p in trained),
        )


def _share(parameter: torch.Tensor, num_ranks: int) -> int:
    """Bytes of one rank's rows, the last ranks' padded to as many as the first one's."""
    rows = parameter.shape[0] if parameter.dim() else 1
    return -(-rows // num_ranks) * (parameter.nbytes // max(rows, 1))


@dataclass(frozen=True, kw_only=True)
class _Beside:
    """What is there besides at stages of a step, in bytes; less where it is negative."""

    forward: int = 0
    loss: int = 0
    backward: int = 0
    between: int = 0

    def at(self, stage: str) -> int:
        if stage in FORWARD_STAGES:
            return self.forward
        return self.backward if stage in BACKWARD_STAGES else getattr(self, stage, 0)


@dataclass(frozen=True, kw_only=True)
class HeldState:
    """One rank's share of a model's state, and what is there besides while a block runs.

    state_bytes, gradient_bytes: as in `Profile`, of this rank. by_block: of each block its
    gradients and what is there besides.
    """

    state_bytes: int
    gradient_bytes: int
    by_block: tuple[tuple[int, _Beside], ...]

    @classmethod
    def of(cls, parts: ModelParts, state: ModelState) -> HeldState:
        """Counted from the parameters of `parts`, whole or FSDP2's. state: `ModelState.told`."""
        num_ranks = state.num_ranks or 1
        model, split = parts.causal_lm, num_ranks if state.zero_stage else 1
        blocks = [_Part.of(block.parameters(), split) for block in parts.blocks]
        inside = {id(p) for block in parts.blocks for p in block.parameters()}
        outside = [p for p in model.parameters() if id(p) not in inside]
        rest, every = _Part.of(outside, split), _Part.of(model.parameters(), split)
        buffers = sum(b.nbytes for b in model.buffers())
        held, gradients = _held_bytes(state, every, rest)
        return cls(
            state_bytes=buffers + held + gradients,
            gradient_bytes=0 if state.kind == "ddp-views" else gradients,
            by_block=tuple(_of_block(state, block, rest) for block in blocks),
        )

    def applied(self, profile: Profile) -> Profile:
        """`profile` with this state in the place of the whole one."""
        kinds = tuple(
            self._kind(kind, self.by_block[profile.kind_of_block.index(number)])
            for number, kind in enumerate(profile.kinds)
        )
        most = {
            name: max(0, *(getattr(beside, name) for _, beside in self.by_block))
            for name in ("forward", "loss", "backward")
        }
        return replace(
            profile,
            state_bytes=self.state_bytes,
            gradient_bytes=self.gradient_bytes,
            kinds=kinds,
            peaks=tuple(_line(line, most[line.name]) for line in profile.peaks),
        )

    def _kind(self, kind: BlockKind, of_block: tuple[int, _Beside]) -> BlockKind:
        gradient_bytes, beside = of_block
        peaks = tuple(_peak(peak, beside.at(peak.stage)) for peak in kind.peaks)
        return replace(kind, gradient_bytes=gradient_bytes, peaks=peaks)


def _line(line: PeakLine, more_bytes: int) -> PeakLine:
    return replace(line, base_bytes=line.base_bytes + more_bytes)


def _peak(peak: StagePeak, more_bytes: int) -> StagePeak:
    """What is taken away may be more than is fixed; the rest of it is not."""
    return replace(peak, base_bytes=max(peak.base_bytes + more_bytes, 0.0))


def _held_bytes(state: ModelState, every: _Part, rest: _Part) -> tuple[int, int]:
    """What a rank holds all along without gradients, and its gradients."""
    stage = state.zero_stage
    if state.kind == "fsdp2":
        # The model's own group, all outside of blocks, stays whole from forward to backward's end.
        held = every.held + _MOMENTS * every.held_trained + rest.whole
        return held, every.held_trained
    if not stage:
        buckets = every.trained if state.kind == "ddp" else 0
        return every.whole + _MOMENTS * every.trained + buckets, every.trained
    optimiser = (1 + _MOMENTS) * _MASTER_BYTES * every.num_trained
    parameters = every.held if stage == 3 else every.whole
    gradients = every.held_trained if stage >= 2 else every.trained
    return parameters + optimiser + state.bucket_bytes, gradients


def _of_block(state: ModelState, block: _Part, rest: _Part) -> tuple[int, _Beside]:
    """A block's gradients as a rank keeps them, and what is there besides while it runs.

    A profile's backward has the block's own gradients in it, whole, and from the loss on those
    that the loss makes.
    """
    if state.kind == "fsdp2":
        # Gathered parameters, and beside them the buffer that they or the next ones came in; in
        # backward also the gradients of the block behind, on their way to their ranks.
        return block.held_trained, _Beside(
            forward=2 * block.whole,
            backward=2 * block.whole + block.trained,
            between=rest.trained - (block.trained - block.held_trained),
        )
    if state.kind == "ddp-views":
        # Gradients go into their buckets, which are there all along; those that the loss made
        # stay with it as well, until its graph goes.
        return 0, _Beside(between=-block.trained)
    gathered = 2 * block.whole if state.zero_stage == 3 else 0
    if state.zero_stage >= 2:
        less = block.trained - block.held_trained
        return block.held_trained, _Beside(
            forward=gathered, backward=gathered, between=gathered - less
        )
    return block.trained, _Beside()
