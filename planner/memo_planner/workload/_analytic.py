"""A profile from a model's dimensions and a machine's figures, where nothing can be measured.

Bytes are counted from the dimensions; seconds follow from FLOPs, efficiencies and collectives.
Everything is of one rank and one token of the whole sequence: a rank holds one part in
`ranks_of_sequence` of every activation.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import Enum

from memo_planner.hardware import Efficiency, Hardware
from memo_planner.limits import Limits
from memo_planner.profile import BlockTimes, Exchange, PeakLine, Profile
from memo_planner.workload._model import BlockKind
from memo_planner.workload._workload import Workload

LOSS_TILE_TOKENS = 1024
"""Tokens of a rank whose logits exist at once where the loss is tiled."""
_LOSS_TILE_BYTES = 12
"""Of one logit: fp32 value, its gradient, and both in bf16."""
_LOGIT_BYTES = 2
"""Of one logit where whole blocks run: bf16, the loss itself taken a part at a time."""


class Way(Enum):
    """How a block is run, which decides what the device holds besides kept tensors."""

    TILED = "tiled"
    WHOLE = "whole"
    CHECKPOINTED = "checkpointed"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Bytes per token that a block saves for backward, by class (see `Profile`)."""

    x: float
    o: float
    qkv: float
    attention: float
    pre: float
    post: float

    @property
    def all(self) -> float:
        """All classes together."""
        return self.x + self.o + self.qkv + self.attention + self.pre + self.post


def saved_bytes(workload: Workload) -> Saved:
    """What one block saves: of each class what the kind saves that saves most of it.

    A profile has equal blocks, so a model of several kinds is never planned below its need.
    """
    kinds = [_kind_saved(workload, kind) for kind in workload.model.kinds]
    return Saved(**{f.name: max(getattr(each, f.name) for each in kinds) for f in fields(Saved)})


def _kind_saved(workload: Workload, kind: BlockKind) -> Saved:
    unit = unit_bytes(workload)
    return Saved(
        x=workload.model.hidden * unit,
        o=kind.o_width * unit,
        qkv=_qkv_width(workload, kind) * unit,
        attention=4 * kind.num_heads / workload.parallel.ranks_of_sequence,
        pre=kind.pre_width * unit,
        post=kind.post_width * unit,
    )


def unit_bytes(workload: Workload) -> float:
    """Bytes of one number of one token on one rank."""
    return workload.dtype_bytes / workload.parallel.ranks_of_sequence


def _kv_width(workload: Workload, kind: BlockKind) -> float:
    """Numbers of k and v in attention, over all ranks: heads that several ranks read, each time."""
    return kind.kv_width * kind.kv_copies(workload.parallel.split_heads)


def _qkv_width(workload: Workload, kind: BlockKind) -> float:
    return kind.q_width + _kv_width(workload, kind)


def peak_lines(workload: Workload, way: Way) -> tuple[PeakLine, ...]:
    """Device bytes at each point of the step, with nothing kept; lines for each kind of block."""
    lines = _tiled_lines if way is Way.TILED else _whole_lines
    return tuple(line for kind in workload.model.kinds for line in lines(workload, kind, way))


def _tiled_lines(workload: Workload, kind: BlockKind, way: Way) -> tuple[PeakLine, ...]:
    """What the tiled runtime holds: counted there, and equal to its measured profiles.

    Forward: x, the last block's y, q, k, v twice (a swapped tile's are on their way) and o.
    Backward: x, o, dy, dx, do, what pre saved, q, k, v and their gradients. Sequence parallelism
    adds q, k, v and o once more, while they are exchanged.
    """
    model, parallel = workload.model, workload.parallel
    unit, saved = unit_bytes(workload), _kind_saved(workload, kind)
    h, f = model.hidden, kind.mlp_width * (1.0 if kind.gated else 0.6)
    qkv = _qkv_width(workload, kind)
    rotary = 2 * kind.head_dim * workload.dtype_bytes / (parallel.context * parallel.sequence)
    exchanged = (qkv + kind.o_width) * unit if parallel.sequence > 1 else 0.0
    gathered = 2 * parallel.tensor * h * unit if parallel.tensor > 1 else 0.0
    base = _weights_bytes(workload)
    forward = (2 * h + kind.o_width + 2 * qkv) * unit + rotary + saved.attention
    # What pre saved beyond two widths, as norms in fp32 do, waits for backward of all tiles too.
    more_pre = max(0.0, kind.pre_width - 2 * h)
    backward = (5 * h + more_pre + 2 * kind.o_width + 2 * qkv) * unit + rotary + saved.attention
    # A tile holds what post saves of it, which experts and norms in fp32 make more than widths say.
    tile = max(4 * f + 2 * h, kind.post_width - h)
    back_tile = max(4.5 * f + 9 * h, kind.post_width + 0.5 * f + 6 * h)
    loss = 7 * h * unit + rotary
    table_bytes = model.head_parameters / parallel.tensor * (4 + workload.dtype_bytes)
    logits = LOSS_TILE_TOKENS * model.vocab / parallel.tensor * _LOSS_TILE_BYTES
    return (
        _line("forward", base, tile * unit + gathered, forward + exchanged),
        _line("loss", table_bytes + logits, 6 * h * unit, loss),
        _line("backward", base, back_tile * unit + gathered, backward + exchanged),
    )


