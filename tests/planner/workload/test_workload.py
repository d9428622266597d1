"""Models, lengths, parallel degrees and state bytes, by hand (level 2: counts)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memo_planner.errors import InvalidInput
from memo_planner.hardware import PAPER, machine
from memo_planner.workload import (
    MODELS,
    ModelDims,
    Parallel,
    Workload,
    analytic_profile,
    format_tokens,
    model_named,
    parse_tokens,
)

M = 2**20


def test_parameters_of_known_models() -> None:
    assert MODELS["7b"].parameters == 32 * 12 * 4096**2 + 50257 * 4096
    assert MODELS["65b"].parameters == pytest.approx(64.8e9, rel=0.01)
    assert MODELS["llama-3-8b"].parameters == 8_030_261_248


def test_step_flops_give_the_papers_mfu_from_its_tokens_a_second() -> None:
    """MEMO, 7B at 1M tokens: 188.73 tokens a second and GPU are 52.30 % of 312 TFLOP/s."""
    flops_per_token = MODELS["7b"].step_flops(M) / M
    assert 188.73 * flops_per_token / 312e12 == pytest.approx(0.5230, abs=5e-4)


def test_unknown_models_and_files_that_are_not_there() -> None:
    with pytest.raises(InvalidInput, match="known: 7b"):
        model_named("9b")
    with pytest.raises(InvalidInput, match="cannot be read"):
        model_named("/nowhere/config.json")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("1", 1), ("64K", 65536), ("64k", 65536), ("1M", M), ("1.5M", 3 * M // 2), ("65,536", 65536)],
)
def test_lengths(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens
    assert parse_tokens(format_tokens(tokens)) == tokens


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1G", "nan", "1e6", "99999999999M", "0.3K"])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(InvalidInput, match="length"):
        parse_tokens(text)


def workload(**degrees: int) -> Workload:
    return Workload(model=MODELS["7b"], tokens=M, batch=16, parallel=Parallel(gpus=8, **degrees))


@pytest.mark.parametrize(
    ("degrees", "bytes_per_parameter"),
    [
        ({"tensor": 8}, 18 / 8),
        ({"tensor": 4, "context": 2}, 18 / 4),
        ({"tensor": 4, "context": 2, "zero_stage": 1}, (2 + 4 + 12 / 2) / 4),
        ({"sequence": 8, "zero_stage": 1}, 2 + 4 + 12 / 8),
        ({"sequence": 8, "zero_stage": 2}, 2 + 16 / 8),
        ({"sequence": 8, "zero_stage": 3}, 18 / 8),
        ({"zero_stage": 3}, 18 / 8),
    ],
)
def test_state_bytes_by_zero_stage(degrees: dict[str, int], bytes_per_parameter: float) -> None:
    expected = MODELS["7b"].parameters * bytes_per_parameter
    assert workload(**degrees).state_bytes == pytest.approx(expected, rel=1e-9)


def test_fp32_has_no_second_copy_of_the_parameters() -> None:
    alone = replace(workload(), dtype_bytes=4)
    assert alone.state_bytes == MODELS["7b"].parameters * (4 + 4 + 8)


def test_micro_steps_share_the_batch() -> None:
    assert workload(tensor=4, context=2).micro_steps == 16
    assert workload(tensor=4).micro_steps == 8
    assert workload().micro_steps == 2


@pytest.mark.parametrize(
    ("degrees", "message"),
    [
        ({"tensor": 3}, "whole number of times"),
        ({"tensor": 16}, "whole number of times"),
        ({"zero_stage": 4}, "zero_stage"),
        ({"tensor": 0}, "tensor"),
    ],
)
def test_degrees_that_do_not_fit(degrees: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Parallel(gpus=8, **degrees)


def test_heads_are_not_split() -> None:
    with pytest.raises(InvalidInput, match="32 heads cannot be split"):
        Workload(model=MODELS["7b"], tokens=M, batch=1, parallel=Parallel(gpus=64, sequence=64))


def test_dimensions_are_checked() -> None:
    with pytest.raises(InvalidInput, match=r"ModelDims\.vocab"):
        replace(MODELS["7b"], vocab=0)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ranks", "copies"),
    [
        (32, 8, 1, 1.0),
        (32, 8, 8, 1.0),
        (32, 8, 32, 4.0),  # each rank holds the one head that it reads, not a quarter of it
        (32, 8, 16, 2.0),
        (71, 1, 71, 71.0),
        (24, 6, 4, 4 * 2 / 6),  # the second rank's heads read two key-value heads
        (6, 3, 2, 2 * 2 / 3),
    ],
)
def test_key_value_heads_that_ranks_share_are_held_by_each(
    heads: int, kv_heads: int, ranks: int, copies: float
) -> None:
    kind = replace(MODELS["7b"].kinds[0], num_heads=heads, num_kv_heads=kv_heads)
    assert kind.kv_copies(ranks) == pytest.approx(copies)


def test_bytes_of_shared_key_value_heads() -> None:
    """32 sequence ranks over 8 key-value heads hold four copies, and 32 tensor ranks' matrices."""

    def job(**degrees: int) -> Workload:
        parallel = Parallel(gpus=32, **degrees)
        return Workload(model=MODELS["llama-3-8b"], tokens=M, batch=1, parallel=parallel)

    hardware = machine("h100-80g-x8")
    eight = analytic_profile(job(sequence=8), hardware, PAPER).qkv_bytes_per_token
    many = analytic_profile(job(sequence=32), hardware, PAPER).qkv_bytes_per_token
    assert eight == 2 * 128 * (32 + 2 * 8) / 8
    assert many == 2 * 128 * (32 + 2 * 8 * 4) / 32
    kv = 32 * 4096 * 2 * 8 * 128
    held = MODELS["llama-3-8b"].parameters + 3 * kv
    assert job(tensor=32).state_bytes == pytest.approx(18 * held / 32)


