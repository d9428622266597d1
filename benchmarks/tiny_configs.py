"""Tiny configurations of Transformers' causal-LM families, made by the names of their fields."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB_SIZE = 199
MOST_PARAMETERS = 4_000_000

_BY_VALUE: dict[Any, tuple[str, ...]] = {
    VOCAB_SIZE: (
        "vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size "
        "ngram_vocab_size_base pronunciation_vocab_size shape_vocab_size",
    ),
    64: (
        "hidden_size n_embd d_model dim_model embedding_dim emb_dim attention_hidden_size "
        "embedding_size word_embed_proj_dim lru_width input_embedding_size output_embedding_size "
        "pronunciation_embed_dim shape_embed_dim moe_latent_size ple_embed_dim",
    ),
    96: (
        "intermediate_size ffn_dim ffn_hidden_size decoder_ffn_dim encoder_ffn_dim dim_ff dff "
        "n_inner d_inner feed_forward_size shared_intermediate_size intermediate_size_mlp "
        "dense_intermediate_size",
    ),
    48: (
        "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
        "shared_experts_intermediate_size moe_shared_expert_intermediate_size",
    ),
    4: (
        "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers "
        "num_encoder_layers num_decoder_layers num_blocks num_attention_heads n_head n_heads "
        "num_heads decoder_attention_heads encoder_attention_heads attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads "
        "num_experts n_routed_experts num_local_experts moe_num_experts linear_num_value_heads "
        "linear_num_heads linear_num_key_heads index_n_heads conv_kernel_size num_mem_blocks "
        "mamba_dt_rank time_step_rank zero_expert_num num_query_groups heads_per_ngram "
        "split_ngram_parts hc_lowrank gated_norm_rank loop_gate_rank adapter_rank laurel_rank",
    ),
    2: (
        "num_key_value_heads num_kv_heads swa_num_key_value_heads num_experts_per_tok "
        "num_experts_per_token moe_topk moe_k topk_group n_group num_expert_group o_groups "
        "num_layers_per_stack n_layers_per_attn_res_block n_input_layers n_output_layers "
        "n_recurrent_layers num_codebooks mamba_n_groups n_groups mamba_ngroups ngram",
    ),
    1: (
        "first_k_dense_replace num_dense_layers num_nextn_predict_layers n_shared_experts "
        "num_shared_experts moe_num_shared_experts loop_layer_index_start num_kv_shared_layers",
    ),
    16: (
        "head_dim swa_head_dim kv_channels d_kv attention_head_size index_head_dim dim_head d_head "
        "v_head_dim qk_nope_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim "
        "kv_lora_rank o_lora_rank mamba_d_state state_size ssm_state_size mamba_headdim "
        "hidden_size_per_layer_input query_pre_attn_scalar local_attention chunk_size "
        "mamba_chunk_size sliding_window sliding_window_size window_size attention_window_size "
        "router_hidden_size keep_window_size index_topk local_attn_chunk_length d_rel "
        "lsh_attn_chunk_length attention_chunk_size block_size mamba_d_head mamba_head_dim",
    ),
    32: ("q_lora_rank qk_head_dim attention_head_dim", "rel_extent"),
    8: (
        "qk_rope_head_dim rotary_dim mamba_n_heads n_mamba_heads mamba_num_heads prompt_length "
        "prompt_mid_dim block_multiple_of ffn_round_up_to_multiple_of",
    ),
    128: ("mamba_d_ssm", "make_ngram_vocab_size_divisible_by"),
    256: (
        "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length "
        "max_target_positions max_source_positions original_max_position_embeddings",
    ),
    3: ("loop_layer_index_end",),
    0: ("pad_token_id bos_token_id eos_token_id decoder_start_token_id eod_token_id",),
}
_SIZES = {n: value for value, lists in _BY_VALUE.items() for names in lists for n in names.split()}

_KINDS: dict[str, Any] = {
    "attention_types": [[["global", "local"], 2]],
    "attn_layer_indices": [1, 3],
    "attn_layer_offset": 1,
    "attn_layer_period": 2,
    "attn_layers": ["local"] * 4,
    "axial_pos_embds": False,
    "default_language": "en_XX",
    "layer_group_size": 2,
    "layers_block_type": ["mamba", "hybrid"] * 2,
    "mamba_expand": 2,
    "use_mamba_kernels": False,
    "use_mem_rope": True,
}
"""Kinds of blocks and switches, of families that have the field."""

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}

_OTHER_SIZES: tuple[dict[str, Any], ...] = (
    {},
    {"head_dim": 8, "qk_head_dim": 24, "num_key_value_heads": 4},
    {"num_key_value_heads": 4, "num_experts_per_tok": 1},
    {"layer_types": ["linear_attention", "full_attention"] * 2},
    {"layer_types": ["mamba", "attention"] * 2},
    {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 0},
    {"mamba_n_heads": 8, "mamba_headdim": 16, "n_mamba_heads": 2, "num_key_value_heads": 4}
    | {"attention_hidden_size": 128, "attention_head_dim": 32},
    {"num_key_value_heads": 4, "n_mamba_heads": 8, "mamba_headdim": 16, "attention_head_dim": 32}
    | {"attention_hidden_size": 128},
    {"num_hidden_layers": 2, "num_layers": 2, "n_layer": 2},
    {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
    {"n_input_layers": 1, "n_output_layers": 1, "loop_layer_index_start": 2}
    | {"loop_layer_index_end": 4},
    {"layer_types": ["conv", "full_attention"] * 2},
    {"hidden_size": 32, "embedding_dim": 32},
    {"num_key_value_heads": 4, "head_dim": 24, "topk_group": 1, "n_group": 1},
    {"layer_types": ["sliding_attention", "full_attention"] * 2}
    | {"rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), _ROPE)},
)
"""Tried in turn until a model trains: families bind their sizes to each other."""


def families() -> dict[str, str]:
    """Every causal-LM family of the installed Transformers: model type -> class."""
    return dict(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()))


def tiny_models(family: str) -> Iterator[nn.Module]:
    """Models of a family, of one try at sizes after the other, each from the same seed.

    Raises: whatever the family raises at every try; ValueError where it stays large.
    """
    errors: list[Exception] = []
    tries = [(sizes, unset) for unset in (False, True) for sizes in _OTHER_SIZES]
    for sizes, unset in tries:
        try:
            model = _tiny_model(family, sizes, unset=unset)
        except Exception as error:  # what a family makes of sizes that do not go together
            errors.append(error)
            continue
        yield model
    if len(errors) == len(tries):
        raise errors[0]


def _tiny_model(family: str, sizes: dict[str, Any], *, unset: bool) -> nn.Module:
    """unset: also give the sizes that the family leaves out by default."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = _tiny_config(transformers.CONFIG_MAPPING[family], sizes, unset=unset)
        model_class = getattr(transformers, families()[family])
        if not isinstance(config, model_class.config_class):
            config = config.get_text_config(decoder=True)
        _check_small(model_class, config)
        torch.manual_seed(1)
        model: nn.Module = model_class(config)
    return _without_dropout(model).train()


def _tiny_config(config_class: Any, sizes: dict[str, Any], *, unset: bool) -> Any:
    fields = vars(config_class())
    nested = {
        name: _tiny_config(type(value), sizes, unset=unset)
        for name, value in fields.items()
        if isinstance(value, transformers.PreTrainedConfig)
    }
    wanted = _SIZES | _KINDS | sizes
    known = {name for name, value in fields.items() if unset or value is not None}
    given = {name: value for name, value in wanted.items() if name in known}
    return config_class(**(given | _switches(fields) | nested))


def _switches(fields: dict[str, Any]) -> dict[str, Any]:
    """A decoder alone, without dropout."""
    dropouts = {n: 0.0 for n, v in fields.items() if "drop" in n and isinstance(v, float)}
    decoder = {"is_decoder": True, "is_encoder_decoder": False}
    return dropouts | {n: v for n, v in decoder.items() if n in fields}


def _check_small(model_class: Any, config: Any) -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in model_class(config).parameters())
    if parameters > MOST_PARAMETERS:
        raise ValueError(f"{parameters:,} parameters in a model of tiny sizes")


def _without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model
