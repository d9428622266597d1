"""A profile from dimensions and a machine's figures, where nothing can be measured."""

from __future__ import annotations

from dataclasses import replace

from memo_planner.hardware.efficiency import Efficiency
from memo_planner.hardware.machine import Hardware
from memo_planner.limits import Limits
from memo_planner.profile import Profile
from memo_planner.workload.speeds import block_times
from memo_planner.workload.volumes import Way, peak_lines, saved_bytes
from memo_planner.workload.workload import Workload


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
