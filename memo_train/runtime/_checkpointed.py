"""A block that is not token-wise: checkpointed whole by PyTorch, with its input x swapped.

Its attention is run again in backward, with everything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from memo_planner.policy import Place
from memo_train.runtime._ambient import function_modes, in_function_modes
from memo_train.runtime._block_state import BlockSpec
from memo_train.runtime._module_state import kept_state
from memo_train.runtime._saved import SavedTensors, storage_keys
from memo_train.runtime._shadow import ModuleTensors
from memo_train.runtime._sharded import without_moves


class _Repeated:
    """A block's forward, to be run once and then again: the second time leaves no trace."""

    def __init__(self, spec: BlockSpec) -> None:
        self._spec, self._tensors = spec, ModuleTensors(spec.module)
        self._modes = function_modes()
        self._is_first = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        spec = self._spec
        if self._is_first:
            self._is_first = False
            with without_moves(spec.sharded):
                return spec.forward(*args, **kwargs)
        # Without shadows: this graph is differentiated once, by autograd itself.
        with ExitStack() as stack:
            stack.enter_context(without_moves(spec.sharded))
            stack.enter_context(self._tensors.installed((), ()))
            stack.enter_context(kept_state(spec.module, spec.changes))
            stack.enter_context(in_function_modes(self._modes))
            return spec.forward(*args, **kwargs)


def run_checkpointed(
    spec: BlockSpec,
    x: torch.Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    foreign: Iterable[torch.Tensor],
) -> Any:
    """The block's output, with a graph that runs the block again in backward.

    x: [batch, tokens, hidden]. foreign: tensors among the arguments, which are not swapped.
    """
    saved = SavedTensors()
    with saved.hooks():
        # The reentrant kind takes no keyword arguments and runs a backward inside the backward.
        output = checkpoint(_Repeated(spec), x, *args, use_reentrant=False, **kwargs)
    target = spec.swap_target if spec.policy.x is Place.SWAP else None
    saved.settle({}, storage_keys(foreign), target)
    return output
