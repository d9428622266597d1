"""What a causal LM computes after its decoder: the head, scaling and soft caps, the loss.

The model's own forward runs; its decoder is made to return the hidden states of a tile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memo_train.runtime._sharded import moves_parameters

Slot = tuple[dict[str, Any], str, torch.Tensor]
"""Where a module keeps a parameter or a buffer, under which name, and which."""

_Children = tuple[dict[str, Any], str]


class StandIn(nn.Module):
    """Is called in a module's place; whatever else is asked of it is that module's."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        # Not as a child: whoever walks the modules meets nothing below a stand-in.
        self.__dict__.update(_module=module, _stand_in_call=call, training=module.training)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """No hook of the module runs, and none of all modules."""
        return self.__dict__["_stand_in_call"](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)


# No Exception: a model that catches those around its decoder must not catch this.
class _DecoderDone(BaseException):
    """Ends the model's forward once its decoder has run; never leaves this module."""

    def __init__(self, decoder: nn.Module, decoded: Any) -> None:
        self.decoder, self.decoded = decoder, decoded


def run_decoder(
    model: nn.Module, decoder: nn.Module, run: Callable[[], Any]
) -> tuple[nn.Module | None, Any]:
    """Run `model`'s forward, `run`, up to the end of its decoder: what was called, its output.

    Some models hold their decoder in a module that they do not call: then the first called below
    `decoder` counts. (None, the model's output) where none of them was called.
    """

    def stand_in(module: nn.Module) -> StandIn:
        def call(*args: Any, **kwargs: Any) -> Any:
            # First, so that the decoder finds the model as it is.
            put_back()
            raise _DecoderDone(module, module(*args, **kwargs))

        return StandIn(module, call)

    candidates = _shells(decoder)
    places = [(place, module) for module in candidates for place in _places(model, module)]

    def put_back() -> None:
        for (children, name), module in places:
            children[name] = module

    stand_ins = {id(module): stand_in(module) for module in candidates}
    for (children, name), module in places:
        children[name] = stand_ins[id(module)]
    try:
        return None, run()
    except _DecoderDone as done:
        return done.decoder, done.decoded
    finally:
        put_back()


def _shells(decoder: nn.Module) -> list[nn.Module]:
    """The decoder, and what it holds as long as that is one module and nothing else."""
    shells = [decoder]
    while len(children := list(shells[-1].children())) == 1:
        if isinstance(children[0], nn.ModuleList | nn.ModuleDict):
            break
        shells.append(children[0])
    return shells


def _places(root: nn.Module, wanted: nn.Module) -> list[_Children]:
    """Wherever `wanted` is a child under `root`."""
    return [
        (module._modules, name)
        for module in root.modules()
        for name, child in module._modules.items()
        if child is wanted
    ]


