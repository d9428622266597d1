"""A config.json read without torch: sure layouts exactly, all else refused by name (level 2)."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memo_planner.errors import InvalidInput
from memo_planner.workload import model_named

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


def test_llama_by_its_fields_is_exact(tmp_path: Path) -> None:
    model = model_named(written(tmp_path, LLAMA), by_fields=True)
    assert model.parameters == model.active_parameters == 8_030_261_248
    assert (model.num_blocks, model.num_heads, model.kinds[0].num_kv_heads) == (32, 32, 8)
    assert model_named(str(tmp_path), by_fields=True) == model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma3_text"}, "model_type 'gemma3_text' is not planned without torch"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\]"),
        ({"text_config": {"hidden_size": 8}}, "field text_config"),
        ({"num_local_experts": 8}, "field num_local_experts is 8"),
        ({"state_size": 16}, "field state_size"),
        ({"partial_rotary_factor": 0.5}, "field partial_rotary_factor"),
        ({"sliding_window": 4096}, "field sliding_window"),
        ({"layer_types": ["sliding_attention"]}, "layer_types has 'sliding_attention'"),
        ({"layer_types": 3}, "layer_types has 3"),
        ({"num_key_value_heads": None}, "has no num_key_value_heads"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"hidden_size": "big"}, "hidden_size is 'big'"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_attention_heads": 31}, "no multiple"),
        ({"num_key_value_heads": 5}, "must be a multiple"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"model_type": "mistral"}, "has no sliding_window"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window is true"),
        ({"model_type": "phi3", "resid_pdrop": 0.1}, "resid_pdrop is 0.1"),
    ],
)
def test_what_is_not_sure_is_refused_by_name(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as refusal:
        model_named(written(tmp_path, {**LLAMA, **change}), by_fields=True)
    assert "config.json" in str(refusal.value)


def test_without_transformers_a_file_is_read_by_its_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert model_named(written(tmp_path, LLAMA)).parameters == 8_030_261_248
    with pytest.raises(InvalidInput, match="install torch and Transformers"):
        model_named(written(tmp_path, {**LLAMA, "model_type": "falcon"}))


@pytest.mark.parametrize("by_fields", [True, False])
@pytest.mark.parametrize("text", ["", "[]", "{", "{}", "[" * 100_000, '"x"'])
def test_files_that_are_no_config(tmp_path: Path, text: str, by_fields: bool) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json"):
        model_named(written(tmp_path, text), by_fields=by_fields)


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
        path = written(tmp_path, {**LLAMA, **change})
        assert model_named(path, by_fields=True).parameters > 0