def test_a_window_is_what_its_blocks_attend_to() -> None:
    full = MODELS["llama-3-8b"].kinds[0]
    windowed = replace(full, window=4096)
    assert full.pairs(M) == M**2 / 2
    assert windowed.pairs(M) == 4096 * M - 4096**2 / 2
    assert windowed.pairs(1024) == full.pairs(1024)
    half = replace(
        MODELS["llama-3-8b"], kinds=(replace(full, count=16), replace(windowed, count=16))
    )

    def attention_s(model: ModelDims) -> float:
        asked = Workload(model=model, tokens=M, batch=1, parallel=Parallel(gpus=1))
        times = analytic_profile(asked, machine("h100-80g-x8"), PAPER).times
        return times.attention_s_per_token2

    share = (1 + 2 * windowed.pairs(M) / M**2) / 2
    assert attention_s(half) == pytest.approx(share * attention_s(MODELS["llama-3-8b"]))
    saved = 6 * 16 * 2 * 4096 * (full.pairs(M) - windowed.pairs(M))
    assert MODELS["llama-3-8b"].step_flops(M) - half.step_flops(M) == pytest.approx(saved)


def test_tokens_are_padded_to_equal_parts_and_that_is_said() -> None:
    asked = Workload(
        model=MODELS["7b"], tokens=100_001, batch=1, parallel=Parallel(gpus=8, sequence=8)
    )
    assert asked.padded_tokens == 100_008
    assert "100,001 tokens padded to 100,008, a multiple of 8 ranks" in asked.described()
    assert "padded" not in asked.with_tokens(100_000).described()


def test_a_table_of_positions_ends_a_sequence() -> None:
    model = replace(MODELS["7b"], max_tokens=2048)
    Workload(model=model, tokens=2048, batch=1, parallel=Parallel(gpus=1))
    with pytest.raises(InvalidInput, match="table of positions has 2,048 rows"):
        Workload(model=model, tokens=2049, batch=1, parallel=Parallel(gpus=1))
