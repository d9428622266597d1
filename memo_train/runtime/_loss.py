"""The language-model head and its loss, one token tile at a time: logits never exist whole.

The model's own forward runs unchanged on every tile: its decoder is made to return the tile's
hidden states, so scaling, soft caps and the loss function are the model's own. Gradients are taken
in the same pass, while the tile's logits are there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from memo_train.errors import BackwardTwice
from memo_train.runtime._ambient import Ambient, differentiable_once
from memo_train.runtime._observe import NOWHERE, Observer, ignore
from memo_train.runtime._shadow import GradientSum, installed, shadows_of
from memo_train.runtime._tile import tile_of, tile_spans

IGNORE_INDEX = -100


class _DecoderDone(BaseException):
    """Ends the model's forward once its decoder has run; never leaves this module."""


class TiledLoss:
    """A causal LM's forward that computes the loss by tiles when labels are given.

    `model` calls `decoder` once, then `head`, and computes its loss from `labels`, `shift_labels`
    and `num_items_in_batch` as Transformers' causal LMs do.
    Attributes set for each step: tile_tokens, positions per tile; observer.
    """

    def __init__(self, model: nn.Module, decoder: nn.Module, head: nn.Module) -> None:
        self.tile_tokens = 1
        self.observer: Observer = ignore
        self._model, self._decoder, self._head = model, decoder, head
        self._forward: Callable[..., Any] = model.forward

    def forward(self, **arguments: Any) -> Any:
        """The model's output; given labels and gradients, `.loss` is tiled and `.logits` None."""
        labels, shifted = arguments.get("labels"), arguments.get("shift_labels")
        if (labels is None and shifted is None) or not torch.is_grad_enabled():
            return self._forward(**arguments)
        if shifted is None:
            assert labels is not None
            shifted = F.pad(labels, (0, 1), value=IGNORE_INDEX)[..., 1:]
        if arguments.get("num_items_in_batch") is None:
            arguments["num_items_in_batch"] = (shifted != IGNORE_INDEX).sum()
        decoded = self._run_decoder(arguments)
        loss_pass = _LossPass(self, arguments, shifted, decoded)
        hidden = decoded if isinstance(decoded, torch.Tensor) else decoded[0]
        loss = _LossFunction.apply(  # type: ignore[no-untyped-call]
            loss_pass, hidden, *loss_pass.parameters
        )
        return _with_loss(loss_pass.output, loss)

    def parameters(self) -> tuple[torch.Tensor, ...]:
        """The trainable parameters outside the decoder, and the head's (it may share some)."""
        inside = {id(p) for p in self._decoder.parameters()}
        outside = [p for p in self._model.parameters() if id(p) not in inside]
        wanted = {id(p): p for p in (*outside, *self._head.parameters()) if p.requires_grad}
        return tuple(wanted.values())

    def on_tile(self, arguments: dict[str, Any], labels: torch.Tensor, decoded: Any) -> Any:
        """The model's output for one tile: `decoded` from the decoder, `labels` already shifted."""
        with _replaced(self._model, self._decoder, _Returns(decoded)):
            return self._forward(**(arguments | {"labels": labels, "shift_labels": labels}))

    @contextmanager
    def surroundings(self, shadows: Sequence[torch.Tensor], device_type: str) -> Iterator[None]:
        """The state in which tiles run: shadow parameters, recorded graphs."""
        ambient = Ambient.current(device_type).restored(grad=True)
        with ambient, installed(self._model, self.parameters(), shadows):
            yield

    def _run_decoder(self, arguments: dict[str, Any]) -> Any:
        decoded: list[Any] = []

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            decoded.append(output)
            raise _DecoderDone

        handle = self._decoder.register_forward_hook(stop)
        try:
            self._forward(**arguments)
        except _DecoderDone:
            pass
        finally:
            handle.remove()
        return decoded[0]