def _whole_lines(workload: Workload, kind: BlockKind, way: Way) -> tuple[PeakLine, ...]:
    """What one pass over a whole block holds besides the block's saved tensors.

    Backward of the MLP holds most: the gradients of its wide tensors, and with tensor
    parallelism the norm's output and its gradient for all tokens of the tensor ranks; dy and dx.
    Where blocks are checkpointed, their saved tensors are made again on top of that.
    """
    model, parallel = workload.model, workload.parallel
    unit, saved = unit_bytes(workload), _kind_saved(workload, kind)
    h, wide = model.hidden, (3 if kind.gated else 2) * kind.mlp_width
    gathered = 2 * parallel.tensor * h if parallel.tensor > 1 else h
    qkv, ring = _qkv_width(workload, kind), 2 * _kv_width(workload, kind)
    mlp = wide + gathered + 2 * h
    attention = qkv + kind.o_width + (ring if parallel.context > 1 else 0) + 3 * h
    if parallel.sequence > 1:
        attention += qkv + kind.o_width
    again = saved.all if way is Way.CHECKPOINTED else 0.0
    base = _weights_bytes(workload)
    logits = model.vocab * _LOGIT_BYTES / parallel.ranks_of_sequence
    transient = max(mlp, attention) * unit
    return (
        _line("forward", base, 0.0, transient),
        _line("loss", base, 0.0, logits + 2 * h * unit),
        _line("backward", base, 0.0, transient + again),
    )


def _weights_bytes(workload: Workload) -> float:
    """Of blocks whose parameters and gradients are whole while they run, where ZeRO splits them.

    This block's and the next one's parameters (stage 3), and this block's gradients (2 and 3).
    """
    parameters = workload.model.block_parameters / workload.parallel.tensor
    stage = workload.parallel.zero_stage
    gathered = 2 * parameters * workload.dtype_bytes if stage >= 3 else 0.0
    return gathered + (4 * parameters if stage >= 2 else 0.0)


def _line(name: str, base: float, per_tile_token: float, per_token: float) -> PeakLine:
    return PeakLine(
        name=name,
        base_bytes=base,
        bytes_per_tile_token=per_tile_token,
        bytes_per_token=per_token,
    )


ATTENTION_BACKWARD = 2.5
"""FLOPs of attention's backward over its forward: scores are made again. Source: FlashAttention-2,
section on benchmarks."""


def block_times(workload: Workload, hardware: Hardware, efficiency: Efficiency) -> BlockTimes:
    """Seconds of one block on one rank, the mean over all blocks.

    Matrix products take 2 FLOPs a parameter and token forward, twice that backward; attention
    2 FLOPs a pair of tokens and number of q and of o, forward. A windowed block's pairs grow with
    the length alone, so seconds are of the workload's length. Collectives of tensor parallelism are
    not hidden (of sequence parallelism: `exchange_of`); a ring's copies are, behind attention, as
    far as they fit.
    """
    kinds = workload.model.kinds
    times = [_kind_times(workload, kind, hardware, efficiency) for kind in kinds]
    counts, total = [kind.count for kind in kinds], workload.model.num_blocks
    # Of all blocks: seconds add up over a step, while bytes count where they are most.
    means = {
        f.name: sum(n * getattr(t, f.name) for n, t in zip(counts, times, strict=True)) / total
        for f in fields(BlockTimes)
    }
    return BlockTimes(**means)


