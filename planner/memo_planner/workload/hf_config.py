"""A model's dimensions from a Hugging Face config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memo_planner.errors import InvalidInput
from memo_planner.workload.model import ModelDims

_NAMES: dict[str, tuple[str, ...]] = {
    "num_blocks": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "ffn": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "num_heads": ("num_attention_heads", "n_head"),
    "num_kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_dim": ("head_dim",),
    "vocab": ("vocab_size",),
}
_ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation")
_PLAIN_MLP = {
    "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "phi", "starcoder2", "codegen",
    "gpt_bigcode", "mpt", "stablelm_epoch", "nemotron",
}  # fmt: skip
"""Model types whose MLP is not gated."""
_GATED_MLP = {
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo", "olmo2",
    "cohere", "internlm2", "granite", "stablelm", "smollm3", "glm", "glm4", "exaone4", "yi",
}  # fmt: skip
"""Model types whose MLP is gated, whatever its activation is called."""
_TIED_BY_DEFAULT = {"gpt2", "gpt_bigcode", "opt", "bloom", "falcon", "codegen", "gemma", "gemma2"}
_NOT_DENSE = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
_STATEFUL = ("state_size", "ssm_cfg", "mamba_d_state")


def model_of_config(path: Path) -> ModelDims:
    """The dimensions of a dense causal language model. Raises: InvalidInput, naming the file."""
    config = _text_part(_read(path))
    try:
        return _model(path, config)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error


def _model(path: Path, config: dict[str, Any]) -> ModelDims:
    experts = [n for n in _NOT_DENSE if isinstance(config.get(n), int) and config[n] > 1]
    if experts:
        raise InvalidInput(f"a mixture of experts ({experts[0]}) is not planned; dense models are")
    if any(name in config for name in _STATEFUL):
        raise InvalidInput("a state-space model is not planned; transformers are")
    hidden, num_heads = _int(config, "hidden"), _int(config, "num_heads")
    model_type = str(config.get("model_type", "model"))
    tied = config.get("tie_word_embeddings", model_type in _TIED_BY_DEFAULT)
    if not isinstance(tied, bool):
        raise InvalidInput(f"tie_word_embeddings is {tied!r}; it must be true or false")
    if "head_dim" not in config and hidden % num_heads:
        raise InvalidInput(
            f"hidden_size {hidden} is no multiple of num_attention_heads {num_heads}, and there "
            "is no head_dim"
        )
    name = config.get("_name_or_path") or path.resolve().parent.name or model_type
    return ModelDims(
        name=str(name),
        num_blocks=_int(config, "num_blocks"),
        hidden=hidden,
        ffn=_int(config, "ffn", 4 * hidden),
        num_heads=num_heads,
        num_kv_heads=_int(config, "num_kv_heads", num_heads),
        head_dim=_int(config, "head_dim", hidden // num_heads),
        vocab=_int(config, "vocab"),
        gated=_gated(config, model_type),
        tied=tied,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: not a JSON document: {error}") from error
    if not isinstance(config, dict):
        raise InvalidInput(f"{path}: holds no JSON object")
    return config


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    """Models that also see keep their language model's dimensions in `text_config`."""
    part = config.get("text_config")
    return part if isinstance(part, dict) and "hidden_size" in part else config


def _int(config: dict[str, Any], figure: str, default: int | None = None) -> int:
    for name in _NAMES[figure]:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInput(f"{name} is {value!r}; it must be a whole number of 1 or more")
        return value
    if default is None:
        raise InvalidInput(f"has none of {', '.join(_NAMES[figure])}")
    return default


def _gated(config: dict[str, Any], model_type: str) -> bool:
    """Whether the MLP has a gate: by model type, else by an activation that only gated ones use."""
    if model_type in _PLAIN_MLP:
        return False
    if model_type in _GATED_MLP:
        return True
    activation = next((str(config[n]) for n in _ACTIVATIONS if config.get(n)), "silu")
    return activation in ("silu", "swish", "swiglu", "geglu")
