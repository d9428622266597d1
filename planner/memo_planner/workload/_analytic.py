"""A profile from a model's dimensions and a machine's figures, where nothing can be measured.

Bytes are counted from the dimensions; seconds follow from FLOPs, efficiencies and collectives.
Everything is of one rank and one token of the whole sequence: a rank holds one part in
`ranks_of_sequence` of every activation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from memo_planner.hardware import Efficiency, Hardware
from memo_planner.limits import Limits
from memo_planner.profile import BlockTimes, PeakLine, Profile
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
    """What one block saves. Source: MEMO, skeletal activations (16 h a token for a GPT).

    Unfused norms save one more h before attention and after it, and a gated MLP saves gate, up,
    act(gate) and their product, as PyTorch's operations do.
    """
    model, unit = workload.model, unit_bytes(workload)
    extra = 0 if model.fused else 1
    wide = 4 if model.gated else 2
    return Saved(
        x=model.hidden * unit,
        o=model.q_width * unit,
        qkv=(model.q_width + 2 * model.kv_width) * unit,
        attention=4 * model.num_heads / workload.parallel.ranks_of_sequence,
        pre=(1 + extra) * model.hidden * unit,
        post=((2 + extra) * model.hidden + wide * model.ffn) * unit,
    )


def unit_bytes(workload: Workload) -> float:
    """Bytes of one number of one token on one rank."""
    return workload.dtype_bytes / workload.parallel.ranks_of_sequence


def peak_lines(workload: Workload, way: Way) -> tuple[PeakLine, ...]:
    """Device bytes at each point of the step, with nothing kept."""
    return _tiled_lines(workload) if way is Way.TILED else _whole_lines(workload, way)


def _tiled_lines(workload: Workload) -> tuple[PeakLine, ...]:
    """What the tiled runtime holds: counted there, and equal to its measured profiles.

    Forward: x, the last block's y, q, k, v twice (a swapped tile's are on their way) and o.
    Backward: x, o, dy, dx, do, what pre saved, q, k, v and their gradients. Sequence parallelism
    adds q, k, v and o once more, while they are exchanged.
    """
    model, parallel = workload.model, workload.parallel
    unit, saved = unit_bytes(workload), saved_bytes(workload)
    h, f = model.hidden, model.ffn * (1.0 if model.gated else 0.6)
    qkv = model.q_width + 2 * model.kv_width
    rotary = 2 * model.head_dim * workload.dtype_bytes / (parallel.context * parallel.sequence)
    exchanged = (qkv + model.q_width) * unit if parallel.sequence > 1 else 0.0
    gathered = 2 * parallel.tensor * h * unit if parallel.tensor > 1 else 0.0
    base = _weights_bytes(workload)
    forward = (2 * h + model.q_width + 2 * qkv) * unit + rotary + saved.attention
    backward = (5 * h + 2 * model.q_width + 2 * qkv) * unit + rotary + saved.attention
    loss = 7 * h * unit + rotary
    table_bytes = model.hidden * model.vocab / parallel.tensor * (4 + workload.dtype_bytes)
    logits = LOSS_TILE_TOKENS * model.vocab / parallel.tensor * _LOSS_TILE_BYTES
    return (
        _line("forward", base, (4 * f + 2 * h) * unit + gathered, forward + exchanged),
        _line("loss", table_bytes + logits, 6 * h * unit, loss),
        _line("backward", base, (4.5 * f + 9 * h) * unit + gathered, backward + exchanged),
    )


def _whole_lines(workload: Workload, way: Way) -> tuple[PeakLine, ...]:
    """What one pass over a whole block holds besides the block's saved tensors.

    Backward of the MLP holds most: the gradients of its wide tensors, and with tensor
    parallelism the norm's output and its gradient for all tokens of the tensor ranks; dy and dx.
    Where blocks are checkpointed, their saved tensors are made again on top of that.
    """
    model, parallel = workload.model, workload.parallel
    unit, saved = unit_bytes(workload), saved_bytes(workload)
    h, wide = model.hidden, (3 if model.gated else 2) * model.ffn
    gathered = 2 * parallel.tensor * h if parallel.tensor > 1 else h
    qkv = model.q_width + 2 * model.kv_width
    mlp = wide + gathered + 2 * h
    attention = qkv + model.q_width + (4 * model.kv_width if parallel.context > 1 else 0) + 3 * h
    if parallel.sequence > 1:
        attention += qkv + model.q_width
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
    """Seconds of one block on one rank.

    Matrix products take 2 FLOPs a parameter and token forward, twice that backward; causal
    attention 2 FLOPs a pair of tokens and number of q, forward. Collectives of tensor and
    sequence parallelism are not hidden; a ring's copies are, behind attention, as far as they fit.
    """
    model, ranks = workload.model, workload.parallel.ranks_of_sequence
    linear_flops = hardware.peak_flops * efficiency.linear * ranks
    attention_flops = hardware.peak_flops * efficiency.attention * ranks
    pre_s = 2 * model.pre_parameters / linear_flops
    post_s = 2 * model.post_parameters / linear_flops
    attention_s = 2 * model.q_width / attention_flops
    tensor_s = _tensor_s(workload, hardware)
    exchange_s = _exchange_s(workload, hardware)
    ring_s = _exposed_ring_s(workload, hardware, attention_s)
    back_s = _exposed_ring_s(workload, hardware, ATTENTION_BACKWARD * attention_s, copies=2)
    return BlockTimes(
        pre_s_per_token=pre_s + tensor_s + exchange_s + ring_s,
        post_s_per_token=post_s + 3 * tensor_s,
        attention_s_per_token2=attention_s,
        pre_backward_s_per_token=2 * pre_s + 2 * tensor_s + 2 * exchange_s + back_s,
        post_backward_s_per_token=2 * post_s + 4 * tensor_s,
        attention_backward_s_per_token2=ATTENTION_BACKWARD * attention_s,
        tile_overhead_s=efficiency.tile_overhead_s,
    )


def outside_s(workload: Workload, hardware: Hardware, efficiency: Efficiency) -> float:
    """Seconds of head and loss, forward and backward, of one micro step on one rank."""
    model = workload.model
    flops = 6.0 * model.vocab * model.hidden * workload.tokens
    ranks = workload.parallel.ranks_of_sequence
    return flops / (hardware.peak_flops * efficiency.linear * ranks)


def _tensor_s(workload: Workload, hardware: Hardware) -> float:
    """Of one all-gather or reduce-scatter between tensor ranks, per token."""
    degree = workload.parallel.tensor
    moved = (degree - 1) * workload.model.hidden * unit_bytes(workload)
    return moved / _between(hardware, degree)


def _exchange_s(workload: Workload, hardware: Hardware) -> float:
    """Of the all-to-alls of q, k, v and o between sequence ranks, per token."""
    model, degree = workload.model, workload.parallel.sequence
    numbers = 2 * model.q_width + 2 * model.kv_width
    moved = (degree - 1) / degree * numbers * unit_bytes(workload)
    return moved / _between(hardware, degree * workload.parallel.tensor)


def _exposed_ring_s(
    workload: Workload, hardware: Hardware, attention_s: float, copies: int = 1
) -> float:
    """Of k and v going round the ring of context ranks, what attention does not hide; per token."""
    degree = workload.parallel.context
    moved = copies * (degree - 1) * 2 * workload.model.kv_width * unit_bytes(workload)
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
            efficiency if way is Way.TILED else replace(efficiency, tile_overhead_s=0.0),
        ),
        link=hardware.link(ranks),
    )


def rank_limits(workload: Workload, hardware: Hardware) -> Limits:
    """What one rank may use: a device's tensors, and its share of the node's host memory."""
    ranks = workload.ranks_on_node(hardware.gpus_per_node)
    return Limits(
        device_bytes=hardware.tensor_bytes, host_bytes=hardware.host_usable_bytes // ranks
    )