def _kind_times(
    workload: Workload, kind: BlockKind, hardware: Hardware, efficiency: Efficiency
) -> BlockTimes:
    ranks, tokens = workload.parallel.ranks_of_sequence, workload.tokens
    linear_flops = hardware.peak_flops * efficiency.linear * ranks
    attention_flops = hardware.peak_flops * efficiency.attention_at(tokens) * ranks
    pre_s = 2 * kind.pre_parameters / linear_flops
    post_s = 2 * kind.post_parameters / linear_flops
    share = kind.pairs(tokens) / float(tokens) ** 2
    attention_s = 2 * (kind.q_width + kind.o_width) * share / attention_flops
    tensor_s = _tensor_s(workload, hardware)
    ring_s = _exposed_ring_s(workload, kind, hardware, attention_s)
    back_s = _exposed_ring_s(workload, kind, hardware, ATTENTION_BACKWARD * attention_s, copies=2)
    return BlockTimes(
        pre_s_per_token=pre_s + tensor_s + ring_s,
        post_s_per_token=post_s + 3 * tensor_s,
        attention_s_per_token2=attention_s,
        pre_backward_s_per_token=2 * pre_s + 2 * tensor_s + back_s,
        post_backward_s_per_token=2 * post_s + 4 * tensor_s,
        attention_backward_s_per_token2=ATTENTION_BACKWARD * attention_s,
        tile_overhead_s=efficiency.tile_overhead_s,
        tile_issue_s=efficiency.tile_issue_s,
    )


def outside_s(workload: Workload, hardware: Hardware, efficiency: Efficiency) -> float:
    """Seconds of head and loss, forward and backward, of one micro step on one rank."""
    model = workload.model
    flops = 6.0 * model.head_parameters * workload.tokens
    ranks = workload.parallel.ranks_of_sequence
    return flops / (hardware.peak_flops * efficiency.linear * ranks)


def _tensor_s(workload: Workload, hardware: Hardware) -> float:
    """Of one all-gather or reduce-scatter between tensor ranks, per token."""
    degree = workload.parallel.tensor
    moved = (degree - 1) * workload.model.hidden * unit_bytes(workload)
    return moved / _between(hardware, degree)


def exchange_of(workload: Workload, hardware: Hardware) -> Exchange | None:
    """The all-to-alls of q, k, v and o between sequence ranks, the mean over all blocks.

    Backward sends q, k, v and o again, and a gradient of each.
    """
    degree, kinds = workload.parallel.sequence, workload.model.kinds
    if degree == 1:
        return None
    numbers = [kind.count * (kind.o_width + _qkv_width(workload, kind)) for kind in kinds]
    mean = sum(numbers) / workload.model.num_blocks
    moved = (degree - 1) / degree * mean * unit_bytes(workload)
    return Exchange(
        way=f"{degree} ranks, ulysses",
        forward_bytes_per_token=moved,
        backward_bytes_per_token=2 * moved,
        bytes_per_s=_between(hardware, degree * workload.parallel.tensor),
    )


def _exposed_ring_s(
    workload: Workload, kind: BlockKind, hardware: Hardware, attention_s: float, copies: int = 1
) -> float:
    """Of k and v going round the ring of context ranks, what attention does not hide; per token."""
    degree = workload.parallel.context
    moved = copies * (degree - 1) * _kv_width(workload, kind) * unit_bytes(workload)
    ring_s = moved / _between(hardware, workload.parallel.ranks_of_sequence)
    return max(0.0, ring_s - attention_s * workload.tokens)


def _between(hardware: Hardware, ranks: int) -> float:
    """Bytes per second of the slowest way between so many neighbouring ranks."""
    within = ranks <= hardware.gpus_per_node
    return hardware.intra_node_bytes_per_s if within else hardware.inter_node_bytes_per_s


def analytic_profile(
    workload: Workload, hardware: Hardware, efficiency: Efficiency, way: Way = Way.TILED
) -> Profile:
    """The profile of one rank; a "token" is one of the whole sequence, of which it has a part.

    Bytes are counted, seconds follow from peak FLOP/s and efficiencies: predictions, not
    measurements. Blocks that run whole have no overhead of tiles.
    """
    saved = saved_bytes(workload)
    ranks = workload.ranks_on_node(hardware.gpus_per_node)
    return Profile(
        model=workload.model.name,
        model_hash=workload.model.digest(),
        device=hardware.name,
        batch=1,
        num_blocks=workload.model.num_blocks,
        state_bytes=workload.state_bytes,
        x_bytes_per_token=saved.x,
        o_bytes_per_token=saved.o,
        qkv_bytes_per_token=saved.qkv,
        attention_bytes_per_token=saved.attention,
        pre_bytes_per_token=saved.pre,
        post_bytes_per_token=saved.post,
        peaks=peak_lines(workload, way),
        times=block_times(
            workload,
            hardware,
            efficiency
            if way is Way.TILED
            else replace(efficiency, tile_overhead_s=0.0, tile_issue_s=0.0),
        ),
        link=hardware.link(ranks),
        exchange=exchange_of(workload, hardware),
    )


def rank_limits(workload: Workload, hardware: Hardware) -> Limits:
    """What one rank may use: a device's tensors, and its share of the node's host memory."""
    ranks = workload.ranks_on_node(hardware.gpus_per_node)
    return Limits(
        device_bytes=hardware.tensor_bytes, host_bytes=hardware.host_usable_bytes // ranks
    )
