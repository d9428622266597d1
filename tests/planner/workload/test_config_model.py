"""A config.json read with Transformers: the real model's counts, kinds and widths (level 2)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import memo_train
from memo_planner.errors import InvalidInput
from memo_planner.workload import ModelDims, Parallel, Workload, model_named

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
FULL_AND_WINDOWED = ["sliding_attention", "full_attention"] * 2
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 24, "attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 128},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "phi3": {"pad_token_id": 0},
    "olmo2": {},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "layer_types": FULL_AND_WINDOWED},
    "gemma3_text": {"head_dim": 32, "layer_types": FULL_AND_WINDOWED},
    "cohere": {},
    "glm": {"head_dim": 16, "pad_token_id": 0},
    "starcoder2": {},
    "stablelm": {},
    "gpt_neox": {},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 4},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 160},
    "falcon": {"multi_query": True, "new_decoder_architecture": False},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gpt_oss": {"num_local_experts": 8, "head_dim": 16, "layer_types": FULL_AND_WINDOWED},
}
"""Model type -> fields beside `SMALL`."""


def written(tmp_path: Path, config: Any) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def small(model_type: str, **change: Any) -> dict[str, Any]:
    return {"model_type": model_type, **SMALL, **FAMILIES.get(model_type, {}), **change}


def on_meta(config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        known = transformers.AutoConfig.for_model(**config)
        return transformers.AutoModelForCausalLM.from_config(known)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_counts_are_the_models_own(tmp_path: Path, model_type: str) -> None:
    config = small(model_type)
    read, model = model_named(written(tmp_path, config)), on_meta(config)
    assert read.parameters == sum(p.numel() for p in model.parameters())
    assert read.num_blocks == 4
    assert read.vocab == 512
    assert read.tied == (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    assert all(kind.num_heads == 4 for kind in read.kinds)


@pytest.mark.parametrize("dtype_bytes", [2, 4])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "phi3"])
def test_sure_layouts_by_fields_are_those_of_the_model(
    tmp_path: Path, model_type: str, dtype_bytes: int
) -> None:
    """A norm's scale of a token, 4 bytes, is all that the fields leave out."""
    path = written(tmp_path, small(model_type, hidden_size=256))
    fields = model_named(path, by_fields=True, dtype_bytes=dtype_bytes)
    traced = model_named(path, dtype_bytes=dtype_bytes)
    (mine,), (theirs,) = fields.kinds, traced.kinds
    assert fields.parameters == traced.parameters
    assert fields.head_parameters == traced.head_parameters
    for name in ("parameters", "pre_parameters", "post_parameters", "mlp_width", "window"):
        assert getattr(mine, name) == getattr(theirs, name), name
    assert (mine.q_width, mine.kv_width, mine.o_width) == (
        theirs.q_width,
        theirs.kv_width,
        theirs.o_width,
    )
    if model_type == "llama":  # biases add nothing either
        assert mine.pre_width == pytest.approx(theirs.pre_width, abs=2)
        assert mine.post_width == pytest.approx(theirs.post_width, abs=2)


def test_saved_bytes_are_those_that_wrap_measures(tmp_path: Path) -> None:
    config = small("gemma2", layer_types=["full_attention"] * 2, num_hidden_layers=2)
    read = model_named(written(tmp_path, config), dtype_bytes=4)
    torch.manual_seed(0)
    known = transformers.AutoConfig.for_model(**config)
    model = transformers.AutoModelForCausalLM.from_config(known, dtype=torch.float32)
    wrapped = memo_train.wrap(model, seq_len=512, device_gib=1.0)
    measured = memo_train.plan(wrapped).profile
    memo_train.unwrap(wrapped)
    (kind,) = read.kinds
    assert 4 * kind.pre_width == pytest.approx(measured.pre_bytes_per_token, rel=0.01)
    assert 4 * kind.post_width == pytest.approx(measured.post_bytes_per_token, rel=0.01)


