"""Models by name: the paper's four, Llama 3 8B, and any Hugging Face config.json.

With torch and Transformers installed the model is built without memory and its blocks are traced:
that is memo-train's part (`memo_train.trace.model_of_config`), which is looked up when a file is
read, so that the planner needs neither. Without them only families whose every field is known here
are planned; anything else is refused by name.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memo_planner.errors import InvalidInput
from memo_planner.workload._model import (
    MODELS,
    SEPARATE_NORMS,
    UPCAST_NORMS,
    DenseBlocks,
    ModelDims,
)

_READER = ("memo_train.trace", "model_of_config")
"""Module and function that build and trace a model; (config, name, dtype_bytes) -> ModelDims."""
_READER_NEEDS = ("torch", "transformers", "memo_train")
_WAY_OUT = "install torch and Transformers (pip install 'memo-train[hf]'), which know the model"


def model_named(name: str, *, by_fields: bool = False, dtype_bytes: int = 2) -> ModelDims:
    """A named model, or that of a config.json. Raises: InvalidInput, naming those there are.

    by_fields: read a file without torch, as where there is none. dtype_bytes: of the numbers that
    a file's model computes with, 2 (bf16) or 4 (fp32).
    """
    if name.lower() in MODELS:
        return MODELS[name.lower()]
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.is_file():
        return model_of_config(path, by_fields=by_fields, dtype_bytes=dtype_bytes)
    raise InvalidInput(
        f"model {name!r} is not known; known: {', '.join(MODELS)}, or the path of a config.json"
    )


def model_of_config(path: Path, *, by_fields: bool = False, dtype_bytes: int = 2) -> ModelDims:
    """The dimensions of the file's language model. Raises: InvalidInput, naming the file.

    by_fields: do as if there were no torch. dtype_bytes: of the numbers that blocks compute with,
    2 (bf16) or 4 (fp32), which decides what norms save.
    """
    config = _read(path)
    own_name = path.resolve().parent.name if path.name == "config.json" else path.stem
    name = str(config.get("_name_or_path") or own_name or "model")
    try:
        if by_fields or not _reader_is_there():
            return _model_by_fields(config, name, dtype_bytes)
        return _reader()(config, name, dtype_bytes)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error


def _reader_is_there() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in _READER_NEEDS)


def _reader() -> Callable[[dict[str, Any], str, int], ModelDims]:
    module, function = _READER
    try:
        reader: Callable[..., ModelDims] = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise InvalidInput(
            f"{', '.join(_READER_NEEDS)} are installed but cannot be imported ({error}); mend "
            "that, or pass --no-torch to plan plain families by their fields"
        ) from error
    return reader


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


_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
"""Whole numbers that every family must state: a class's default for them is not known here."""
_COMMON = {*_SIZES, "model_type", "tie_word_embeddings", "layer_types"}
_NEUTRAL = {
    "_name_or_path", "architectures", "attention_dropout", "bos_token_id", "dtype", "eos_token_id",
    "hidden_act", "initializer_range", "max_position_embeddings",
    "original_max_position_embeddings", "output_attentions", "output_hidden_states",
    "pad_token_id", "pretraining_tp",
    "quantization_config", "return_dict", "rms_norm_eps", "rope_parameters", "rope_scaling",
    "rope_theta", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
"""Change neither a shape nor what a step costs: positions are rotary, activations element-wise,
dropout of scores stays inside attention, and weights are trained unquantised."""


@dataclass(frozen=True)
class _Family:
    """What a model type adds to a Llama.

    own: fields that this reader understands for it. neutral: fields that change nothing.
    qkv_bias: whether q, k and v always have biases, whatever a field says.
    """

    own: frozenset[str] = frozenset()
    neutral: frozenset[str] = frozenset()
    qkv_bias: bool = False


_FAMILIES = {
    "llama": _Family(frozenset({"head_dim", "attention_bias", "mlp_bias"})),
    "mistral": _Family(frozenset({"head_dim", "sliding_window"})),
    "qwen2": _Family(
        frozenset({"sliding_window", "use_sliding_window", "max_window_layers"}), qkv_bias=True
    ),
    "phi3": _Family(
        frozenset({"sliding_window", "resid_pdrop", "embd_pdrop"}),
        frozenset({"partial_rotary_factor"}),
    ),
}
"""Source: the models' code in Transformers 5; tests compare each with the model itself."""


def _model_by_fields(config: dict[str, Any], name: str, dtype_bytes: int) -> ModelDims:
    family = _family(config)
    sizes = {field: _whole(config, field) for field in _SIZES}
    hidden, vocab = sizes["hidden_size"], sizes["vocab_size"]
    blocks = DenseBlocks(
        num_blocks=sizes["num_hidden_layers"],
        hidden=hidden,
        ffn=sizes["intermediate_size"],
        num_heads=sizes["num_attention_heads"],
        num_kv_heads=sizes["num_key_value_heads"],
        head_dim=_head_dim(config),
        gated=True,
        norm_widths=UPCAST_NORMS if dtype_bytes == 2 else SEPARATE_NORMS,
        window=_window(config),
        small_parameters=_small_parameters(config, family),
    )
    tied = _flag(config, "tie_word_embeddings")
    return ModelDims(
        name=name,
        hidden=hidden,
        vocab=vocab,
        tied=tied,
        kinds=(blocks.kind(),),
        other_parameters=vocab * hidden * (1 if tied else 2) + hidden,
        head_parameters=vocab * hidden,
    )


def _family(config: dict[str, Any]) -> _Family:
    """The family of the file's model type. Raises: InvalidInput, by name, if it is not a sure one.

    A field that is not known may change a shape, so it is refused unless it is null or false.
    """
    model_type = config.get("model_type")
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise InvalidInput(
            f"model_type {model_type!r} is not planned without torch, only "
            f"{', '.join(_FAMILIES)} are; {_WAY_OUT}"
        )
    known = _COMMON | _NEUTRAL | family.own | family.neutral
    for field, value in config.items():
        if field not in known and value is not None and value is not False:
            raise InvalidInput(
                f"field {field} is {value!r}, and what it changes in a {model_type} is not known "
                f"without torch; {_WAY_OUT}"
            )
    layers = config.get("layer_types") or []
    layers = layers if isinstance(layers, list) else [layers]
    others = [each for each in layers if each != "full_attention"]
    if others:
        raise InvalidInput(
            f"layer_types has {others[0]!r}; without torch all blocks must be full_attention; "
            f"{_WAY_OUT}"
        )
    for field in ("resid_pdrop", "embd_pdrop"):
        if config.get(field):
            raise InvalidInput(
                f"{field} is {config[field]!r}; without torch blocks have no dropout; {_WAY_OUT}"
            )
    return family


def _whole(config: dict[str, Any], field: str) -> int:
    value = config.get(field)
    if value is None:
        raise InvalidInput(f"has no {field}, whose default is not known without torch; {_WAY_OUT}")
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**30:
        raise InvalidInput(f"{field} is {value!r}; it must be a whole number from 1 to {2**30:,}")
    return value


def _flag(config: dict[str, Any], field: str) -> bool:
    """A yes-or-no field; no where it is left out, as in all of `_FAMILIES`."""
    value = config.get(field) or False
    if not isinstance(value, bool):
        raise InvalidInput(f"{field} is {value!r}; it must be true or false")
    return value


def _head_dim(config: dict[str, Any]) -> int:
    if config.get("head_dim") is not None:
        return _whole(config, "head_dim")
    hidden, num_heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    if hidden % num_heads:
        raise InvalidInput(
            f"hidden_size {hidden} is no multiple of num_attention_heads {num_heads}, and there "
            "is no head_dim"
        )
    return hidden // num_heads


def _window(config: dict[str, Any]) -> int | None:
    """The window of every block. Raises: InvalidInput where only some may have one."""
    model_type = config["model_type"]
    if model_type == "mistral" and "sliding_window" not in config:
        raise InvalidInput(
            f"has no sliding_window, whose default is not known without torch; {_WAY_OUT}"
        )
    if model_type == "qwen2":
        if _flag(config, "use_sliding_window"):
            raise InvalidInput(
                "use_sliding_window is true: which blocks have the window is not known without "
                f"torch; {_WAY_OUT}"
            )
        return None
    window = config.get("sliding_window")
    return None if window is None else _whole(config, "sliding_window")


def _small_parameters(config: dict[str, Any], family: _Family) -> int:
    """Of one block's two norms and its biases."""
    hidden, ffn = _whole(config, "hidden_size"), _whole(config, "intermediate_size")
    heads, kv_heads = _whole(config, "num_attention_heads"), _whole(config, "num_key_value_heads")
    qkv = (heads + 2 * kv_heads) * _head_dim(config)
    small = 2 * hidden
    if family.qkv_bias:
        small += qkv
    if _flag(config, "attention_bias"):
        small += qkv + hidden
    if _flag(config, "mlp_bias"):
        small += 2 * ffn + hidden
    return small
