"""State of PyTorch that surrounds a block: random numbers, autocast, the choice of kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

_DEVICE_TYPE = "cpu"


def precision() -> str:
    """What a step computes in, as far as autocast says."""
    if not torch.is_autocast_enabled(_DEVICE_TYPE):
        return "its own types"
    return f"autocast to {torch.get_autocast_dtype(_DEVICE_TYPE)}".replace("torch.", "")


@dataclass(frozen=True, kw_only=True)
class Ambient:
    """Grad mode, autocast, and which attention kernels may be chosen, in this thread.

    The autocast weight cache is off while blocks run: a cast cached under no_grad would cut the
    graph of a later tile that records one.
    """

    grad: bool
    autocast: bool
    autocast_dtype: torch.dtype
    autocast_cache: bool
    kernels: tuple[bool, bool, bool, bool]

    @classmethod
    def current(cls) -> Ambient:
        """The state in force now."""
        return cls(
            grad=torch.is_grad_enabled(),
            autocast=torch.is_autocast_enabled(_DEVICE_TYPE),
            autocast_dtype=torch.get_autocast_dtype(_DEVICE_TYPE),
            autocast_cache=torch.is_autocast_cache_enabled(),
            kernels=(
                torch._C._get_flash_sdp_enabled(),
                torch._C._get_mem_efficient_sdp_enabled(),
                torch._C._get_math_sdp_enabled(),
                torch._C._get_cudnn_sdp_enabled(),
            ),
        )

    def put_in_force(self) -> None:
        """Make this the state of the thread."""
        torch._C._set_grad_enabled(self.grad)
        torch.set_autocast_enabled(_DEVICE_TYPE, self.autocast)
        torch.set_autocast_dtype(_DEVICE_TYPE, self.autocast_dtype)
        torch.set_autocast_cache_enabled(self.autocast_cache)
        flash, mem_efficient, math, cudnn = self.kernels
        torch._C._set_sdp_use_flash(flash)
        torch._C._set_sdp_use_mem_efficient(mem_efficient)
        torch._C._set_sdp_use_math(math)
        torch._C._set_sdp_use_cudnn(cudnn)

    @contextmanager
    def restored(self, *, grad: bool | None = None, cache: bool = False) -> Iterator[None]:
        """A context in which this state is in force, with another grad mode if one is given."""
        outside = Ambient.current()
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


class RngStates:
    """Takes random-number states; those between which nothing was drawn are one tensor."""

    def __init__(self) -> None:
        self._last = torch.empty(0, dtype=torch.uint8)

    def take(self) -> torch.Tensor:
        """The state now: [5056] uint8, not to be written to."""
        state = torch.get_rng_state()
        if not torch.equal(state, self._last):
            self._last = state
        return self._last


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Leave the random-number state as it was found."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
