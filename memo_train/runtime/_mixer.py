"""The cut at a mixer: the one module inside a block outside of which the block is token-wise.

A block may mix its tokens without an attention call that is caught: by matrix products of its own,
a convolution, a recurrence, two attention calls. What stands around that module (norms, the MLP,
experts) still runs by tiles; the module itself runs once over all tokens. It saves nothing but its
input and runs again in backward: what it holds meanwhile, unlike attention's q, k, v and o, may be
many times its output.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn

from memo_train.errors import NotTokenWise
from memo_train.runtime._ambient import (
    Ambient,
    Generators,
    RngStates,
    differentiable_once,
    function_modes,
    in_function_modes,
    preserved_rng,
    set_rng,
)
from memo_train.runtime._cut import (
    Cut,
    CutForm,
    call_of_frame,
    in_frame,
    wait_for_attention,
)
from memo_train.runtime._tile import alias_of, replaced_in, split_output, tensors_in


class Withheld:
    """In the place of a tensor of all tokens (attention weights) that no tile can give."""

    def _refuse(self, *_: Any) -> NoReturn:
        raise NotTokenWise(
            "a block's further output (its attention weights, say) is used, but the block is run "
            "by tiles, which do not make it; call memo_train.unwrap(model) for it"
        )

    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = _refuse

    def __reduce__(self) -> str:
        return "WITHHELD"


WITHHELD = Withheld()


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """Where a block is cut. path: of the module in the block.

    rest: what it returns besides o [batch, tokens, ...], tensors `WITHHELD`; None if o alone.
    container: of o and the rest, a tuple or a list.
    """

    path: str
    rest: tuple[Any, ...] | None
    container: type = tuple

    def output(self, o: torch.Tensor, block: nn.Module) -> Any:
        """What a tile gets from the mixer of `block`."""
        if self.rest is None:
            return o
        own = dict(block.named_parameters())
        rest = (own[item.name] if type(item) is _OwnParameter else item for item in self.rest)
        return self.container((o, *rest))


@dataclass(frozen=True)
class _OwnParameter:
    """In the place of a parameter of the block that its mixer returns (a bias to be added)."""

    name: str


def rest_of(rest: tuple[Any, ...] | None, block: nn.Module) -> tuple[Any, ...] | None:
    """`withheld(rest)`, with parameters of `block` by their names."""
    if rest is None:
        return None
    names = {id(parameter): name for name, parameter in block.named_parameters()}
    return withheld(
        tuple(_OwnParameter(names[id(item)]) if id(item) in names else item for item in rest)
    )


def withheld(rest: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """`rest` with `WITHHELD` in the place of tensors."""
    if rest is None:
        return None
    return tuple(WITHHELD if isinstance(item, torch.Tensor) else item for item in rest)


@contextmanager
def cut_at(
    mixer: Mixer,
    block: nn.Module,
    generators: Generators,
    kept: Callable[[], AbstractContextManager[None]],
) -> Iterator[None]:
    """While active, a call of the mixer inside a frame is a cut; others go through unchanged.

    generators: that the mixer may draw from. kept: a context after which the block's buffers and
    attributes are as before, for the run in backward.
    """
    module = block.get_submodule(mixer.path)
    _replaced.enter(module, lambda: partial(_call, _Again(block, mixer, generators, kept)))
    try:
        yield
    finally:
        _replaced.leave(module)


class _ReplacedForwards:
    """Forwards of mixers, replaced for all threads while any thread is inside `cut_at`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside: dict[int, int] = {}
        self._own: dict[int, Any] = {}

    def enter(self, module: nn.Module, make: Callable[[], Any]) -> None:
        with self._lock:
            self._num_inside[id(module)] = self._num_inside.get(id(module), 0) + 1
            if self._num_inside[id(module)] == 1:
                self._own[id(module)] = module.__dict__.get("forward")
                module.forward = make()

    def leave(self, module: nn.Module) -> None:
        with self._lock:
            self._num_inside[id(module)] -= 1
            if self._num_inside[id(module)]:
                return
            del self._num_inside[id(module)]
            own = self._own.pop(id(module))
            if own is None:
                del module.forward
            else:
                module.forward = own


_replaced = _ReplacedForwards()


@dataclass(frozen=True)
class _Given:
    """The place of the tensor number `index` of a cut among the arguments of the mixer's call."""

    index: int


