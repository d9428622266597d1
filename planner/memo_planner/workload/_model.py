"""A language model's dimensions, and the parameters and FLOPs that follow from them.

A model's dimensions from a Hugging Face config.json.

Models by name: the paper's four, Llama 3 8B, and any Hugging Face config.json.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memo_planner.checks import check_int, check_text
from memo_planner.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class ModelDims:
    """A dense causal language model of `num_blocks` equal blocks.

    Attributes:
        hidden, ffn, vocab: widths. num_heads, num_kv_heads, head_dim: of attention.
        gated: the MLP is down(act(gate(x)) * up(x)), else down(act(up(x))).
        tied: the head shares the embedding's matrix.
        fused: norms and activations save their input or output once, as fused kernels and the
            paper's accounting do; else as PyTorch's separate operations do.

    Raises: InvalidInput.
    """

    name: str
    num_blocks: int
    hidden: int
    ffn: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    gated: bool
    tied: bool
    fused: bool = False

    def __post_init__(self) -> None:
        check_text("ModelDims.name", self.name)
        for name in ("hidden", "ffn", "num_heads", "num_kv_heads", "head_dim", "vocab"):
            check_int(f"ModelDims.{name}", getattr(self, name), 1, 2**30)
        check_int("ModelDims.num_blocks", self.num_blocks, 1, 100_000)
        if self.num_heads % self.num_kv_heads:
            raise InvalidInput(
                f"{self.name}: {self.num_heads} heads share {self.num_kv_heads} key-value heads; "
                "the one must be a multiple of the other"
            )

    @property
    def q_width(self) -> int:
        """Numbers of one token's q, and of its o."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Numbers of one token's k, and of its v."""
        return self.num_kv_heads * self.head_dim

    @property
    def pre_parameters(self) -> int:
        """Of the q, k, v projections of one block."""
        return self.hidden * (self.q_width + 2 * self.kv_width)

    @property
    def post_parameters(self) -> int:
        """Of the output projection and the MLP of one block."""
        return self.hidden * (self.q_width + (3 if self.gated else 2) * self.ffn)

    @property
    def block_parameters(self) -> int:
        """Of one block, norms and biases (under a thousandth) left out."""
        return self.pre_parameters + self.post_parameters

    @property
    def parameters(self) -> int:
        """Of the model: blocks, embedding, and the head where it has a matrix of its own."""
        tables = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.num_blocks * self.block_parameters + tables

    def step_flops(self, tokens: int) -> float:
        """FLOPs of one sequence's forward and backward as MFU counts them.

        6 s P + 6 n w s**2, P the parameters that multiply, w the width of q: attention is causal,
        nothing is computed twice. Source: MEMO, set-up of the experiments.
        """
        multiplying = self.num_blocks * self.block_parameters + self.vocab * self.hidden
        attention = 6.0 * self.num_blocks * self.q_width * float(tokens) ** 2
        return 6.0 * tokens * multiplying + attention

    def digest(self) -> str:
        """sha256, hexadecimal, of the dimensions."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


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
