"""The value and the gradients of a loss, one tile of tokens at a time.

In one pass: gradients are taken in forward, while a tile's logits are there, and multiplied in
backward by the gradient that the loss gets. In fp16 most of them would be lost before a loss scale
arrives, so there the logits are made a second time in backward, and the scale is in from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from memo_train.errors import BackwardTwice, DoubleBackward
from memo_train.runtime._ambient import Ambient, Generators, RngStates, preserved_rng, set_rng
from memo_train.runtime._loss_call import LossCall, LossIsWhole
from memo_train.runtime._loss_output import loss_of, without_logits
from memo_train.runtime._loss_tail import Slot, Tail, put_in, with_hidden
from memo_train.runtime._observe import NOWHERE, Observer
from memo_train.runtime._shadow import GradientSum, shadows_of
from memo_train.runtime._tile import tile_of

Gradients = list[torch.Tensor | None]
"""By the hidden states, then by each parameter."""

# 4 MiB of fp32 beside a bf16 gradient, however large that is.
_SCALED_AT_ONCE = 1 << 20


def computes_in_float16(tail: Tail, hidden: torch.Tensor) -> bool:
    """Whether gradients of the tail may be too small for the dtype they are made in."""
    where = hidden.device.type
    lowered = torch.is_autocast_enabled(where) and torch.get_autocast_dtype(where) == torch.float16
    return lowered or torch.float16 in {hidden.dtype, *(t.dtype for t in tail.trainable())}


class LossPass:
    """One loss over all tiles.

    decoded: the decoder's output, whose hidden states are replaced by those of each tile.
    Attributes: output, the model's for the last tile, without loss and logits.
    """

    def __init__(
        self, tail: Tail, call: LossCall, decoded: Any, tile_tokens: int, observer: Observer
    ) -> None:
        self.output: Any = None
        self.tail, self._call, self._decoded, self._observer = tail, call, decoded, observer
        self._spans = call.spans(tile_tokens)
        self._weights = tuple(call.weights(self._spans))
        self._gradients: Gradients | None = None

    def leave_out_all_but(self, num_tiles: int) -> None:
        """Compute no more tiles, the longest: what such a loss is means nothing."""
        longest = sorted(self._spans, key=len, reverse=True)[:num_tiles]
        self._weights = tuple(
            weight if span in longest else 0.0
            for weight, span in zip(self._weights, self._spans, strict=True)
        )

    def apply(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [batch, tokens, hidden] -> the loss, with its graph."""
        function = _TwoPasses if computes_in_float16(self.tail, hidden) else _OnePass
        loss: torch.Tensor = function.apply(  # type: ignore[no-untyped-call]
            self, hidden, *self.tail.trainable()
        )
        return loss

    def value(self, hidden: torch.Tensor) -> torch.Tensor:
        """The loss alone."""
        with self._ambient(hidden, grad=False):
            return self._total(self._tile(i, hidden)[0].detach() for i in self._tiles())

    def value_and_gradients(
        self,
        hidden: torch.Tensor,
        *,
        of_hidden: bool = True,
        parameters: Sequence[torch.Tensor] | None = None,
        scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Gradients]:
        """The loss, and its gradients times `scale`; by all trainable parameters, or by these."""
        parameters = self.tail.trainable() if parameters is None else parameters
        shadows, sums = shadows_of(parameters), GradientSum(parameters)
        shadow_of = {id(p): shadow for p, shadow in zip(parameters, shadows, strict=True)}
        slots = [(at, name, shadow_of.get(id(t), t)) for at, name, t in self.tail.slots()]
        dhidden = torch.zeros_like(hidden) if of_hidden else None

        def losses() -> Iterator[torch.Tensor]:
            for index in self._tiles():
                loss, leaf = self._tile(index, hidden, of_hidden=of_hidden)
                gradients = _differentiate(loss, (leaf, *shadows), scale)
                sums.add(gradients[1:])
                if dhidden is not None and gradients[0] is not None:
                    tile_of(dhidden, self._spans[index]).copy_(gradients[0])
                # Before the next tile's logits are made.
                del gradients
                yield loss.detach()

        with self._ambient(hidden, grad=True), put_in(slots):
            total = self._total(losses())
        return total, [dhidden, *sums.take()]

    def _ambient(self, hidden: torch.Tensor, *, grad: bool) -> Any:
        return Ambient.current(hidden.device.type).restored(grad=grad)

    def _tiles(self) -> Iterator[int]:
        self._observer("loss", NOWHERE, NOWHERE)
        for index, weight in enumerate(self._weights):
            if weight != 0 or self._call.is_empty:  # a mean over no labels is not a number
                self._observer("loss", NOWHERE, index)
                yield index
        self._observer("between", NOWHERE, NOWHERE)

    def _tile(
        self, index: int, hidden: torch.Tensor, *, of_hidden: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A tile's share of the loss, and its hidden states as a leaf."""
        span = self._spans[index]
        leaf = tile_of(hidden, span).detach().requires_grad_(of_hidden)
        output = self.tail.run(with_hidden(self._decoded, leaf), self._call.of_tile(span))
        loss = loss_of(output)
        if loss is None:
            raise LossIsWhole("it returns no loss for a part of the tokens")
        self.output = without_logits(output, None)
        weight = self._weights[index]
        return loss if weight == 1.0 else loss * weight, leaf

    def _total(self, losses: Iterator[torch.Tensor]) -> torch.Tensor:
        """Summed in float64, given in the dtype of the losses."""
        total, dtype = None, torch.float32
        for loss in losses:
            # In float64, so that the number of tiles does not show in the sum.
            total, dtype = loss.double() if total is None else total + loss, loss.dtype
        assert total is not None
        return total.to(dtype)


def _differentiate(
    loss: torch.Tensor, inputs: Sequence[torch.Tensor], scale: torch.Tensor | None
) -> Gradients:
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    if not wanted or not loss.requires_grad:
        return [None] * len(inputs)
    seeds = None if scale is None else scale.to(loss.dtype)
    found = iter(torch.autograd.grad(loss, wanted, seeds, allow_unused=True))
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


class _OnePass(torch.autograd.Function):
    """loss = tiled(hidden), with the tail's trainable parameters as inputs of their own."""

    @staticmethod
    def forward(
        ctx: Any, loss_pass: LossPass, hidden: torch.Tensor, *parameters: torch.Tensor
    ) -> torch.Tensor:
        loss, ctx.gradients = loss_pass.value_and_gradients(
            hidden, of_hidden=ctx.needs_input_grad[1]
        )
        return loss

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        def scaled() -> Gradients:
            return [None if g is None else _multiplied(g, scale) for g in gradients]

        # Multiplied in place, so they serve once.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise _second_backward()
        return (None, *_not_again(scaled))


class _TwoPasses(torch.autograd.Function):
    """As `_OnePass`, with all of the gradients' arithmetic in backward."""

    @staticmethod
    def forward(
        ctx: Any, loss_pass: LossPass, hidden: torch.Tensor, *parameters: torch.Tensor
    ) -> torch.Tensor:
        # Whoever changes or swaps parameters before backward changes neither values nor places.
        ctx.loss_pass, ctx.slots = loss_pass, loss_pass.tail.slots()
        ctx.save_for_backward(hidden, *(tensor for _, _, tensor in ctx.slots))
        ctx.ambient = Ambient.current(hidden.device.type)
        ctx.generators = generators_of(hidden.device)
        ctx.rng = RngStates(ctx.generators).take()
        return loss_pass.value(hidden)

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        def again() -> Gradients:
            hidden, *tensors = ctx.saved_tensors
            slots: list[Slot] = [
                (at, name, tensor) for (at, name, _), tensor in zip(ctx.slots, tensors, strict=True)
            ]
            with preserved_rng(ctx.generators), ctx.ambient.restored(), put_in(slots):
                set_rng(ctx.generators, ctx.rng)
                _, gradients = loss_pass.value_and_gradients(
                    hidden, of_hidden=ctx.needs_input_grad[1], scale=scale
                )
            return gradients

        if ctx.loss_pass is None:
            raise _second_backward()
        loss_pass: LossPass = ctx.loss_pass
        ctx.loss_pass = None
        return (None, *_not_again(again))


def generators_of(device: torch.device) -> Generators:
    """What a computation on `device` may draw from."""
    if device.type != "cuda":
        return (torch.default_generator,)
    ordinal = torch.cuda.current_device() if device.index is None else device.index
    return (torch.default_generator, torch.cuda.default_generators[ordinal])


def _second_backward() -> BackwardTwice:
    return BackwardTwice(
        "backward ran a second time through a tiled loss; add the losses and run backward once, "
        "or call the model again"
    )


def _multiplied(gradient: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`gradient` times `scale`, in place: at least in fp32, for in bf16 the scale is coarse."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    if wide == gradient.dtype:
        return gradient.mul_(scale.to(wide))
    for piece in gradient.view(-1).split(_SCALED_AT_ONCE):  # type: ignore[no-untyped-call]
        piece.copy_(piece.to(wide) * scale.to(wide))
    return gradient


def _not_again(compute: Callable[[], Gradients]) -> Gradients:
    """Gradients that do not depend on anything; asked how they do, they raise DoubleBackward."""
    again = torch.is_grad_enabled()
    with torch.no_grad():
        gradients = compute()
    if not again:
        return gradients
    # Without an input that requires a gradient there would be no graph to refuse.
    flag = torch.zeros((), requires_grad=True)
    present = iter(_Once.apply(flag, *(g for g in gradients if g is not None)))  # type: ignore[no-untyped-call]
    return [None if g is None else next(present) for g in gradients]


class _Once(torch.autograd.Function):
    """Passes gradients on; they are not differentiable."""

    @staticmethod
    def forward(ctx: Any, flag: torch.Tensor, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(gradient.detach() for gradient in gradients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise DoubleBackward(
            "a gradient of a wrapped model was differentiated (create_graph=True); call "
            "memo_train.unwrap(model) before computing gradients of gradients"
        )
