"""DeepSpeed's Ulysses attention for Transformers (`UlyssesSPAttentionHF`), where a model has it.

It stands in Transformers' registry in the place of the attention function that it calls, and
exchanges tokens for heads around that. Under the runtime ranks exchange at the cut instead, and the
function itself attends: so a probe or a profile enters no collective, at any length.

Source: deepspeed/runtime/sequence_parallel/ulysses_sp.py (DeepSpeed 0.19).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from memo_train.errors import UnsupportedModel
from memo_train.runtime._parts import configs_of

_MODULE = "deepspeed.runtime.sequence_parallel.ulysses_sp"
_CLASS = "UlyssesSPAttentionHF"


def ulysses_behind(function: Callable[..., Any]) -> Any | None:
    """The `UlyssesSPAttentionHF` that an attention function calls, or None."""
    if getattr(function, "__module__", None) != _MODULE:
        return None
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return next((value for value in cells if type(value).__name__ == _CLASS), None)


def deepspeed_ulysses_of(model: nn.Module) -> Any | None:
    """The `UlyssesSPAttentionHF` by which a model attends now; None also of what is no model."""
    if not isinstance(model, nn.Module):
        return None  # `wrap` says so where it looks for the model's parts
    found = (ulysses_behind(function) for _, function in _functions_of(model))
    return next((adapter for adapter in found if adapter is not None), None)


@contextmanager
def attending_alone(model: nn.Module) -> Iterator[None]:
    """While active, a model attends to this rank's tokens by the function that DeepSpeed calls."""
    registry = _registry()
    adapted = {name: f for name, f in _functions_of(model) if ulysses_behind(f) is not None}
    for name, function in adapted.items():
        adapter: Any = ulysses_behind(function)
        registry[name] = adapter.attn
    try:
        yield
    finally:
        registry.update(adapted)


def own_function(
    function: Callable[..., Any], module: nn.Module, *, shared: bool
) -> Callable[..., Any]:
    """What attends at a cut: `function`, or what DeepSpeed's adapter calls.

    shared: whether ranks exchange around the cut. Raises: UnsupportedModel if the adapter would.
    """
    adapter = ulysses_behind(function)
    if adapter is None or (not module.training and adapter.disable_in_eval):
        return function
    if not shared:
        raise UnsupportedModel(
            f"DeepSpeed's {_CLASS} was registered with Transformers after wrap, which has to know "
            "of it; call wrap after register_with_transformers (with Accelerate: after prepare)"
        )
    attend: Callable[..., Any] = adapter.attn
    return attend


def _registry() -> Any:
    transformers: Any = sys.modules.get("transformers.modeling_utils")
    return {} if transformers is None else transformers.ALL_ATTENTION_FUNCTIONS


def _functions_of(model: nn.Module) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The attention functions that a model's configurations name, each once."""
    registry = _registry()
    names = (getattr(config, "_attn_implementation", None) for config in configs_of(model))
    for name in dict.fromkeys(names):
        if isinstance(name, str) and name in registry:
            yield name, registry[name]
