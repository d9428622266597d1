"""The fallback for a block that is not token-wise: checkpointed whole, with its input x swapped.

PyTorch's own checkpointing runs the block, so whatever autograd supports is right here too;
attention is run again in backward with everything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from memo_planner.policy import Place
from memo_train.runtime.block_state import BlockSpec
from memo_train.runtime.saved import SavedTensors


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
        output = checkpoint(spec.forward, x, *args, use_reentrant=False, **kwargs)
    saved.settle({}, foreign, spec.swap_target if spec.policy.x is Place.SWAP else None)
    return output
