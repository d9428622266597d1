"""A language model's dimensions from its config.json, by building it without memory.

Transformers' own classes read the configuration, so the model is the one that is trained: its
defaults, tied matrices, experts and windows. One forward over fake tensors then says what each
block multiplies, saves and attends to (`_config_trace.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from memo_planner.workload import BlockKind, ModelDims
from memo_train.errors import InvalidInput
from memo_train.trace._config_trace import TracedBlock, TracedModel, trace_blocks

_MOST_BLOCKS = 1000
"""No more are built: a misplaced number would take hours."""
_DTYPES = {2: torch.bfloat16, 4: torch.float32}
_MULTIPLIED_SHARE = 0.9
"""Of a block's active parameters, at least, multiply each token; the rest are norms and biases."""
_UNNAMED = "block"
_PARTIAL = ("sliding", "chunk", "local", "window")
"""In a layer's type: it does not attend to all tokens before."""
_OUTSIDE_SHARE = 0.1
"""Of all parameters, at most, in modules that are neither blocks nor tables nor the head. What
these multiply is counted, what they save is not."""


def model_of_config(config: dict[str, Any], name: str, dtype_bytes: int) -> ModelDims:
    """The dimensions of the language model that Transformers makes of `config`, a file's content.

    Of a model that also sees or hears only the part for text is taken. Weights are taken as
    trained, whatever the file says of their quantisation. dtype_bytes: 2 (bf16) or 4 (fp32).
    Raises: InvalidInput, naming what Transformers or the planner does not know.
    """
    # Only who reads a file waits for its import.
    from torch._subclasses.fake_tensor import FakeTensorMode

    text = _text_config(config)
    with FakeTensorMode(), _quiet():
        model = _build(text, _DTYPES[dtype_bytes])
        decoder, head = _decoder_and_head(model)
        blocks = _find_blocks(decoder)
        _check_outside(model, decoder, blocks, head)
        with _refused(f"a step of {type(model).__name__} cannot be followed without values"):
            traced = trace_blocks(model, blocks)
    names = _layer_types(text, len(blocks))
    traced = _with_windows(traced, names, text)
    in_blocks = _count(p for block in blocks for p in block.parameters())
    hidden = model.get_input_embeddings()
    assert isinstance(head.weight, torch.Tensor)
    return ModelDims(
        name=name,
        hidden=traced.hidden,
        vocab=head.weight.shape[0],
        tied=head.weight is hidden.weight,
        kinds=_kinds(blocks, traced, names, dtype_bytes),
        other_parameters=_count(model.parameters()) - in_blocks,
        head_parameters=max(1, round(traced.outside_flops_per_token / 2)),
        max_tokens=_table_rows(decoder, blocks, text),
    )


def _text_config(config: dict[str, Any]) -> Any:
    """Transformers' configuration of the model for text. Raises: InvalidInput."""
    import transformers

    model_type = config.get("model_type")
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if not isinstance(model_type, str) or model_type not in known:
        raise InvalidInput(
            f"model_type {model_type!r} is not one of Transformers {transformers.__version__}; "
            "code of a model's own is not run: update Transformers if it knows the model since"
        )
    with _refused(f"Transformers cannot read this as a {model_type}"), _quiet():
        whole = transformers.AutoConfig.for_model(**config)
        text = whole.get_text_config()
        if text is not whole and hasattr(whole, "tie_word_embeddings"):
            # The model ties by its own configuration, not by that of its part for text.
            text.tie_word_embeddings = whole.tie_word_embeddings
    for name in ("quantization_config", "auto_map"):
        if hasattr(text, name):
            delattr(text, name)
    return text


