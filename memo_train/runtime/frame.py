"""A block's own forward on one token tile, suspended at its attention call (the cut).

The block is not rewritten: its forward runs in a greenlet, and the attention function that
`attention.intercept` put in place switches out of it. The driver attends over all tokens and
resumes every frame with its tile of the attention output.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet

from memo_train.errors import NotTokenWise
from memo_train.runtime.ambient import Ambient


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a frame waits for: attention over all tokens.

    q, k, v: this tile's [batch, heads, tile tokens, head_dim].
    call: (q, k, v, options) of all tokens -> attention output.
    options: the call's keyword arguments, as the tile's frame gave them.
    ambient: the state in which the block made the call.
    o_token_dim: the dimension of the attention output that counts tokens.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    call: Callable[..., torch.Tensor]
    options: dict[str, Any]
    o_token_dim: int
    ambient: Ambient


class SecondCut(NotTokenWise):
    """A block attended twice: its tiles would need the first attention to reach the second."""


class _FrameGreenlet(greenlet):  # type: ignore[misc]  # greenlet ships no strict types
    """Marks the greenlets in which an attention call is a cut."""


def in_frame() -> bool:
    """Whether the caller runs inside a frame, so that attention must be cut."""
    return isinstance(getcurrent(), _FrameGreenlet)


def wait_for_attention(cut: Cut) -> torch.Tensor:
    """Switch out of the frame with `cut`; returns the tile of the attention output."""
    o_tile: torch.Tensor = getcurrent().parent.switch(cut)
    return o_tile


class Frame:
    """One run of a block's forward on one tile: `run_to_cut`, then `resume`.

    Contexts that the block has open at the cut (autocast, a choice of kernels) are PyTorch state of
    the thread, which all frames share: each frame takes its own along and leaves the driver's.
    """

    def __init__(self, forward: Callable[..., Any], device_type: str) -> None:
        """device_type: of the tensors that `forward` computes on."""
        self._device_type = device_type
        self._greenlet = _FrameGreenlet(forward)
        self._greenlet.gr_context = contextvars.copy_context()
        self._ambient: Ambient | None = None

    def run_to_cut(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cut:
        """Run until the attention call. Raises: NotTokenWise when there is none."""
        cut = self._switch(Ambient.current(self._device_type), *args, **kwargs)
        if not isinstance(cut, Cut):
            raise NotTokenWise("the block made no attention call that memo-train can see")
        self._ambient = cut.ambient
        return cut

    def resume(self, o_tile: torch.Tensor) -> Any:
        """Give the frame its attention output; returns what the block returns.

        Raises: SecondCut when the block attends a second time.
        """
        assert self._ambient is not None
        output = self._switch(self._ambient, o_tile)
        if isinstance(output, Cut):
            self.close()
            raise SecondCut("the block made two attention calls; one per block is supported")
        return output

    def close(self) -> None:
        """End a frame that is still suspended; its locals are released."""
        if not self._greenlet.dead:
            outside = Ambient.current(self._device_type)
            self._greenlet.throw(GreenletExit)
            outside.put_in_force()

    def _switch(self, inside: Ambient, *args: Any, **kwargs: Any) -> Any:
        outside = Ambient.current(self._device_type)
        if inside != outside:
            inside.put_in_force()
        try:
            return self._greenlet.switch(*args, **kwargs)
        finally:
            if Ambient.current(self._device_type) != outside:
                outside.put_in_force()