class _Again:
    """A mixer's own forward, over all tokens, and what surrounds it when it runs again."""

    def __init__(
        self,
        block: nn.Module,
        mixer: Mixer,
        generators: Generators,
        kept: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.block, self.mixer, self.generators, self.kept = block, mixer, generators, kept
        self.module = block.get_submodule(mixer.path)
        self.plain: Callable[..., Any] = self.module.forward

    def run(self, given: Sequence[torch.Tensor], args: Any, kwargs: Any) -> torch.Tensor:
        """given: [batch, tokens, ...] each; args and kwargs: with `_Given` in their places."""
        args, kwargs = replaced_in(
            (args, kwargs), lambda value: given[value.index] if type(value) is _Given else value
        )
        o, rest = split_output(self.plain(*args, **kwargs))
        if not isinstance(o, torch.Tensor) or o.shape[:2] != given[0].shape[:2]:
            raise NotTokenWise(f"its {self.mixer.path} gives no output [batch, tokens, ...]")
        if rest_of(rest, self.block) != self.mixer.rest:
            raise NotTokenWise(f"its {self.mixer.path} returns something else than when probed")
        return o

    def __call__(self, *given: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
        """The mixer's output over all tokens, with a graph where gradients are enabled."""
        run = partial(self.run, args=args, kwargs=kwargs)
        if not torch.is_grad_enabled():
            return run(given)
        trained = tuple(p for p in self.module.parameters() if p.requires_grad)
        o: torch.Tensor = _RunAgain.apply(  # type: ignore[no-untyped-call]
            self, run, trained, *given, *trained
        )
        return o


def _call(again: _Again, *args: Any, **kwargs: Any) -> Any:
    """A call of the mixer by the block, which is a cut if it is inside a frame."""
    if not in_frame():
        return again.plain(*args, **kwargs)
    given: list[torch.Tensor] = []
    args, kwargs = _take_given((args, kwargs), given, again.mixer.path)
    form = CutForm(
        token_dim=1,
        o_token_dim=1,
        ambient=Ambient.current(given[0].device.type),
        lowers=False,
    )
    options = {"args": args, "kwargs": kwargs}
    o = wait_for_attention(Cut(tensors=tuple(given), call=again, options=options, form=form))
    return again.mixer.output(o, again.block)


def _take_given(arguments: Any, given: list[torch.Tensor], path: str) -> Any:
    """`arguments` with `_Given` in the place of what the block computed, which goes to `given`.

    The block's own arguments stay: of those that are cut to tiles the whole ones are at hand.
    Raises: NotTokenWise when a tensor is neither.
    """
    tile, others = call_of_frame()
    own = {id(tensor) for tensor in tensors_in(others)}

    def take(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or id(value) in own:
            return value
        if value.shape[:2] != tile or not value.is_floating_point():
            raise NotTokenWise(
                f"its {path} is given a tensor {tuple(value.shape)} that is neither an argument of "
                "the block nor [batch, tokens, ...]"
            )
        known = [index for index, tensor in enumerate(given) if tensor is value]
        if not known:
            given.append(value)
        return _Given(known[0] if known else len(given) - 1)

    taken = replaced_in(arguments, take)
    if not given:
        raise NotTokenWise(f"its {path} is given no tensor that the block computed")
    return taken


class _RunAgain(torch.autograd.Function):
    """A mixer's output; backward runs the mixer again, with the same random numbers."""

    @staticmethod
    def forward(
        ctx: Any,
        again: _Again,
        run: Callable[[Sequence[torch.Tensor]], torch.Tensor],
        trained: tuple[torch.Tensor, ...],
        *tensors: torch.Tensor,
    ) -> torch.Tensor:
        """tensors: what the mixer is given, then `trained`, its parameters."""
        given = tensors[: len(tensors) - len(trained)]
        ctx.again, ctx.run, ctx.trained = again, run, trained
        ctx.ambient = Ambient.current(given[0].device.type)
        ctx.modes = function_modes()
        ctx.rng = RngStates(again.generators).take()
        ctx.save_for_backward(*given)
        return run(given)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, do: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """do: gradient of the output -> (None, None, None, *gradients of `tensors`)."""
        again, leaves = ctx.again, [t.detach().requires_grad_() for t in ctx.saved_tensors]
        with ExitStack() as stack:
            stack.enter_context(preserved_rng(again.generators))
            stack.enter_context(again.kept())
            stack.enter_context(ctx.ambient.restored(grad=True))
            stack.enter_context(in_function_modes(ctx.modes))
            set_rng(again.generators, ctx.rng)
            o = ctx.run([alias_of(leaf) for leaf in leaves])
        wanted = [*leaves, *ctx.trained]
        if not o.requires_grad:
            return (None,) * (3 + len(wanted))
        return (None, None, None, *torch.autograd.grad(o, wanted, do, allow_unused=True))
