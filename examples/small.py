"""The model of the examples: a Llama of 4 blocks that trains on a laptop in seconds."""

from typing import Any

import torch
import transformers

from examples.text import VOCAB_SIZE


def small_llama(hidden: int = 64, blocks: int = 4) -> Any:
    """A Hugging Face Llama over bytes, in fp32 and train mode, the same numbers every time."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2**17,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.LlamaForCausalLM(config).train()
