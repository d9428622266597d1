"""A measured profile in a file of its own, with FLOPs and the link under load."""

from __future__ import annotations

from memo_planner.trace.profile_file import ProfileFile, ProfileSource
from memo_train.runtime.wrapped import WrappedModel
from memo_train.trace.block_flops import count_block_flops
from memo_train.trace.link import measure_link_rates
from memo_train.trace.profile import LONGEST_PROFILED_TOKENS, measure_profile


def measure_profile_file(
    wrapped: WrappedModel, batch: int, tokens: int, *, park_pre: bool = False
) -> ProfileFile:
    """`measure_profile`, and what a planner for a whole node wants to know besides.

    With torch.distributed initialised this is a collective call: all ranks must make it.
    """
    profile = measure_profile(wrapped, batch, tokens, park_pre=park_pre)
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
