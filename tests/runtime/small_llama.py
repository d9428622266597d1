"""The project's own Llama, small; needs no other library."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from memo_train.model import Llama, LlamaConfig

VOCAB_SIZE = 61
NUM_BLOCKS = 3


def own_llama(**options: Any) -> nn.Module:
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "ffn_size": 48,
        "num_blocks": NUM_BLOCKS,
        "num_heads": 4,
        "num_kv_heads": 2,
    }
    torch.manual_seed(1)
    return Llama(LlamaConfig(**(sizes | options)))
