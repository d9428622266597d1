"""Seconds of a block's parts, from FLOPs, efficiencies and collectives."""

from __future__ import annotations

from memo_planner.hardware.efficiency import Efficiency
from memo_planner.hardware.machine import Hardware
from memo_planner.profile import BlockTimes
from memo_planner.workload.volumes import unit_bytes
from memo_planner.workload.workload import Workload

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
