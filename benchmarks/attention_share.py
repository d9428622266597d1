"""How much of a block's forward attention is, at a length."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.job import HEAD_DIM, Job
from benchmarks.llama import build_model

REPEATS = 5


def attention_share(job: Job, tokens: int) -> float:
    """Seconds of the attention call over seconds of one whole block's forward, medians of 5."""
    model = build_model(job)
    block = model.model.layers[0]
    x = torch.randn(1, tokens, job.hidden)
    positions = torch.arange(tokens)[None]
    tables = model.model.rotary_emb(x, position_ids=positions)
    q = torch.randn(1, job.hidden // HEAD_DIM, tokens, HEAD_DIM)
    with torch.no_grad():
        block_s = _median_s(lambda: block(x, position_embeddings=tables))
        attention_s = _median_s(lambda: scaled_dot_product_attention(q, q, q, is_causal=True))
    return attention_s / block_s


def _median_s(run: Callable[[], Any]) -> float:
    run()
    seconds = []
    for _ in range(REPEATS):
        started_s = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds)
