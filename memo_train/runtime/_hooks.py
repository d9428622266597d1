"""Modules without the hooks that users put on them, while the runtime tries the model out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_KINDS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@contextmanager
def without_user_hooks(model: nn.Module) -> Iterator[None]:
    """While active, hooks on the modules of `model` do not run; put back in their order.

    PyTorch's own stay: fully sharded modules gather their parameters in them.
    """
    found = [
        (hooks, list(hooks.items()))
        for module in model.modules()
        for hooks in (getattr(module, kind) for kind in _KINDS)
        if hooks
    ]
    for hooks, items in found:
        for key, hook in items:
            if not _is_pytorchs(hook):
                del hooks[key]
    try:
        yield
    finally:
        for hooks, items in found:
            added = [item for item in hooks.items() if item not in items]
            hooks.clear()
            hooks.update([*items, *added])


def _is_pytorchs(hook: Any) -> bool:
    function = getattr(hook, "func", hook)
    return str(getattr(function, "__module__", "")).startswith("torch.")
