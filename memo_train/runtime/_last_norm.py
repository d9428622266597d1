"""The norm behind the last block, in steps by groups of heads: little of it is there whole.

Autograd would hold two tensors of all tokens for it and make five more in backward, more than the
blocks take then. Here its input waits on the host. Its output, and the gradient of its input, are
made by tiles; the gradients of its parameters of all tokens at once, so that they are to the bit
those of other plans.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from memo_train.device import Device
from memo_train.errors import BackwardTwice, MemoError
from memo_train.runtime._ambient import Ambient, differentiable_once
from memo_train.runtime._module_state import kept_state
from memo_train.runtime._parked import parkable, parked
from memo_train.runtime._parts import ModelParts
from memo_train.runtime._planes import HostInput, Output
from memo_train.runtime._probe_gradients import NOT_RUNNABLE, is_close
from memo_train.runtime._saved import storage_key
from memo_train.runtime._shadow import ModuleTensors, shadows_of, trainable_parameters
from memo_train.runtime._sharded import is_taken_by_zero
from memo_train.runtime._swap import CopiesInFlight, SwapTarget, is_plain
from memo_train.runtime._tile import differentiate, tile_of, tile_spans

_PROOF_TOKENS, _PROOF_TILE = 5, 2


def norms_behind(parts: ModelParts) -> tuple[LastNorm, ...]:
    """The modules of the decoder that may be a norm behind its blocks: of vectors, without parts.

    Which of them gets the last block's output is seen in a step.
    """
    inside = {id(module) for block in parts.blocks for module in block.modules()}
    return tuple(
        LastNorm(module)
        for module in parts.decoder.children()
        if id(module) not in inside and _is_of_vectors(module)
    )


def _is_of_vectors(module: nn.Module) -> bool:
    own = list(module.parameters())
    return bool(own) and not list(module.children()) and all(p.dim() == 1 for p in own)


class LastNorm:
    """A module that may be the norm behind the last block. forward: its own."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forward: Callable[..., Any] = module.forward
        self._proven: dict[Hashable, bool] = {}
        self._is_proven = False

    def prove(self, device: Device, state: Hashable) -> None:
        """Find out, unless it is known for such a state of the model, whether it runs by tiles."""
        ambient = Ambient.current(device.torch_device.type)
        key = (state, ambient, self.module.training)
        if key not in self._proven:
            own = [*self.module.parameters(), *self.module.buffers()]
            plain = all(is_plain(t) and not is_taken_by_zero(t) for t in own)
            self._proven[key] = plain and _runs_by_tiles(self.module, self.forward, device)
        self._is_proven = self._proven[key]

    def can_run(self, x: torch.Tensor, device: Device) -> bool:
        """Whether `run` may take `x`."""
        of_device = is_plain(x) and device.owns(storage_key(x)) and x.is_contiguous()
        return self._is_proven and of_device and x.requires_grad and torch.is_grad_enabled()

    def run(self, x: torch.Tensor, tile_tokens: int, target: SwapTarget) -> torch.Tensor:
        """Its output. x: [batch, tokens, hidden]."""
        parameters = trainable_parameters(self.module)
        norm_pass = NormPass(self.module, self.forward, tile_tokens, target)
        out: torch.Tensor = _NormFunction.apply(norm_pass, x, *parameters)  # type: ignore[no-untyped-call]
        return out


