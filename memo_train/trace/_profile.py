"""The profile of a wrapped model on its device, for the planner. Source: MEMO §profiler.

A measured profile in a file of its own, with FLOPs and the link under load.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict

from torch import nn

from memo_planner.policy import TilePlace
from memo_planner.profile import POINTS, Profile
from memo_planner.trace import ProfileFile, ProfileSource
from memo_train.runtime import HowToRun, WrappedModel, kept_model, preserved_rng
from memo_train.trace._fit import fit_block_times, fit_peak_lines, with_prefetch
from memo_train.trace._flops import count_block_flops
from memo_train.trace._link import measure_link, measure_link_rates
from memo_train.trace._steps import Way, measure_saved, measure_shapes, only_block

OPTIMIZER_STATES = 2
"""AdamW's moments, each as large as the parameters it trains."""

_TILE_TOKENS = 128
"""Eight tiles of it: long enough that attention kernels use their largest work space, which
changes at a few hundred tokens and would otherwise look like bytes per token."""

LONGEST_PROFILED_TOKENS = 16 * _TILE_TOKENS
"""No profiling step is longer."""


def measure_profile(
    wrapped: WrappedModel, batch: int, tokens: int, *, park_pre: bool = False
) -> Profile:
    """Profile one block of an installed `wrapped` for steps of `batch` sequences of `tokens`.

    park_pre: as in `StepPolicy`.
    Runs at most 16 tiles of at most 128 tokens and never beyond `tokens`. Bytes are exact,
    seconds the best of three runs. Where some blocks are not tiled, one of them adds its peaks.
    """
    tile = min(_TILE_TOKENS, max(tokens // 16, 1))
    tiled = [i for i, v in enumerate(wrapped.verdicts) if v.how is HowToRun.TILED]
    others = [i for i, v in enumerate(wrapped.verdicts) if v.how is not HowToRun.TILED]
    first = (tiled or others)[0]
    recompute = Way(place=TilePlace.RECOMPUTE, park_pre=park_pre)
    swap = Way(place=TilePlace.SWAP, park_pre=park_pre)
    kept = kept_model(wrapped.parts.causal_lm, wrapped.parts.blocks)
    with kept, preserved_rng(wrapped.device.generators):
        with only_block(wrapped, first):
            saved = asdict(measure_saved(wrapped, batch, 4 * tile))
            recomputed = measure_shapes(wrapped, batch, tile, recompute)
            swapped = measure_shapes(wrapped, batch, tile, swap)
        fetched = (saved["qkv"] + saved["o"]) / (4 * tile)
        peaks = fit_peak_lines(with_prefetch(recomputed, fetched), POINTS)
        peaks += fit_peak_lines(swapped, ("forward",))
        if tiled and others:
            with only_block(wrapped, others[0]):
                whole = measure_shapes(wrapped, batch, tile, recompute)
            peaks += fit_peak_lines(whole, ("loss",))
    per_token = {name: value / (4 * tile) for name, value in saved.items()}
    causal_lm = wrapped.parts.causal_lm
    return Profile(
        model=type(causal_lm).__name__,
        model_hash=model_hash(causal_lm),
        device=wrapped.device.torch_device.type,
        batch=batch,
        num_blocks=len(wrapped.parts.blocks),
        state_bytes=state_bytes(causal_lm),
        x_bytes_per_token=per_token["x"],
        o_bytes_per_token=per_token["o"],
        qkv_bytes_per_token=per_token["qkv"],
        attention_bytes_per_token=per_token["attention"],
        pre_bytes_per_token=per_token["pre"],
        post_bytes_per_token=per_token["post"],
        peaks=peaks,
        times=fit_block_times(recomputed, swapped),
        link=measure_link(wrapped.device),
    )


def state_bytes(model: nn.Module) -> int:
    """Parameters, buffers, gradients and AdamW's moments, in bytes."""
    parameters = list(model.parameters())
    trained = sum(p.nbytes for p in parameters if p.requires_grad)
    resident = sum(t.nbytes for t in (*parameters, *model.buffers()))
    return resident + (1 + OPTIMIZER_STATES) * trained


def model_hash(model: nn.Module) -> str:
    """sha256 of the model's class and of its parameters' names, shapes, dtypes and training."""
    rows = [
        f"{n} {tuple(p.shape)} {p.dtype} {p.requires_grad}" for n, p in model.named_parameters()
    ]
    return hashlib.sha256("\n".join([type(model).__name__, *rows]).encode()).hexdigest()


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