def _build(text: Any, dtype: torch.dtype) -> Any:
    """The model of `text`, on fake tensors. Raises: InvalidInput."""
    import transformers

    layers = getattr(text, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > _MOST_BLOCKS:
        raise InvalidInput(f"has {layers:,} blocks; at most {_MOST_BLOCKS:,} are planned")
    make = transformers.AutoModelForCausalLM.from_config
    with _refused(f"Transformers cannot build a causal language model of this {text.model_type}"):
        model = make(text, dtype=dtype)  # type: ignore[no-untyped-call]
    for part in model.modules():
        if hasattr(part, "config"):
            # Every attention function that Transformers would pick is replaced; see the trace.
            part.config._attn_implementation_internal = "sdpa"
    return model


def _decoder_and_head(model: Any) -> tuple[nn.Module, nn.Module]:
    decoder, head = model.base_model, model.get_output_embeddings()
    if decoder is model or head is None or getattr(model.config, "is_encoder_decoder", False):
        raise InvalidInput(
            f"{type(model).__name__} is not a decoder with a language-model head; only those "
            "are planned"
        )
    return decoder, head


def _find_blocks(decoder: nn.Module) -> tuple[nn.Module, ...]:
    """The list of modules with most parameters."""
    lists = [tuple(m) for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise InvalidInput(f"{type(decoder).__name__} has no list of blocks; a decoder has one")
    outer = [m for m in lists if not any(_holds(each, m) for each in lists)]
    return max(outer, key=lambda blocks: _count(p for block in blocks for p in block.parameters()))


def _holds(outer: tuple[nn.Module, ...], inner: tuple[nn.Module, ...]) -> bool:
    if outer is inner:
        return False
    return any(inner[0] is m for block in outer for m in block.modules())


def _check_outside(
    model: nn.Module, decoder: nn.Module, blocks: tuple[nn.Module, ...], head: nn.Module
) -> None:
    """Raises: InvalidInput if much of the model is in none of the parts that are costed."""
    known = {id(p) for block in (*blocks, head) for p in block.parameters()}
    for module in decoder.modules():
        if isinstance(module, nn.Embedding):
            known |= {id(p) for p in module.parameters()}
    rest = {n: p for n, p in model.named_parameters() if id(p) not in known}
    most = max(rest, key=lambda n: rest[n].numel(), default="")
    outside, total = _count(rest.values()), _count(model.parameters())
    if outside > _OUTSIDE_SHARE * total:
        raise InvalidInput(
            f"{type(model).__name__} has {outside:,} of {total:,} parameters outside its "
            f"{len(blocks)} blocks (the largest is {most}), whose work is not planned"
        )


def _layer_types(text: Any, num_blocks: int) -> list[str]:
    names = getattr(text, "layer_types", None)
    if isinstance(names, list | tuple) and len(names) == num_blocks:
        return [str(name) for name in names]
    return [_UNNAMED] * num_blocks


def _with_windows(traced: TracedModel, names: list[str], text: Any) -> TracedModel:
    """Windows that a model puts into masks alone, which are not made here, from its configuration.

    Raises: InvalidInput where blocks attend to a part of the tokens that nothing tells.
    """
    window = getattr(text, "sliding_window", None)
    window = window if isinstance(window, int) and window > 0 else None
    blocks = []
    for block, name in zip(traced.blocks, names, strict=True):
        cut = block.cut
        is_part = any(word in name for word in _PARTIAL)
        if cut is not None and cut.window is None and is_part:
            if window is None or "sliding" not in name:
                raise InvalidInput(
                    f"layer_types has {name!r}, whose reach no sliding_window of its attention "
                    "call tells; such blocks are not planned"
                )
            block = replace(block, cut=replace(cut, window=window))
        blocks.append(block)
    return replace(traced, blocks=tuple(blocks))


def _kinds(
    blocks: tuple[nn.Module, ...], traced: TracedModel, names: list[str], dtype_bytes: int
) -> tuple[BlockKind, ...]:
    """Equal blocks taken together, in the order in which the first of each kind comes."""
    counts: dict[tuple[str, int, int, TracedBlock], int] = {}
    for block, found, name in zip(blocks, traced.blocks, names, strict=True):
        all_of, active = _block_parameters(block, found)
        if name == _UNNAMED:
            name = type(block).__name__ if found.cut is None else "attention"
        _check_multiplied(name, active, found)
        key = (name, all_of, active, found)
        counts[key] = counts.get(key, 0) + 1
    return tuple(
        _kind(*key, _Rest(count, dtype_bytes, traced.hidden)) for key, count in counts.items()
    )


@dataclass(frozen=True)
class _Rest:
    """What a kind of block has besides its trace."""

    count: int
    dtype_bytes: int
    hidden: int


def _kind(name: str, parameters: int, active: int, found: TracedBlock, rest: _Rest) -> BlockKind:
    cut = found.cut
    heads = (0, 0, 0, 0) if cut is None else (cut.heads, cut.kv_heads, cut.head_dim, cut.v_head_dim)
    out_flops = 2 * rest.hidden * heads[0] * heads[3]
    mlp_flops = max(0.0, found.post_flops_per_token - out_flops)
    # A gated MLP has two products ahead of its activation for the one behind it.
    gated = mlp_flops > 2.5 * (found.down_flops_per_token - out_flops)
    window = None if cut is None else cut.window
    parts = [name]
    parts += [] if window is None else [f"window {window:,}"]
    parts += ["experts"] if active < parameters else []
    return BlockKind(
        name=", ".join(parts),
        count=rest.count,
        parameters=parameters,
        active_parameters=active,
        pre_parameters=round(found.pre_flops_per_token / 2),
        post_parameters=round(found.post_flops_per_token / 2),
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=heads[2],
        v_head_dim=heads[3],
        window=window,
        mlp_width=round(mlp_flops / 2 / rest.hidden / (3 if gated else 2)),
        gated=gated,
        pre_width=found.pre_bytes_per_token / rest.dtype_bytes,
        post_width=found.post_bytes_per_token / rest.dtype_bytes,
    )


def _check_multiplied(name: str, active: int, found: TracedBlock) -> None:
    """Raises: InvalidInput if a block that is cut has parameters that do nothing for a token.

    Experts of a kind that is not known here would otherwise be costed as if all were active.
    """
    multiplied = (found.pre_flops_per_token + found.post_flops_per_token) / 2
    if found.cut is not None and multiplied < _MULTIPLIED_SHARE * active:
        raise InvalidInput(
            f"of a block's {active:,} parameters ({name}) only {multiplied:,.0f} multiply a token "
            "in a traced step, and what the others do is not known; the model is not planned"
        )


def _block_parameters(block: nn.Module, found: TracedBlock) -> tuple[int, int]:
    """All parameters of a block, and those a token meets; each experts' module has a share."""
    total = _count(block.parameters())
    idle = 0.0
    for name, active in found.experts:
        module = block.get_submodule(name)
        held = _count(module.parameters())
        num_experts = next(p.shape[0] for p in module.parameters())
        idle += held * (1 - min(active / num_experts, 1.0))
    return total, total - round(idle)


def _table_rows(decoder: nn.Module, blocks: tuple[nn.Module, ...], text: Any) -> int | None:
    """The longest sequence that learned tables of positions allow; None if there are none.

    Some tables have more rows than positions, so the configuration's own number counts where
    there is one.
    """
    inside = {id(m) for block in blocks for m in block.modules()}
    tables = [
        module.num_embeddings
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Embedding) and id(module) not in inside
        if any(part in name for part in ("position", "wpe"))
    ]
    rows = getattr(text, "max_position_embeddings", None)
    least = min(tables, default=None)
    return least if least is None or not isinstance(rows, int) else min(least, rows)


def _count(parameters: Any) -> int:
    """Numbers in all of them, a shared one counted once."""
    return sum(p.numel() for p in {id(p): p for p in parameters}.values())


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Whatever a file makes other people's code raise becomes one error. Raises: InvalidInput."""
    try:
        yield
    except InvalidInput:
        raise
    except Exception as error:
        # Transformers' messages may quote a whole configuration.
        reason = " ".join(str(error).split())[:300]
        raise InvalidInput(f"{what} ({type(error).__name__}: {reason})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without remarks on the file: they are meant for who loads weights."""
    import transformers

    level, disabled = transformers.logging.get_verbosity(), logging.root.manager.disable
    transformers.logging.set_verbosity(logging.ERROR)
    logging.disable(logging.ERROR)  # PyTorch logs what fails, and it is raised as well
    try:
        yield
    finally:
        logging.disable(disabled)
        transformers.logging.set_verbosity(level)
