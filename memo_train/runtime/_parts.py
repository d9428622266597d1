"""What the runtime needs of a causal LM (decoder, blocks, head), and what its calls may ask for."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from memo_train.errors import CachedGeneration, InvalidInput, MemoError, UnsupportedModel
from memo_train.runtime._sharded import (
    class_of,
    is_fully_sharded,
    is_taken_by_zero,
    sharded_in,
)

UNSUPPORTED_OUTPUTS = ("output_attentions",)
"""Tensors that leave a block beside its output: tiles cannot hand them out."""

# By families of Transformers; `mems` is XLNet's, `cache_params` Mamba's.
_CACHE_NAMES = ("past_key_values", "past_key_value", "cache", "cache_params", "mems")

_WHOLE_OUTPUTS = ("output_router_logits",)
"""Tensors of all tokens that leave a block beside its output, for a loss of the whole sequence."""

_CACHE_MESSAGE = (
    "a wrapped model was asked for a key-value cache with gradients on; generate under "
    "torch.no_grad(), where its own forwards run, pass use_cache=False, or unwrap(model)"
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
    if wants_cache(arguments):
        raise CachedGeneration(_CACHE_MESSAGE)
    for name in UNSUPPORTED_OUTPUTS:
        if arguments.get(name):
            raise UnsupportedModel(f"{name}=True is not supported on a wrapped model; unwrap first")
    if "use_cache" in signature:
        # A cache would hold k and v of every block until the step ends.
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


def makes_mask(arguments: dict[str, Any]) -> bool:
    """Whether a call of a model asks for a mask over all pairs of its tokens.

    Padding does, and positions that start again (packed documents), which count by themselves.
    """
    mask, positions = arguments.get("attention_mask"), arguments.get("position_ids")
    if isinstance(mask, torch.Tensor):
        # Of a mask of ones Transformers makes none.
        return mask.dim() > 2 or not bool(mask.all())
    if mask is not None:
        return True
    return isinstance(positions, torch.Tensor) and bool((positions.diff(dim=-1) != 1).any())


def wants_cache(arguments: dict[str, Any]) -> bool:
    """Whether a call of a model or its decoder makes a key-value cache, or brings one."""
    return bool(arguments.get("use_cache")) or _has_cache(arguments)


def _has_cache(arguments: dict[str, Any]) -> bool:
    """Whether one of a call's arguments is a key-value cache, by its name or by its class."""
    if any(arguments.get(name) is not None for name in _CACHE_NAMES):
        return True
    transformers: Any = sys.modules.get("transformers.cache_utils")
    return transformers is not None and any(
        isinstance(value, transformers.Cache) for value in arguments.values()
    )


def configs_of(model: nn.Module) -> tuple[Any, ...]:
    """The configurations that the modules of `model` hold, each once."""
    configs = (vars(module).get("config") for module in model.modules())
    return tuple({id(config): config for config in configs if config is not None}.values())


@contextmanager
def without_caches(configs: Iterable[Any]) -> Iterator[None]:
    """While active, none of a model's configurations asks for a key-value cache by itself.

    Some forwards have no `use_cache` that could be set to False.
    """
    asking = [config for config in configs if getattr(config, "use_cache", False) is True]
    for config in asking:
        config.use_cache = False
    try:
        yield
    finally:
        for config in asking:
            config.use_cache = True


