"""Forwards of modules that are replaced for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn


class ReplacedForwards:
    """Replaces `forward` on module instances and puts back what was there."""

    def __init__(self) -> None:
        self._replaced: dict[int, tuple[nn.Module, Callable[..., Any] | None]] = {}

    def replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Put `forward` in place; an instance's own one, if it has one, is kept for `restore`."""
        if id(module) not in self._replaced:
            self._replaced[id(module)] = (module, module.__dict__.get("forward"))

        @functools.wraps(module.forward)  # Trainer picks a batch's columns by the signature
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

        module.forward = replacement

    def restore(self) -> None:
        """Put everything back."""
        for module, own in self._replaced.values():
            if own is None:
                del module.forward
            else:
                module.forward = own
        self._replaced.clear()
