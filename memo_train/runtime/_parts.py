"""What calls of a wrapped model may ask for, and what they may not.

Finds in a causal LM what the runtime needs: the decoder, its blocks, the language-model head.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from memo_train.errors import CachedGeneration, InvalidInput, UnsupportedModel

UNSUPPORTED_OUTPUTS = ("output_attentions",)
"""Tensors that leave a block beside its output: tiles cannot hand them out."""

_WHOLE_OUTPUTS = ("output_router_logits",)
"""Tensors of all tokens that leave a block beside its output, for a loss of the whole sequence."""

_CACHE_MESSAGE = (
    "a wrapped model was asked for a key-value cache; call memo_train.unwrap(model) before "
    "generating, or generate with use_cache=False"
)


class Signature:
    """A forward's parameters."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._signature = inspect.signature(forward)

    def __contains__(self, name: str) -> bool:
        return name in self._signature.parameters

    def by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """A call's arguments, each by its name. Raises: TypeError as the call would."""
        arguments: dict[str, Any] = {}
        for name, value in self._signature.bind(*args, **kwargs).arguments.items():
            kind = self._signature.parameters[name].kind
            arguments |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        return arguments


def check_model_call(arguments: dict[str, Any], signature: Signature) -> tuple[int, int] | None:
    """(batch, tokens) of a call of the model or its decoder, which is told to make no cache.

    Raises: CachedGeneration, UnsupportedModel, InvalidInput.
    """
    if arguments.get("use_cache") or arguments.get("past_key_values") is not None:
        raise CachedGeneration(_CACHE_MESSAGE)
    for name in UNSUPPORTED_OUTPUTS:
        if arguments.get(name):
            raise UnsupportedModel(f"{name}=True is not supported on a wrapped model; unwrap first")
    if "use_cache" in signature:
        arguments["use_cache"] = False
    tokens = arguments.get("input_ids")
    tokens = arguments.get("inputs_embeds") if tokens is None else tokens
    if not isinstance(tokens, torch.Tensor):
        return None
    if tokens.numel() == 0:
        raise InvalidInput(f"a step needs at least one token, got {tuple(tokens.shape)}")
    return tokens.shape[0], tokens.shape[1]


def needs_whole_blocks(arguments: dict[str, Any], config: Any) -> bool:
    """Whether a step wants from its blocks what only a whole run of them gives: router logits."""
    asked = ((arguments.get(name), getattr(config, name, False)) for name in _WHOLE_OUTPUTS)
    return any(given or (given is None and by_config) for given, by_config in asked)


def check_block_call(block: nn.Module, kwargs: dict[str, Any]) -> None:
    """Refuse what must not reach a block. Raises: CachedGeneration, UnsupportedModel."""
    if kwargs.get("past_key_values") is not None:
        raise CachedGeneration(_CACHE_MESSAGE)
    if block.training and getattr(block, "gradient_checkpointing", False):
        raise UnsupportedModel(
            f"gradient checkpointing was turned on for {type(block).__name__} after wrap; turn it "
            "off (gradient_checkpointing=False in TrainingArguments): the plan decides what is "
            "recomputed"
        )


