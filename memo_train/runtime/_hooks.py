"""Modules without the hooks that users put on them, while the runtime tries the model out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "deepspeed")
_KINDS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@contextmanager
def without_user_hooks(model: nn.Module, but_inside: Iterable[nn.Module] = ()) -> Iterator[None]:
    """While active, hooks on the modules of `model` do not run; put back in their order.

    but_inside: blocks whose own modules keep theirs: they are part of what is proven of a block.

    Those of libraries stay: fully sharded modules gather their parameters in them, and PEFT lets
    embeddings require gradients.
    """
    kept = {id(m) for block in but_inside for m in block.modules() if m is not block}
    every = (
        getattr(module, kind)
        for module in model.modules()
        if id(module) not in kept
        for kind in _KINDS
    )
    with hooks_taken_out(every, lambda hook: not _is_a_librarys(hook)):
        yield


@contextmanager
def hooks_taken_out(
    every: Iterable[dict[int, Any]], is_one: Callable[[Any], bool]
) -> Iterator[None]:
    """While active, the hooks for which `is_one` holds are not in these dictionaries of modules."""
    found = [(hooks, list(hooks.items())) for hooks in every if any(map(is_one, hooks.values()))]
    for hooks, items in found:
        for key, hook in items:
            if is_one(hook):
                del hooks[key]
    try:
        yield
    finally:
        for hooks, items in found:
            # Hooks that were put on meanwhile stay, or their handles would be of nothing.
            added = [item for item in hooks.items() if item not in items]
            hooks.clear()
            hooks.update([*items, *added])


def _is_a_librarys(hook: Any) -> bool:
    # A partial is of functools; whose hook it is, its function tells.
    function = getattr(hook, "func", hook)
    return str(getattr(function, "__module__", "")).partition(".")[0] in _LIBRARIES