class NormPass:
    """One forward of a norm and, once, its backward."""

    def __init__(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        tile_tokens: int,
        target: SwapTarget,
    ) -> None:
        self._forward, self._tile_tokens, self._target = forward, tile_tokens, target
        self._parameters = trainable_parameters(module)
        self._shadows = shadows_of(self._parameters)
        # As forward finds them: by backward others may be in their places.
        self._tensors = ModuleTensors(module)
        self._ambient = Ambient.current(target[0].torch_device.type)
        self._x: HostInput | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [batch, tokens, hidden] -> the same shape, without a graph."""
        out = Output(x.shape, self._tile_tokens, None)
        with self._ambient.restored(grad=False):
            for index, span in enumerate(tile_spans(x.shape[1], self._tile_tokens)):
                out.write(index, self._forward(tile_of(x, span)))
        self._x = HostInput.of(x, self._target)
        return out.take()

    def backward(
        self, dy: torch.Tensor, *, x_needs_grad: bool
    ) -> tuple[torch.Tensor | None, Sequence[torch.Tensor | None]]:
        """dy: [batch, tokens, hidden] -> (dx, parameter gradients). Raises: BackwardTwice."""
        x, self._x = self._x, None
        if x is None:
            raise BackwardTwice(
                "backward ran a second time through the norm behind the wrapped blocks; what it "
                "saved is released by the first (retain_graph is not supported while wrapped)"
            )
        gradients = self._of_parameters(x, dy)
        return (self._of_input(x, dy) if x_needs_grad else None), gradients

    def _of_parameters(self, x: HostInput, dy: torch.Tensor) -> Sequence[torch.Tensor | None]:
        if not self._shadows:
            return ()
        device = self._target[0]
        installed = self._tensors.installed(self._parameters, self._shadows)
        # The graph is made without dy, and differentiated without x.
        with (
            parked(parkable([dy], frozenset(), device), device),
            self._ambient.restored(grad=True),
            installed,
        ):
            edge = get_gradient_edge(self._forward(x.whole()))
        return differentiate([edge], [dy], self._shadows, retain_graph=False)

    def _of_input(self, x: HostInput, dy: torch.Tensor) -> torch.Tensor:
        dx = x.empty()
        spans = tile_spans(x.shape[1], self._tile_tokens)
        with self._tensors.installed((), ()):
            for span in reversed(spans):
                leaf = x.rows(span).requires_grad_()
                with self._ambient.restored(grad=True):
                    edge = get_gradient_edge(self._forward(leaf))
                of_tile = tile_of(dy, span)
                (found,) = differentiate([edge], [of_tile], (leaf,), retain_graph=False)
                assert found is not None, "a norm's output depends on its input"
                tile_of(dx, span).copy_(found)
        return dx


class _NormFunction(torch.autograd.Function):
    """out = norm(x), with the norm's trainable parameters as inputs of their own."""

    @staticmethod
    def forward(
        ctx: Any, norm_pass: NormPass, x: torch.Tensor, *parameters: torch.Tensor
    ) -> torch.Tensor:
        """x: [batch, tokens, hidden] -> out of the same shape."""
        ctx.norm_pass = norm_pass
        # Saved only so that autograd notices parameters changed between forward and backward.
        ctx.save_for_backward(*parameters)
        return norm_pass.forward(x)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """dy: [batch, tokens, hidden] -> (None, dx, *parameter gradients)."""
        _ = ctx.saved_tensors
        dx, gradients = ctx.norm_pass.backward(dy, x_needs_grad=ctx.needs_input_grad[1])
        return (None, dx, *gradients)


def _runs_by_tiles(module: nn.Module, forward: Callable[..., Any], device: Device) -> bool:
    """Whether tokens do not meet in a norm, and its tiles give what it gives on all of them."""
    weight = next(module.parameters())
    shape = (1, _PROOF_TOKENS, weight.shape[0])
    # Made up without random numbers, which are the training's.
    count = torch.arange(math.prod(shape), device=device.torch_device).view(shape).double()
    x, dy = (made.to(weight.dtype) for made in (0.5 + count.sin(), count.cos()))
    before = [generator.get_state() for generator in device.generators]
    try:
        with torch.enable_grad(), kept_state(module):
            whole = _plain_run(module, forward, x, dy)
            tiled = _tiled_run(module, forward, (x, dy), device)
            beside = x.clone()
            beside[:, 1:] = math.nan
            alone = forward(beside)[:, :1].detach()
    except (MemoError, *NOT_RUNNABLE):
        return False
    after = [generator.get_state() for generator in device.generators]
    if not all(map(torch.equal, before, after)) or whole[0].shape != x.shape:
        return False
    pairs = [*zip(tiled, whole, strict=True), (alone, whole[0][:, :1])]
    return all(a.dtype == b.dtype and is_close(a, b) for a, b in pairs)


_Run = tuple[torch.Tensor, ...]
"""The output, and the gradients of the input and of every trained parameter."""


def _plain_run(
    module: nn.Module, forward: Callable[..., Any], x: torch.Tensor, dy: torch.Tensor
) -> _Run:
    leaf, parameters = x.clone().requires_grad_(), trainable_parameters(module)
    shadows = shadows_of(parameters)
    with ModuleTensors(module).installed(parameters, shadows):
        out = forward(leaf)
    found = torch.autograd.grad(out, (leaf, *shadows), dy.to(out.dtype))
    return (out.detach(), *found)


def _tiled_run(
    module: nn.Module,
    forward: Callable[..., Any],
    given: tuple[torch.Tensor, torch.Tensor],
    device: Device,
) -> _Run:
    x, dy = given
    norm_pass = NormPass(module, forward, _PROOF_TILE, (device, CopiesInFlight(0)))
    out = norm_pass.forward(x)
    with torch.no_grad():
        dx, gradients = norm_pass.backward(dy.to(out.dtype), x_needs_grad=True)
    assert dx is not None
    every = (dx, *gradients)
    return (out, *(torch.zeros(()) if g is None else g for g in every))