def test_windows_are_those_of_each_block(tmp_path: Path) -> None:
    read = model_named(written(tmp_path, small("gemma3_text", sliding_window=96)))
    assert [(kind.count, kind.window) for kind in read.kinds] == [(2, 96), (2, None)]
    mistral = model_named(written(tmp_path, small("mistral")))
    assert [kind.window for kind in mistral.kinds] == [128]


def test_experts_count_as_balanced_routing_has_them(tmp_path: Path) -> None:
    """Per token two of eight experts of three matrices, the router, and attention."""
    (kind,) = model_named(written(tmp_path, small("mixtral"))).kinds
    expert, router, attention = 3 * 64 * 160, 8 * 64, 64 * (64 + 2 * 32) + 64 * 64
    assert kind.parameters == 8 * expert + router + attention + 2 * 64
    assert kind.active_parameters == kind.parameters - 6 * expert
    assert kind.pre_parameters + kind.post_parameters == attention + 2 * expert + router
    dense = model_named(written(tmp_path, small("mistral"))).kinds[0]
    assert kind.post_width > 2 * 4 * 160 > 4 * 160 < dense.post_width < kind.post_width


def test_dense_blocks_first_are_a_kind_of_their_own(tmp_path: Path) -> None:
    config = small("qwen3_moe", mlp_only_layers=[0])
    read = model_named(written(tmp_path, config))
    assert [(kind.count, kind.name) for kind in read.kinds] == [
        (1, "attention"),
        (3, "attention, experts"),
    ]


def test_the_part_for_text_is_tied_as_the_whole_is(tmp_path: Path) -> None:
    text = small("gemma3_text")
    for tied in (True, False):
        whole = {"model_type": "gemma3", "text_config": text, "tie_word_embeddings": tied}
        read = model_named(written(tmp_path, whole))
        assert read.tied is tied
        assert read.other_parameters == (1 if tied else 2) * 512 * 64 + 64
    quantised = {**text, "quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}
    assert model_named(written(tmp_path, quantised)).kinds == read.kinds


def hybrid() -> dict[str, Any]:
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    widths = {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "head_dim": 16}
    types = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
    return small("qwen3_5_text", layer_types=types, **linear, **widths)


def planned(model: ModelDims, tokens: int = 1024) -> Workload:
    return Workload(model=model, tokens=tokens, batch=1, parallel=Parallel(gpus=1))


def test_blocks_without_a_cut_are_counted_and_not_planned(tmp_path: Path) -> None:
    read = model_named(written(tmp_path, hybrid()))
    assert [(kind.count, kind.attends) for kind in read.kinds] == [(3, False), (1, True)]
    with pytest.raises(InvalidInput, match="of 4 blocks, 3 x linear_attention mix tokens"):
        planned(read)
    eager = model_named(written(tmp_path, {"model_type": "gpt_neo", "vocab_size": 512}))
    with pytest.raises(InvalidInput, match="24 x GPTNeoBlock"):
        planned(eager)


def test_a_table_of_positions_is_seen(tmp_path: Path) -> None:
    read = model_named(written(tmp_path, small("opt", max_position_embeddings=256)))
    assert read.max_tokens == 256
    with pytest.raises(InvalidInput, match="table of positions has 256 rows"):
        planned(read, tokens=257)
    assert model_named(written(tmp_path, small("llama"))).max_tokens is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "no_such_model"}, "'no_such_model' is not one of Transformers"),
        ({}, "model_type None"),
        ({"model_type": "t5"}, "t5"),
        (small("llama", num_attention_heads=0), "llama"),
        (small("llama", hidden_size="wide"), "llama"),
        (small("llama", num_hidden_layers=10**9), "at most 1,000"),
        ({"model_type": "bert", "vocab_size": 512}, "attends to later tokens too"),
        ({"model_type": "blt"}, "blt"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as refusal:
        model_named(written(tmp_path, config))
    assert "config.json" in str(refusal.value)
