"""Models by name: the paper's four, Llama 3 8B, and any Hugging Face config.json."""

from __future__ import annotations

from pathlib import Path

from memo_planner.errors import InvalidInput
from memo_planner.workload.hf_config import model_of_config
from memo_planner.workload.model import ModelDims

_PAPER_VOCAB = 50_257


def _paper(name: str, num_blocks: int, hidden: int, num_heads: int) -> ModelDims:
    """A GPT of the paper. Source: MEMO, set-up of the experiments."""
    return ModelDims(
        name=name,
        num_blocks=num_blocks,
        hidden=hidden,
        ffn=4 * hidden,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden // num_heads,
        vocab=_PAPER_VOCAB,
        gated=False,
        tied=True,
        fused=True,
    )


MODELS = {
    "7b": _paper("7b", 32, 4096, 32),
    "13b": _paper("13b", 40, 5120, 40),
    "30b": _paper("30b", 48, 7168, 56),
    "65b": _paper("65b", 80, 8192, 64),
    "llama-3-8b": ModelDims(
        name="llama-3-8b",
        num_blocks=32,
        hidden=4096,
        ffn=14_336,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab=128_256,
        gated=True,
        tied=False,
    ),
}
"""Source of llama-3-8b: Grattafiori et al., "The Llama 3 Herd of Models", table 3."""

PAPER_GPUS = {"7b": 8, "13b": 16, "30b": 32, "65b": 64}
"""GPUs that the paper trains each of its models on."""


def model_named(name: str) -> ModelDims:
    """A named model, or that of a config.json. Raises: InvalidInput, naming those there are."""
    if name.lower() in MODELS:
        return MODELS[name.lower()]
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.is_file():
        return model_of_config(path)
    raise InvalidInput(
        f"model {name!r} is not known; known: {', '.join(MODELS)}, or the path of a config.json"
    )
