"""Small causal LMs of every supported family, each made anew from the same seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from tests.runtime.small_llama import NUM_BLOCKS, VOCAB_SIZE, own_llama

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def _hugging_face(family: str, **sizes: Any) -> Callable[..., nn.Module]:
    def make(**options: Any) -> nn.Module:
        config = getattr(transformers, f"{family}Config")(**(_SIZES | sizes | options))
        torch.manual_seed(1)
        suffix = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
        model: nn.Module = getattr(transformers, f"{family}{suffix}")(config)
        return model.train()

    return make


_GPT2_SIZES = {"n_embd": 32, "n_head": 4, "n_layer": NUM_BLOCKS, "n_inner": 48, "n_positions": 128}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

MODELS: dict[str, Callable[..., nn.Module]] = {
    "own": own_llama,
    "llama": _hugging_face("Llama", num_key_value_heads=4),
    "llama_gqa": _hugging_face("Llama", num_key_value_heads=2),
    "qwen2": _hugging_face("Qwen2", num_key_value_heads=2),
    "qwen3": _hugging_face("Qwen3", num_key_value_heads=2, head_dim=8),
    "mistral": _hugging_face("Mistral", num_key_value_heads=2, sliding_window=None),
    "mistral_window": _hugging_face("Mistral", num_key_value_heads=2, sliding_window=7),
    "gpt2": _hugging_face("GPT2", **_GPT2_SIZES, **_NO_DROPOUT),
    "phi": _hugging_face("Phi", num_key_value_heads=4, **_NO_DROPOUT),
    "gpt_neox": _hugging_face("GPTNeoX", hidden_dropout=0.0, attention_dropout=0.0),
}

gpt2_with_dropout = _hugging_face(
    "GPT2", **_GPT2_SIZES, resid_pdrop=0.2, embd_pdrop=0.1, attn_pdrop=0.15
)
