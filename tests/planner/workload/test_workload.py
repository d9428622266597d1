"""Models, lengths, parallel degrees and state bytes, by hand (level 2: counts)."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memo_planner.errors import InvalidInput
from memo_planner.workload import (
    MODELS,
    ModelDims,
    Parallel,
    Workload,
    format_tokens,
    model_named,
    parse_tokens,
)

M = 2**20
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def written(tmp_path: Path, config: Any) -> str:
    path = tmp_path / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return str(path)


def test_parameters_of_known_models() -> None:
    assert MODELS["7b"].parameters == 32 * 12 * 4096**2 + 50257 * 4096
    assert MODELS["65b"].parameters == pytest.approx(64.8e9, rel=0.01)
    assert MODELS["llama-3-8b"].parameters == pytest.approx(8_030_261_248, rel=1e-3)


def test_step_flops_give_the_papers_mfu_from_its_tokens_a_second() -> None:
    """MEMO, 7B at 1M tokens: 188.73 tokens a second and GPU are 52.30 % of 312 TFLOP/s."""
    flops_per_token = MODELS["7b"].step_flops(M) / M
    assert 188.73 * flops_per_token / 312e12 == pytest.approx(0.5230, abs=5e-4)


def test_llama_from_its_config_is_the_named_one(tmp_path: Path) -> None:
    from_file = model_named(written(tmp_path, LLAMA))
    assert replace(from_file, name="llama-3-8b") == MODELS["llama-3-8b"]
    assert replace(model_named(str(tmp_path)), name="llama-3-8b") == MODELS["llama-3-8b"]


def test_gpt2_from_its_config(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None}
    config |= {"vocab_size": 50257, "activation_function": "gelu_new"}
    model = model_named(written(tmp_path, config))
    assert (model.ffn, model.num_kv_heads, model.gated, model.tied) == (3072, 12, False, True)
    assert model.parameters == pytest.approx(124e6, rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"hidden_size": None}, "has none of hidden_size"),
        ({"hidden_size": "big"}, "hidden_size is 'big'"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_attention_heads": 31}, "no multiple"),
        ({"num_key_value_heads": 5}, "must be a multiple"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"state_size": 16}, "state-space"),
    ],
)
def test_configs_that_are_not_planned(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as refusal:
        model_named(written(tmp_path, {**LLAMA, **change}))
    assert "config.json" in str(refusal.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '"x"'])
def test_files_that_are_no_config(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json"):
        model_named(written(tmp_path, text))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
_NAMES = st.sampled_from([*LLAMA, "head_dim", "text_config", "num_experts", "_name_or_path"])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(_NAMES, _JSON, max_size=3))
def test_any_config_is_a_model_or_a_clear_error(tmp_path: Path, change: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidInput):
        assert model_named(written(tmp_path, {**LLAMA, **change})).parameters > 0


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
        ModelDims(**{**MODELS["7b"].__dict__, "vocab": 0})
