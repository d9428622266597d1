"""The model and the text that every mode trains."""

from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.job import HEAD_DIM, Job
from examples.text import byte_tokens


def build_model(job: Job) -> Any:
    """The job's Hugging Face Llama, fp32, in train mode, with SDPA attention."""
    torch.manual_seed(job.seed)
    config = transformers.LlamaConfig(
        vocab_size=job.vocab,
        hidden_size=job.hidden,
        intermediate_size=job.ffn,
        num_hidden_layers=job.layers,
        num_attention_heads=job.hidden // HEAD_DIM,
        max_position_embeddings=2**20,
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config)
    model.set_attn_implementation("sdpa")
    return model.train()


def piece_of_text(tokens: int, index: int) -> Tensor:
    """Piece number index of the example text, input_ids [1, tokens] int64."""
    return byte_tokens((index + 1) * tokens)[index * tokens :][None]