@contextmanager
def runnable(causal_lm: nn.Module, where: str) -> Iterator[None]:
    """While active, the model's own errors become memo-train's, and nothing is compiled.

    Raises: UnsupportedModel.
    """
    # A compiled model would be compiled anew for each length of a probe.
    eager: Any = torch.compiler.set_stance("force_eager")
    try:
        with eager:
            yield
    except (MemoError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
        raise UnsupportedModel(
            f"{type(causal_lm).__name__} does not run {where}: {type(error).__name__}: {error}"
        ) from error


def check_block_call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse what must not reach a block. Raises: CachedGeneration, UnsupportedModel."""
    if _has_cache(kwargs | {str(index): value for index, value in enumerate(args)}):
        raise CachedGeneration(_CACHE_MESSAGE)
    if block.training and getattr(block, "gradient_checkpointing", False):
        raise UnsupportedModel(
            f"gradient checkpointing was turned on for {type(block).__name__} after wrap; turn it "
            "off (gradient_checkpointing=False in TrainingArguments): the plan decides what is "
            "recomputed"
        )


_AROUND = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")

# A prime: no window or chunk divides it, and the last of three tiles is shorter.
_PROBE_TOKENS = 131
# Numbers a token: a block makes 16 over its hidden size, a loss 3 over its vocabulary.
_BLOCK_ROWS = 16
_LOGITS_ROWS = 3
_LEAST_LOSS_TOKENS = 32
"""Fewer make slow products of the head, with a sum of its whole gradient after each; of one or two
rows, on a CPU, also products that are seven times less exact over a large vocabulary."""


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """The parts of a causal LM; all are modules of the user's own model.

    outer: what stands around the causal LM (PEFT's model), if anything does. predicts_tokens:
    whether the head scores tokens of the vocabulary; else something of its own (a reward).
    """

    causal_lm: nn.Module
    decoder: nn.Module
    head: nn.Module
    blocks: tuple[nn.Module, ...]
    outer: nn.Module | None = None
    predicts_tokens: bool = True

    @property
    def sharded_outside(self) -> tuple[nn.Module, ...]:
        """The modules outside of blocks that FSDP2 shards, outer ones first."""
        inside = {id(inner) for block in self.blocks for inner in block.modules()}
        # A compiled model is false, for it asks the model for a length.
        every = sharded_in(self.causal_lm if self.outer is None else self.outer)
        return tuple(module for module in every if id(module) not in inside)

    @property
    def vocab_size(self) -> int:
        """The number of token ids: rows of the head, or of the embedding where it scores none."""
        if self.predicts_tokens:
            return self._head_weight().shape[0]
        embedding: Any = self.causal_lm.get_input_embeddings()  # type: ignore[operator]
        return int(embedding.weight.shape[0])

    @property
    def hidden_bytes(self) -> int:
        """Bytes of one token's hidden state in the dtype of the head."""
        weight = self._head_weight()
        return weight.shape[1] * weight.element_size()

    def loss_tile_tokens(self, tile_tokens: int) -> int:
        """A tile of the loss: a few tokens, and as many as have logits of a block tile's size.

        A sum of both and not the larger of them: so its bytes are a line over `tile_tokens`, which
        is what the profile fits.
        """
        vocab_size, hidden_size = self._head_weight().shape  # of logits, whatever they score
        share = min(1.0, _BLOCK_ROWS * hidden_size / (_LOGITS_ROWS * vocab_size))
        return min(tile_tokens, _LEAST_LOSS_TOKENS) + int(tile_tokens * share)

    def _head_weight(self) -> torch.Tensor:
        weight = self.head.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def probe_tokens(self) -> int:
        """A length for short runs that the model's position table allows."""
        config = getattr(self.causal_lm, "config", None)
        longest = getattr(config, "max_position_embeddings", None) or _PROBE_TOKENS
        # Two at least: token dimensions are learnt from two lengths, one token apart.
        return max(min(longest, _PROBE_TOKENS), 2)

    def run(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        """The causal LM's output on [batch, tokens] ids, without a key-value cache."""
        accepts = inspect.signature(self.causal_lm.forward).parameters
        options = {"use_cache": False} if "use_cache" in accepts else {}
        return self.causal_lm(input_ids=input_ids, labels=labels, **options)


def causal_lm_of(model: nn.Module) -> nn.Module:
    """The causal LM itself: the model that torch.compile or PEFT was given, or else `model`."""
    model = _uncompiled(model)
    get_base = getattr(model, "get_base_model", None)
    causal_lm: nn.Module = model if get_base is None else get_base()
    return _uncompiled(causal_lm)


def _uncompiled(module: nn.Module) -> nn.Module:
    """What `torch.compile(module)` was made of."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else module


def find_parts(model: nn.Module) -> ModelParts:
    """The parts of `model`, which may be a PEFT or a compiled model. Raises: UnsupportedModel."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"wrap takes a torch.nn.Module, got {type(model).__name__}")
    causal_lm = causal_lm_of(model)
    _check_placing(model, causal_lm)
    _check_config(causal_lm)
    body = _body_of(causal_lm)
    get_head = getattr(causal_lm, "get_output_embeddings", None)
    lm_head = None if get_head is None else get_head()
    head = lm_head if lm_head is not None or body is None else _scorer_of(causal_lm, body)
    if body is None or head is None:
        raise UnsupportedModel(
            f"{type(causal_lm).__name__} is not a causal LM that memo-train knows: it needs a "
            "`base_model` (the decoder) and `get_output_embeddings()` (the language-model head), "
            "or one linear layer beside the decoder (a reward model's score)"
        )
    if any(getattr(module, "gradient_checkpointing", False) for module in causal_lm.modules()):
        raise UnsupportedModel(
            f"{type(causal_lm).__name__} has gradient checkpointing on, which would recompute "
            "what the plan keeps; call model.gradient_checkpointing_disable() before wrap"
        )
    inner = _inner_decoder(causal_lm, body)
    stacks = list(_stacks(inner or body))
    called = _Called(causal_lm, [body, *(block for stack in stacks for block in stack)])
    if inner is not None or len(stacks) > 1:
        called.look()
    return ModelParts(
        causal_lm=causal_lm,
        decoder=body if inner is None or called.has(body) else inner,
        head=head,
        blocks=_largest([s for s in stacks if any(map(called.has, s))] or stacks, body),
        outer=None if model is causal_lm else model,
        predicts_tokens=lm_head is not None,
    )


def _check_placing(model: nn.Module, causal_lm: nn.Module) -> None:
    """Refuse what has taken the parameters away, or stands around the model."""
    name = type(causal_lm).__name__
    if name in _AROUND and isinstance(getattr(causal_lm, "module", None), nn.Module):
        raise UnsupportedModel(
            f"{name} stands around the model; call memo_train.wrap(model.module), or wrap the "
            f"model first and give the wrapped one to {name}"
        )
    sharded = sharded_in(model)
    if sharded and not is_fully_sharded(model):
        raise UnsupportedModel(
            f"fully_shard was called on {type(sharded[0]).__name__}, but not on "
            f"{type(model).__name__} itself; call fully_shard(model), too, before memo_train.wrap"
        )
    if any(map(is_taken_by_zero, causal_lm.parameters())):
        raise UnsupportedModel(
            "DeepSpeed's ZeRO stage 3 has taken the parameters away, and memo_train.wrap measures "
            "with them; call it before deepspeed.initialize and outside of deepspeed.zero.Init, "
            "or train with stage 2 (zero_optimization.stage)"
        )


def _body_of(causal_lm: nn.Module) -> nn.Module | None:
    """The model without its head: `base_model`, or where that is the model itself, `model`."""
    for name in ("base_model", "model"):
        body = getattr(causal_lm, name, None)
        if isinstance(body, nn.Module) and body is not causal_lm:
            return body
    return None


def _scorer_of(causal_lm: nn.Module, body: nn.Module) -> nn.Module | None:
    """The one linear layer outside of the decoder, as of models that score sequences or tokens."""
    if not hasattr(causal_lm, "get_input_embeddings"):
        return None
    outside = [module for module in causal_lm.children() if module is not body]
    linear = [m for each in outside for m in each.modules() if isinstance(m, nn.Linear)]
    return linear[0] if len(linear) == 1 else None


def _inner_decoder(causal_lm: nn.Module, body: nn.Module) -> nn.Module | None:
    """The text decoder inside `body`, which may hold encoders of other things; None if alone."""
    get_decoder = getattr(causal_lm, "get_decoder", None)
    inner = None if get_decoder is None else get_decoder()
    if not isinstance(inner, nn.Module) or inner is body or inner is causal_lm:
        return None
    is_inside = any(module is inner for module in body.modules())
    return inner if is_inside and any(_stacks(inner)) else None


class _Called:
    """Which of some modules a model calls: all of them, as far as one knows before `look`."""

    def __init__(self, causal_lm: nn.Module, modules: list[nn.Module]) -> None:
        self._causal_lm, self._modules = causal_lm, modules
        self._seen: set[int] | None = None

    def look(self) -> None:
        """Run the model on two tokens; one that does not run on ids alone shows nothing."""
        seen: set[int] = set()
        handles = [
            module.register_forward_pre_hook(lambda module, _: seen.add(id(module)))
            for module in self._modules
        ]
        where = next(self._causal_lm.parameters()).device
        ids = torch.zeros((1, 2), dtype=torch.long, device=where)
        rng = torch.random.fork_rng([where] if where.type == "cuda" else [])
        try:
            with torch.no_grad(), without_caches(configs_of(self._causal_lm)), rng:
                # Not the module itself: users' hooks on it need not run.
                run = (
                    self._causal_lm
                    if is_fully_sharded(self._causal_lm)
                    else self._causal_lm.forward
                )
                run(input_ids=ids)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
            return  # whoever runs it next says why
        finally:
            for handle in handles:
                handle.remove()
        self._seen = seen

    def has(self, module: nn.Module) -> bool:
        """Whether the model calls it."""
        return self._seen is None or id(module) in self._seen


def _check_config(causal_lm: nn.Module) -> None:
    name, config = class_of(causal_lm).__name__, getattr(causal_lm, "config", None)
    if getattr(config, "is_encoder_decoder", False) or getattr(
        config, "add_cross_attention", False
    ):
        raise UnsupportedModel(
            f"{name} has cross-attention (an encoder-decoder); memo-train wraps decoder-only LMs"
        )
    for output in UNSUPPORTED_OUTPUTS:
        if getattr(config, output, False):
            raise UnsupportedModel(f"{name}: config.{output} is not supported; set it to False")
    if _is_transformers(causal_lm) and name not in _known_names(config):
        raise UnsupportedModel(
            f"{name} is not a causal language model; wrap takes ...ForCausalLM or ...LMHeadModel"
        )


def _is_transformers(causal_lm: nn.Module) -> bool:
    # Not imported for this: a model of Transformers has done so.
    modeling: Any = sys.modules.get("transformers.modeling_utils")
    return modeling is not None and isinstance(causal_lm, modeling.PreTrainedModel)


def _known_names(config: Any) -> set[str]:
    """Causal LMs, and what scores sequences or tokens by the decoder of one (reward models)."""
    from transformers.models.auto import modeling_auto as auto

    known, model_type = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, type(config).model_type
    names = set(known.values())
    if model_type in known:
        for scorers in (
            auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        ):
            names.add(scorers.get(model_type, ""))
    return names


def _largest(stacks: list[tuple[nn.Module, ...]], body: nn.Module) -> tuple[nn.Module, ...]:
    """The blocks: of several lists that which has the most parameters."""
    if not stacks:
        raise UnsupportedModel(
            f"no blocks found in {type(body).__name__}: expected a torch.nn.ModuleList of "
            "transformer blocks"
        )
    # Blocks may have been compiled one by one.
    return tuple(_uncompiled(block) for block in max(stacks, key=_num_parameters))


def _stacks(module: nn.Module) -> Iterator[tuple[nn.Module, ...]]:
    """The outermost lists of modules, each module once."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child):
            # A block that is shared stands in its list many times.
            yield tuple({id(block): block for block in child}.values())
        else:
            yield from _stacks(child)


def _num_parameters(blocks: Iterable[nn.Module]) -> int:
    return sum(p.numel() for block in blocks for p in block.parameters())