class _LossPass:
    """One loss over all tiles: value and gradients in forward, handed out in backward."""

    def __init__(
        self, tiled: TiledLoss, arguments: dict[str, Any], labels: torch.Tensor, decoded: Any
    ) -> None:
        self.parameters = tiled.parameters()
        self.output: Any = None
        self._tiled, self._arguments, self._labels = tiled, arguments, labels
        self._decoded: Any = decoded
        self._gradients: tuple[torch.Tensor | None, ...] | None = None

    def forward(self, hidden: torch.Tensor, *, hidden_needs_grad: bool) -> torch.Tensor:
        """hidden: [batch, tokens, hidden] -> scalar loss; keeps the gradients."""
        self._tiled.observer("loss", NOWHERE, NOWHERE)
        shadows, sums = shadows_of(self.parameters), GradientSum(self.parameters)
        dhidden = torch.empty_like(hidden) if hidden_needs_grad else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with self._tiled.surroundings(shadows, hidden.device.type):
            for index, span in enumerate(tile_spans(hidden.shape[1], self._tiled.tile_tokens)):
                self._tiled.observer("loss", NOWHERE, index)
                leaf = tile_of(hidden, span).detach().requires_grad_(hidden_needs_grad)
                loss, gradients = self._on_tile(span, leaf, shadows)
                total += loss
                sums.add(gradients[1:])
                if dhidden is not None and gradients[0] is not None:
                    tile_of(dhidden, span).copy_(gradients[0])
        self._decoded = None
        self._gradients = (dhidden, *sums.take())
        self._tiled.observer("between", NOWHERE, NOWHERE)
        return total

    def backward(self, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients times the gradient of the loss, by hidden and the parameters."""
        gradients, self._gradients = self._gradients, None
        if gradients is None:
            raise BackwardTwice("backward ran a second time through a tiled loss")
        return tuple(None if g is None else g.mul_(scale.to(g.dtype)) for g in gradients)

    def _on_tile(
        self, span: range, leaf: torch.Tensor, shadows: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
        labels = tile_of(self._labels, span).contiguous()
        self.output = self._tiled.on_tile(
            self._arguments, labels, _with_hidden(self._decoded, leaf)
        )
        loss = self.output[0] if isinstance(self.output, tuple) else self.output.loss
        self.output = _with_loss(self.output, None)
        inputs = [tensor for tensor in (leaf, *shadows) if tensor.requires_grad]
        found = list(torch.autograd.grad(loss, inputs, allow_unused=True)) if inputs else []
        return loss.detach(), found if leaf.requires_grad else [None, *found]


class _LossFunction(torch.autograd.Function):
    """loss = tiled(hidden), with the head's trainable parameters as inputs of their own."""

    @staticmethod
    def forward(
        ctx: Any, loss_pass: _LossPass, hidden: torch.Tensor, *parameters: torch.Tensor
    ) -> torch.Tensor:
        ctx.loss_pass = loss_pass
        return loss_pass.forward(hidden, hidden_needs_grad=ctx.needs_input_grad[1])

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (None, *ctx.loss_pass.backward(scale))


class _Returns(nn.Module):
    """Stands in for the decoder on one tile."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._output


@contextmanager
def _replaced(root: nn.Module, module: nn.Module, stand_in: nn.Module) -> Iterator[None]:
    """While active, `stand_in` takes the place of `module` under `root`; no hooks of it run."""
    places = [
        (owner._modules, name)
        for owner in root.modules()
        for name, child in owner._modules.items()
        if child is module
    ]
    for children, name in places:
        children[name] = stand_in
    try:
        yield
    finally:
        for children, name in places:
            children[name] = module


def _with_hidden(decoded: Any, hidden: torch.Tensor) -> Any:
    if isinstance(decoded, torch.Tensor):
        return hidden
    if isinstance(decoded, tuple):
        return (hidden, *decoded[1:])
    return dataclasses.replace(decoded, last_hidden_state=hidden)


def _with_loss(output: Any, loss: torch.Tensor | None) -> Any:
    """The model's output without logits and with this loss."""
    if isinstance(output, tuple):
        return (loss, None, *output[2:])
    return dataclasses.replace(output, loss=loss, logits=None)
