"""Steps whose requests are compared: of models at their real size without arithmetic, and real."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

import memo_train
from benchmarks.fake_trace import LLAMA_2_7B, tiled_policy
from memo_planner.trace import Requests
from memo_train.device import get_cpu_device
from memo_train.runtime import WrappedModel, find_parts
from memo_train.trace import PlaceRecorder
from memo_train.trace._fake_device import A800
from memo_train.trace._fake_step import FakeModel
from memo_train.trace._record import Batch, record_requests

KIB = 2**10
MODES = ("plain", "checkpointed", "tiles")
"""As Transformers runs it; with its gradient checkpointing; by memo-train's token tiles."""

TILES = 16
Step = tuple[str, Callable[[], Requests]]
"""A name, and what records the step's requests when it is called."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A Transformers family with its configuration, and the lengths to train it at."""

    family: str
    config: dict[str, int]
    lengths: tuple[int, ...]

    def make(self, tokens: int) -> nn.Module:
        """The model in bf16 and train mode, for sequences of `tokens`."""
        positions = "n_positions" if self.family == "GPT2" else "max_position_embeddings"
        config_class = getattr(transformers, f"{self.family}Config")
        config = config_class(**self.config, use_cache=False, **{positions: tokens})
        make = transformers.AutoModelForCausalLM.from_config
        model: nn.Module = make(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
        return model.train()


# Sources: config.json of meta-llama/Llama-2-7b-hf, meta-llama/Meta-Llama-3-8B, Qwen/Qwen2-7B and
# openai-community/gpt2-xl. GPT-2 is without dropout: with it attention on CPU holds all pairs of
# tokens, as no GPU kernel does.
MODEL_SIZES = {
    "llama-2-7b": ModelSize(family="Llama", config=LLAMA_2_7B, lengths=(64 * KIB, 256 * KIB)),
    "llama-3-8b": ModelSize(
        family="Llama",
        config={
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
        lengths=(128 * KIB,),
    ),
    "qwen2-7b": ModelSize(
        family="Qwen2",
        config={
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
        lengths=(32 * KIB,),
    ),
    "gpt2-xl": ModelSize(
        family="GPT2",
        config={
            "vocab_size": 50257,
            "n_embd": 1600,
            "n_layer": 48,
            "n_head": 25,
            "attn_pdrop": 0,
            "embd_pdrop": 0,
            "resid_pdrop": 0,
        },
        lengths=(16 * KIB,),
    ),
}
SMALL = ModelSize(
    family="Llama",
    config={
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    lengths=(KIB,),
)


def fake_steps() -> Iterator[Step]:
    """Steps of batch 1 in bf16 with AdamW, every model at every length in every mode."""
    for name, size in MODEL_SIZES.items():
        for tokens in size.lengths:
            for mode in MODES:
                yield f"{name} {tokens // KIB}K {mode}", _fake(size, tokens, mode)


def _fake(size: ModelSize, tokens: int, mode: str) -> Callable[[], Requests]:
    def record() -> Requests:
        fake = FakeModel(lambda: size.make(tokens), A800)
        if mode == "checkpointed":
            _checkpoint(fake.model)
        policy = tiled_policy(fake, tokens, TILES) if mode == "tiles" else None
        return fake.step(batch=1, tokens=tokens, policy=policy).trace.requests

    return record


def _checkpoint(model: Any) -> None:
    model.activation_checkpointing_enable({"use_reentrant": False})


def real_steps() -> Iterator[Step]:
    """Third steps of a small Llama, computed for real in bf16 on this process's CPU device."""
    (tokens,) = SMALL.lengths
    for mode in MODES:
        yield f"small llama {tokens // KIB}K {mode}, real", _real(SMALL, tokens, mode)


def _real(size: ModelSize, tokens: int, mode: str) -> Callable[[], Requests]:
    def record() -> Requests:
        torch.manual_seed(0)
        model: Any = size.make(tokens)
        parts, wrapped = find_parts(model), None
        if mode == "checkpointed":
            _checkpoint(model)
        if mode == "tiles":
            wrapped = _wrapped(model, tokens // TILES)
        optimizer = torch.optim.AdamW(model.parameters())
        ids = torch.randint(1, size.config["vocab_size"], (1, tokens))
        batch, recorder = Batch(ids=ids, labels=ids), PlaceRecorder(get_cpu_device())
        for _ in range(3):
            gc.collect()  # else garbage of before is freed in mid-step, and looks like the step's
            requests = record_requests(parts, wrapped, recorder, batch, optimizer)
        if wrapped is not None:
            memo_train.unwrap(model)
        return requests

    return record


def _wrapped(model: Any, tile_tokens: int) -> WrappedModel:
    memo_train.wrap(model, alpha=0.5, tile_tokens=tile_tokens)
    wrapped: WrappedModel = model._memo_train.wrapped
    return wrapped
