"""The whole block as one autograd function, so that parameter hooks fire once a step."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from memo_train.runtime.block import BlockPass


class BlockFunction(torch.autograd.Function):
    """y = block(x), with the block's trainable parameters as inputs of their own."""

    @staticmethod
    def forward(
        ctx: Any, block_pass: BlockPass, x: torch.Tensor, *parameters: torch.Tensor
    ) -> torch.Tensor:
        """x: [batch, tokens, hidden] -> y of the same shape."""
        ctx.block_pass = block_pass
        # Saved only so that autograd notices parameters changed between forward and backward.
        ctx.save_for_backward(*parameters)
        return block_pass.forward(x, x_needs_grad=ctx.needs_input_grad[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """dy: [batch, tokens, hidden] -> (None, dx, *parameter gradients)."""
        _ = ctx.saved_tensors
        dx, gradients = ctx.block_pass.backward(dy)
        return (None, dx, *gradients)