class Tail:
    """`forward`, a causal LM's own, after `decoder` has returned; `head` is the LM head.

    Attributes: modules, all outside of the decoder, and the head with what it holds.
    """

    def __init__(
        self, model: nn.Module, decoder: nn.Module, head: nn.Module, forward: Callable[..., Any]
    ) -> None:
        self.model, self.head, self._decoder, self._forward = model, head, decoder, forward
        own = {id(m): m for m in (*_outside(model, decoder), *head.modules())}
        self.modules = tuple(own.values())
        self._decoder_places: list[_Children] = [
            (module._modules, name)
            for module in self.modules
            for name, child in module._modules.items()
            if child is decoder
        ]

    @property
    def forward_of_head(self) -> Callable[..., Any]:
        """What the head computes, without its hooks."""
        forward: Callable[..., Any] = self.head.forward
        return forward

    def run(self, decoded: Any, arguments: dict[str, Any]) -> Any:
        """The model's output, its decoder having returned `decoded`."""
        stand_in = StandIn(self._decoder, lambda *args, **kwargs: decoded)
        with _in_places(self._decoder_places, stand_in):
            return self._forward(**arguments)

    def in_one_call(self, hidden: torch.Tensor, run: Callable[..., torch.Tensor]) -> torch.Tensor:
        """`run(hidden)` as the one call of the head, whose hooks fire once, around it.

        Meanwhile the model's calls of the head go by its hooks. What shards parameters needs that:
        its hooks bring them in, let them go, and bring them back in backward.
        """
        if not self.is_hooked:
            return run(hidden)
        own = self.head.__dict__.get("forward")
        plain = StandIn(self.head, self.forward_of_head)
        places = _places(self.model, self.head)

        def run_inside(hidden: torch.Tensor) -> torch.Tensor:
            with _in_places(places, plain):
                return run(hidden)

        self.head.forward = run_inside
        try:
            output: torch.Tensor = self.head(hidden)
            return output
        finally:
            del self.head.forward
            if own is not None:
                self.head.forward = own

    @property
    def is_hooked(self) -> bool:
        """Whether the head has hooks of its own."""
        return any(True for _ in _hooks_of(self.head))

    def why_hooked(self) -> str | None:
        """Whose hooks want to see every logit, or None."""
        for module in self.modules:
            if module is self.model:
                continue  # its hooks are around this all
            for hook in _hooks_of(module):
                if module is not self.head or not moves_parameters(hook):
                    return (
                        f"{type(module).__name__} has a hook ("
                        f"{getattr(hook, '__qualname__', type(hook).__name__)}), which a tile "
                        "would show a part of the tokens"
                    )
        return None

    def trainable(self) -> tuple[torch.Tensor, ...]:
        """The parameters that require gradients, as they are now, each once."""
        parameters = [t for module in self.modules for t in module._parameters.values()]
        wanted = {id(t): t for t in parameters if t is not None and t.requires_grad}
        return tuple(wanted.values())

    def slots(self) -> list[Slot]:
        """Every parameter and buffer, as they are now."""
        return [
            (slots, name, tensor)
            for module in self.modules
            for slots in (module._parameters, module._buffers)
            for name, tensor in slots.items()
            if tensor is not None
        ]


def _outside(module: nn.Module, decoder: nn.Module) -> Iterator[nn.Module]:
    if module is decoder:
        return
    yield module
    for child in module.children():
        yield from _outside(child, decoder)


def _hooks_of(module: nn.Module) -> Iterator[Callable[..., Any]]:
    for hooks in (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    ):
        yield from hooks.values()


@contextmanager
def _in_places(places: Sequence[_Children], stand_in: nn.Module) -> Iterator[None]:
    before = [children[name] for children, name in places]
    for children, name in places:
        children[name] = stand_in
    try:
        yield
    finally:
        for (children, name), module in zip(places, before, strict=True):
            children[name] = module


@contextmanager
def put_in(slots: Sequence[Slot]) -> Iterator[None]:
    """While active, the tensors of `slots` are in their places."""
    before = [holder[name] for holder, name, _ in slots]
    for holder, name, tensor in slots:
        holder[name] = tensor
    try:
        yield
    finally:
        for (holder, name, _), tensor in zip(slots, before, strict=True):
            holder[name] = tensor


def hidden_of(decoded: Any) -> torch.Tensor | None:
    """The hidden states [batch, tokens, hidden] in a decoder's output, or None."""
    hidden = decoded[0] if isinstance(decoded, tuple) else decoded
    hidden = getattr(hidden, "last_hidden_state", hidden)
    return hidden if isinstance(hidden, torch.Tensor) and hidden.dim() == 3 else None


def with_hidden(decoded: Any, hidden: torch.Tensor) -> Any:
    """A decoder's output with other hidden states."""
    if isinstance(decoded, torch.Tensor):
        return hidden
    if isinstance(decoded, tuple):
        return (hidden, *decoded[1:])
    return dataclasses.replace(decoded, last_hidden_state=hidden)
