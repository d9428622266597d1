"""Forwards put in place of modules' own ones, on these instances alone, and taken out again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import nn

from memo_train.errors import UnsupportedModel


class Replacement:
    """A forward in place of `plain`, with its signature; torch.compile runs it as it is."""

    def __init__(self, plain: Callable[..., Any], forward: Callable[..., Any]) -> None:
        functools.update_wrapper(self, plain)  # Trainer picks a batch's columns by the signature
        # Greenlets and streams of copies are not for a tracer, nor are graphs of part of a block.
        disable: Callable[..., Any] = torch.compiler.disable
        self._forward: Callable[..., Any] = disable(forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)

    def __reduce__(self) -> NoReturn:
        raise UnsupportedModel(
            "a wrapped model cannot be copied or pickled; call memo_train.unwrap(model) first, or "
            "save model.state_dict()"
        )


class ReplacedForwards:
    """Replaces `forward` on module instances and puts back what was there."""

    def __init__(self) -> None:
        self._replaced: dict[int, tuple[nn.Module, Callable[..., Any] | None]] = {}

    def replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Put `forward` in place; an instance's own one, if it has one, is kept for `restore`."""
        # Only the first time: later it would be one of ours.
        if id(module) not in self._replaced:
            self._replaced[id(module)] = (module, module.__dict__.get("forward"))
        module.forward = Replacement(module.forward, forward)

    def restore(self) -> None:
        """Put everything back."""
        for module, own in self._replaced.values():
            if own is None:
                del module.forward
            else:
                module.forward = own
        self._replaced.clear()
