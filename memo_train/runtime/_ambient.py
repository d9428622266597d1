"""State that surrounds a block and must be the same when it is recomputed.

Grad mode, autocast, the choice of kernels, and the states of the random-number generators.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.autograd.function import once_differentiable
from torch.overrides import _get_current_function_mode_stack

from memo_train.errors import DoubleBackward


def precision(device_type: str) -> str:
    """What a step on such a device computes in, as far as autocast says."""
    if not torch.is_autocast_enabled(device_type):
        return "its own types"
    return f"autocast to {torch.get_autocast_dtype(device_type)}".replace("torch.", "")


class Ambient(NamedTuple):
    """Grad mode, autocast of one type of device, and the choice of attention kernels, in a thread.

    The autocast weight cache is off while blocks run: a cast cached under no_grad would cut the
    graph of a later tile that records one.
    """

    device_type: str
    grad: bool
    autocast: bool
    autocast_dtype: torch.dtype
    autocast_cache: bool
    kernels: tuple[bool, bool, bool, bool]

    @classmethod
    def current(cls, device_type: str) -> Ambient:
        """The state in force now, for computation on devices of that type."""
        # By position: frames ask a dozen times for each tile.
        return cls(
            device_type,
            torch.is_grad_enabled(),
            torch.is_autocast_enabled(device_type),
            torch.get_autocast_dtype(device_type),
            torch.is_autocast_cache_enabled(),
            (
                torch._C._get_flash_sdp_enabled(),
                torch._C._get_mem_efficient_sdp_enabled(),
                torch._C._get_math_sdp_enabled(),
                torch._C._get_cudnn_sdp_enabled(),
            ),
        )

    def put_in_force(self) -> None:
        """Make this the state of the thread."""
        # No context managers: frames enter and leave their states in no nested order.
        torch._C._set_grad_enabled(self.grad)
        torch.set_autocast_enabled(self.device_type, self.autocast)
        torch.set_autocast_dtype(self.device_type, self.autocast_dtype)
        torch.set_autocast_cache_enabled(self.autocast_cache)
        flash, mem_efficient, math, cudnn = self.kernels
        torch._C._set_sdp_use_flash(flash)
        torch._C._set_sdp_use_mem_efficient(mem_efficient)
        torch._C._set_sdp_use_math(math)
        torch._C._set_sdp_use_cudnn(cudnn)

    @contextmanager
    def restored(self, *, grad: bool | None = None, cache: bool = False) -> Iterator[None]:
        """A context in which this state is in force, with another grad mode if one is given."""
        outside = Ambient.current(self.device_type)
        self.put_in_force()
        torch.set_autocast_cache_enabled(cache)
        if grad is not None:
            torch._C._set_grad_enabled(grad)
        try:
            yield
        finally:
            outside.put_in_force()

    def attention_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which attention computes on `dtype`: autocast lowers fp32."""
        return self.autocast_dtype if self.autocast and dtype == torch.float32 else dtype


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A Function's backward that refuses to be differentiated. Raises: DoubleBackward."""
    once: Callable[..., Any] = once_differentiable(backward)

    @functools.wraps(backward)
    def run(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            raise DoubleBackward(
                "create_graph=True through a wrapped model: gradients of gradients are not "
                "supported by tiles; call memo_train.unwrap(model) for them"
            )
        return once(ctx, *gradients)

    return run


def function_modes() -> tuple[Any, ...]:
    """The `TorchFunctionMode`s in force, which autograd's backward runs without."""
    modes: Any = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return tuple(modes)


@contextmanager
def in_function_modes(modes: Sequence[Any]) -> Iterator[None]:
    """A context in which these are in force, for what runs again in backward."""
    now = function_modes()
    missing = [mode for mode in modes if all(mode is not other for other in now)]
    for mode in missing:
        torch._C._push_on_torch_function_stack(mode)
    try:
        yield
    finally:
        for _ in missing:
            torch._C._pop_torch_function_stack()


Generators: TypeAlias = Sequence[torch.Generator]
"""All that a computation may draw from: on a GPU its own generator and the CPU's."""

RngState: TypeAlias = tuple[torch.Tensor, ...]
"""A state of each generator, uint8 on the CPU; not to be written to."""


class RngStates:
    """Takes the states of `generators`; those between which nothing was drawn are one tensor."""

    def __init__(self, generators: Generators) -> None:
        self._generators = generators
        self._last: RngState = (torch.empty(0, dtype=torch.uint8),) * len(generators)

    def take(self) -> RngState:
        """The states now."""
        states = tuple(generator.get_state() for generator in self._generators)
        self._last = tuple(
            last if torch.equal(state, last) else state
            for state, last in zip(states, self._last, strict=True)
        )
        return self._last


def set_rng(generators: Generators, states: RngState) -> None:
    """Let `generators` go on from `states`, which `RngStates.take` gave."""
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


@contextmanager
def preserved_rng(generators: Generators) -> Iterator[None]:
    """Leave the states of `generators` as they were found."""
    states = tuple(generator.get_state() for generator in generators)
    try:
        yield
    finally:
        set_rng(generators, states)