_PROBE_TOKENS = 131
_BLOCK_ROWS = 16
_LOGITS_ROWS = 3


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """The parts of a causal LM; all are modules of the user's own model."""

    causal_lm: nn.Module
    decoder: nn.Module
    head: nn.Module
    blocks: tuple[nn.Module, ...]

    @property
    def vocab_size(self) -> int:
        """Rows of the head: the number of token ids it scores."""
        return self._head_weight().shape[0]

    @property
    def hidden_bytes(self) -> int:
        """Bytes of one token's hidden state in the dtype of the head."""
        weight = self._head_weight()
        return weight.shape[1] * weight.element_size()

    def loss_tile_tokens(self, tile_tokens: int) -> int:
        """A tile of the loss whose logits, with their gradients, are about a block tile's size."""
        vocab_size, hidden_size = self._head_weight().shape
        share = min(1.0, _BLOCK_ROWS * hidden_size / (_LOGITS_ROWS * vocab_size))
        return max(1, int(tile_tokens * share))

    def _head_weight(self) -> torch.Tensor:
        weight = self.head.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def probe_tokens(self) -> int:
        """A length for short runs that the model's position table allows."""
        config = getattr(self.causal_lm, "config", None)
        longest = getattr(config, "max_position_embeddings", None) or _PROBE_TOKENS
        return max(min(longest, _PROBE_TOKENS), 2)

    def run(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        """The causal LM's output on [batch, tokens] ids, without a key-value cache."""
        accepts = inspect.signature(self.causal_lm.forward).parameters
        options = {"use_cache": False} if "use_cache" in accepts else {}
        return self.causal_lm(input_ids=input_ids, labels=labels, **options)


def causal_lm_of(model: nn.Module) -> nn.Module:
    """The causal LM itself: the model that a PEFT model adapts, or else `model`."""
    get_base = getattr(model, "get_base_model", None)
    causal_lm: nn.Module = model if get_base is None else get_base()
    return causal_lm


def find_parts(model: nn.Module) -> ModelParts:
    """The parts of `model`, which may be a PEFT model. Raises: UnsupportedModel."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"wrap takes a torch.nn.Module, got {type(model).__name__}")
    causal_lm = causal_lm_of(model)
    _check_config(causal_lm)
    decoder = getattr(causal_lm, "base_model", None)
    get_head = getattr(causal_lm, "get_output_embeddings", None)
    head = None if get_head is None else get_head()
    if decoder is None or decoder is causal_lm or head is None:
        raise UnsupportedModel(
            f"{type(causal_lm).__name__} is not a causal LM that memo-train knows: it needs a "
            "`base_model` (the decoder) and `get_output_embeddings()` (the language-model head)"
        )
    if any(getattr(module, "gradient_checkpointing", False) for module in causal_lm.modules()):
        raise UnsupportedModel(
            f"{type(causal_lm).__name__} has gradient checkpointing on, which would recompute "
            "what the plan keeps; call model.gradient_checkpointing_disable() before wrap"
        )
    blocks = _find_blocks(decoder)
    return ModelParts(causal_lm=causal_lm, decoder=decoder, head=head, blocks=blocks)


def _check_config(causal_lm: nn.Module) -> None:
    name, config = type(causal_lm).__name__, getattr(causal_lm, "config", None)
    if getattr(config, "is_encoder_decoder", False) or getattr(
        config, "add_cross_attention", False
    ):
        raise UnsupportedModel(
            f"{name} has cross-attention (an encoder-decoder); memo-train wraps decoder-only LMs"
        )
    for output in UNSUPPORTED_OUTPUTS:
        if getattr(config, output, False):
            raise UnsupportedModel(f"{name}: config.{output} is not supported; set it to False")
    if _is_transformers(causal_lm) and name not in _causal_lm_names():
        raise UnsupportedModel(
            f"{name} is not a causal language model; wrap takes ...ForCausalLM or ...LMHeadModel"
        )


def _is_transformers(causal_lm: nn.Module) -> bool:
    modeling: Any = sys.modules.get("transformers.modeling_utils")
    return modeling is not None and isinstance(causal_lm, modeling.PreTrainedModel)


def _causal_lm_names() -> set[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


def _find_blocks(decoder: nn.Module) -> tuple[nn.Module, ...]:
    """The largest list of modules of one class, by parameters."""
    lists = [tuple(m) for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m)]
    stacks = [blocks for blocks in lists if len({type(block) for block in blocks}) == 1]
    if not stacks:
        raise UnsupportedModel(
            f"no blocks found in {type(decoder).__name__}: expected a torch.nn.ModuleList of "
            "transformer blocks of one class"
        )
    return max(stacks, key=_num_parameters)


def _num_parameters(blocks: Iterable[nn.Module]) -> int:
    return sum(p.numel() for block in blocks for p in block.parameters())
