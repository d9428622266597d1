"""Counted profiles: the paper's 16 h, and what the runtime really holds (level 2: counts)."""

from __future__ import annotations

import pytest
import torch

import memo_train
from memo_planner import Profile
from memo_planner.hardware import PAPER, machine
from memo_planner.profile import POINTS
from memo_planner.workload import (
    MODELS,
    ModelDims,
    Parallel,
    Way,
    Workload,
    analytic_profile,
)
from memo_planner.workload._model import SEPARATE_NORMS, DenseBlocks
from memo_train.model import Llama, LlamaConfig
from memo_train.trace._fit import _HOLES_OF_TILES, HOLES_OF_TENSORS

M = 2**20
HIDDEN = 256
NUM_BLOCKS = 3
_CLOSE = {"forward": 0.02, "loss": 0.2, "backward": 0.02}


def test_a_gpt_block_saves_16_hidden_numbers_a_token() -> None:
    """MEMO, skeletal activations: 4096 GB for 7B at 1M tokens, in bf16, over all blocks."""
    workload = Workload(model=MODELS["7b"], tokens=M, batch=16, parallel=Parallel(gpus=1))
    profile = analytic_profile(workload, machine("a800-80g-x8"), PAPER, Way.WHOLE)
    per_token = profile.tile_bytes_per_token + profile.x_bytes_per_token
    per_token += profile.o_bytes_per_token
    assert per_token == 16 * 4096 * 2
    assert per_token * M * 32 == 4096 * 2**30
    assert profile.attention_bytes_per_token == 4 * 32


def test_every_rank_holds_its_part() -> None:
    def profile(**degrees: int) -> Profile:
        parallel = Parallel(gpus=8, zero_stage=3, **degrees)
        workload = Workload(model=MODELS["llama-3-8b"], tokens=M, batch=1, parallel=parallel)
        return analytic_profile(workload, machine("h100-80g-x8"), PAPER)

    whole, part = profile(), profile(sequence=8)
    assert part.tile_bytes_per_token == whole.tile_bytes_per_token / 8
    assert part.x_bytes_per_token == whole.x_bytes_per_token / 8
    assert part.times.attention_s_per_token2 == whole.times.attention_s_per_token2 / 8
    assert part.state_bytes == whole.state_bytes


def test_collectives_cost_time_and_a_slower_way_more() -> None:
    def pre_s(hardware_name: str, **degrees: int) -> float:
        """Of pre, and of what crosses before and behind attention."""
        parallel = Parallel(gpus=64, **degrees)
        workload = Workload(model=MODELS["65b"], tokens=M, batch=1, parallel=parallel)
        hardware = machine(hardware_name)
        ranks = parallel.ranks_of_sequence
        profile = analytic_profile(workload, hardware, PAPER)
        crosses_s = profile.exchange.forward_s_per_token if profile.exchange else 0.0
        return (profile.times.pre_s_per_token + crosses_s) * ranks

    alone = pre_s("a800-80g-x8")
    within, beyond = pre_s("a800-80g-x8", sequence=8), pre_s("a800-80g-x8", sequence=16)
    assert alone < within < beyond
    assert alone < pre_s("a800-80g-x8", tensor=2) < pre_s("a800-80g-x8", tensor=8)


@pytest.fixture(scope="module", params=[(4, 4), (2, 1)], ids=["mha", "gqa"])
def both(request: pytest.FixtureRequest) -> tuple[Profile, Profile]:
    """The measured and the counted profile of one small Llama in fp32."""
    ffn_per_hidden, num_kv_heads = request.param
    config = LlamaConfig(
        vocab_size=512,
        num_blocks=NUM_BLOCKS,
        hidden_size=HIDDEN,
        ffn_size=ffn_per_hidden * HIDDEN,
        num_heads=4,
        num_kv_heads=num_kv_heads,
    )
    torch.manual_seed(0)
    model = memo_train.wrap(Llama(config), seq_len=4096, device_gib=2.0)
    measured = memo_train.plan(model).profile
    memo_train.unwrap(model)
    blocks = DenseBlocks(
        num_blocks=NUM_BLOCKS,
        hidden=HIDDEN,
        ffn=ffn_per_hidden * HIDDEN,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        head_dim=HIDDEN // 4,
        gated=True,
        norm_widths=SEPARATE_NORMS,
    )
    dims = ModelDims(
        name="small",
        hidden=HIDDEN,
        vocab=512,
        tied=False,
        kinds=(blocks.kind(),),
        other_parameters=2 * 512 * HIDDEN,
        head_parameters=512 * HIDDEN,
    )
    workload = Workload(model=dims, tokens=4096, batch=1, parallel=Parallel(gpus=1), dtype_bytes=4)
    return measured, analytic_profile(workload, machine("cpu"), PAPER)


def test_counted_saved_bytes_are_the_measured_ones(both: tuple[Profile, Profile]) -> None:
    measured, counted = both
    for name in ("x", "o", "qkv", "attention", "pre", "post"):
        field = f"{name}_bytes_per_token"
        expected = getattr(measured, field)
        assert getattr(counted, field) == pytest.approx(expected, rel=0.01, abs=16), name


def test_counted_peaks_are_the_measured_ones(both: tuple[Profile, Profile]) -> None:
    """Per token of the sequence within 2 %, at the loss within 20 %: more or fewer copies of the
    last block are on their way then. Per token of a tile no less, and at most 1.7 times."""
    measured, counted = both
    for point in POINTS:
        lines = [line for line in measured.peaks if line.name == point]
        tokens = max(line.bytes_per_token for line in lines) / HOLES_OF_TENSORS.of_tokens
        tile = max(line.bytes_per_tile_token for line in lines) / _HOLES_OF_TILES
        line = next(line for line in counted.peaks if line.name == point)
        assert line.bytes_per_token == pytest.approx(tokens, rel=_CLOSE[point]), point
        assert 0.98 * tile <= line.bytes_per_tile_token <= 1.7 * tile, point


def test_counted_state_is_the_measured_state(both: tuple[Profile, Profile]) -> None:
    measured, counted = both
    assert counted.state_bytes == pytest.approx(measured.state_bytes, rel=0.01)
