"""The cut: a block's own forward on one token tile, suspended at its attention call.

The block is not rewritten: its forward runs in a greenlet, and the attention function that
`intercept` put in place switches out of it. The driver attends over all tokens and resumes every
frame with its tile of the attention output. Own models call `attention`. A block that mixes its
tokens by other means is suspended at a module of its own instead (`_mixer`).
"""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from greenlet import GreenletExit, getcurrent, greenlet

from memo_train.errors import NotTokenWise
from memo_train.runtime._ambient import Ambient
from memo_train.runtime._deepspeed import own_function
from memo_train.runtime._ranks import SharedAttention, shared_attention


@dataclass(frozen=True, kw_only=True)
class CutForm:
    """How the tensors of a cut lie, and the state in which the block made the call.

    token_dim, o_token_dim: the dimension that counts tokens of what attention gets and gives.
    lowers: whether autocast would cast all that attention gets, so that it is gathered in its
    dtype. shared: the ranks that attend together; None where this process has all tokens.
    """

    token_dim: int
    o_token_dim: int
    ambient: Ambient
    lowers: bool = True
    shared: SharedAttention | None = None

    def dtype_of(self, tensor: torch.Tensor) -> torch.dtype:
        """In which attention takes a tensor of q, k or v."""
        return self.ambient.attention_dtype(tensor.dtype) if self.lowers else tensor.dtype


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a frame waits for: attention over all tokens.

    tensors: this tile's q, k, v, each [batch, heads, tile tokens, head_dim]; or what a mixer gets.
    call: (*tensors, **options) of all tokens -> attention output.
    options: the call's keyword arguments, as the tile's frame gave them.
    """

    tensors: tuple[torch.Tensor, ...]
    call: Callable[..., torch.Tensor]
    options: dict[str, Any]
    form: CutForm


class SecondCut(NotTokenWise):
    """A block attended twice: its tiles would need the first attention to reach the second."""


class _FrameGreenlet(greenlet):  # type: ignore[misc]  # greenlet ships no strict types
    """Marks the greenlets in which an attention call is a cut.

    tile: [batch, tile tokens] of the block's call; others: its arguments but x, up to the cut.
    """

    tile: torch.Size = torch.Size(())
    others: Any = ()


def in_frame() -> bool:
    """Whether the caller runs inside a frame, so that attention must be cut."""
    return isinstance(getcurrent(), _FrameGreenlet)


def call_of_frame() -> tuple[torch.Size, Any]:
    """Of the block's call in the caller's frame: [batch, tile tokens], all arguments but x."""
    frame = getcurrent()
    return frame.tile, frame.others


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
        # Else a greenlet begins with no context variables at all.
        self._greenlet.gr_context = contextvars.copy_context()
        self._ambient: Ambient | None = None

    def run_to_cut(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cut:
        """Run until the attention call. Raises: NotTokenWise when there is none."""
        self._greenlet.tile, self._greenlet.others = args[0].shape[:2], (args[1:], kwargs)
        cut = self._switch(Ambient.current(self._device_type), *args, **kwargs)
        self._greenlet.others = ()
        if not isinstance(cut, Cut):
            raise NotTokenWise("the block made no attention call that memo-train can see")
        self._ambient = cut.form.ambient
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
            # Runs the frame's context managers, which may change the thread's state.
            self._greenlet.throw(GreenletExit)
            outside.put_in_force()

    def _switch(self, inside: Ambient, *args: Any, **kwargs: Any) -> Any:
        outside = Ambient.current(self._device_type)
        # Blocks rarely change it, and then nothing need be set.
        if inside != outside:
            inside.put_in_force()
        try:
            return self._greenlet.switch(*args, **kwargs)
        finally:
            if Ambient.current(self._device_type) != outside:
                outside.put_in_force()


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    dropout_p: float = 0.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention that a wrapped block is cut at.

    q: [batch, heads, tokens, head_dim]; k, v: the same with as many or fewer heads (GQA), the
    dtype of q. mask: None or broadcastable to [batch, heads, tokens, tokens]; excludes `causal`.
    Returns [batch, heads, tokens, head_dim]. Outside a wrapped block it is PyTorch's own call.
    """
    options = {
        "attn_mask": mask,
        "dropout_p": dropout_p,
        "is_causal": causal and mask is None,
        "scale": scale,
    }
    if in_frame():
        # The whole call is put off: which backend serves it is seen from all tokens.
        return wait_for_attention(_cut((q, k, v), _grouped_attention, options, o_token_dim=2))
    return _grouped_attention(q, k, v, **options)


def _grouped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any
) -> torch.Tensor:
    """PyTorch's attention; heads of k and v that groups of q share are repeated if they must be."""
    grouped = q.shape[1] != k.shape[1]
    if grouped and scores_exist_if_grouped(q, k, v, **options):
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(q, k, v, **options, enable_gqa=grouped)


def scores_exist_if_grouped(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> bool:
    """Whether PyTorch would make [tokens, tokens] of scores for heads in groups.

    On a GPU only flash and cuDNN attention know groups, and neither takes fp32: the rest is plain
    arithmetic, where the memory-efficient kernel serves the same heads one by one. On the CPU the
    flash kernel takes groups of any dtype. scale: has no part in it.
    Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp.
    """
    if q.device.type != "cuda":
        return False
    asked = torch.backends.cuda.SDPAParams(q, k, v, attn_mask, dropout_p, is_causal, True)
    can = (
        torch.backends.cuda.can_use_flash_attention,
        torch.backends.cuda.can_use_cudnn_attention,
    )
    return not any(takes(asked) for takes in can)


@contextmanager
def intercept() -> Iterator[None]:
    """While active, attention calls made inside a frame become cuts.

    Caught are `torch.nn.functional.scaled_dot_product_attention` and whatever attention function
    Transformers picks for a model (`AttentionInterface.get_interface`); calls outside a frame,
    also those the driver makes itself, go through unchanged. May be active in several threads.
    """
    _interception.enter()
    try:
        yield
    finally:
        _interception.leave()


class _Interception:
    """The functions put in place for all threads, while any thread is inside `intercept`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._plain: Callable[..., torch.Tensor] = F.scaled_dot_product_attention
        self._registry: Any = None

    def enter(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._put_in_place()
            self._num_inside += 1

    def leave(self) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._take_out()

    def _put_in_place(self) -> None:
        # Anew each time: others may have put a function of theirs in place since.
        self._plain = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = partial(_torch_call, self._plain)
        transformers = sys.modules.get("transformers.modeling_utils")
        self._registry = transformers.ALL_ATTENTION_FUNCTIONS if transformers else None
        if self._registry is not None:
            get = type(self._registry).get_interface
            # On this registry alone: other libraries may have more of its class.
            self._registry.get_interface = partial(_get_interface, get, self._registry)

    def _take_out(self) -> None:
        F.scaled_dot_product_attention = self._plain
        if self._registry is not None:
            del self._registry.get_interface


_interception = _Interception()


def _torch_call(
    plain: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    **options: Any,
) -> torch.Tensor:
    if not in_frame():
        return plain(query, key, value, *args, **options)
    # By name, so that `TokenArguments.whole` can put whole tensors in their places.
    options |= dict(zip(("attn_mask", "dropout_p", "is_causal", "scale"), args, strict=False))
    return wait_for_attention(_cut((query, key, value), plain, options, o_token_dim=2))


def _get_interface(
    get: Callable[..., Any], registry: Any, implementation: str, default: Any
) -> Callable[..., Any]:
    return partial(_transformers_call, get(registry, implementation, default))


def _transformers_call(
    plain: Callable[..., Any],
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The signature of Transformers' attention functions; o is [batch, tokens, heads, dim]."""
    if not in_frame():
        output: tuple[torch.Tensor, torch.Tensor | None] = plain(
            module, query, key, value, attention_mask, **options
        )
        return output

    is_shared = shared_attention() is not None

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **whole: Any) -> torch.Tensor:
        mask = whole.pop("attention_mask")
        with _grouped_by(module, q.shape[1] / k.shape[1]):
            # Only here: a tile that runs again in backward is cut, and does not attend.
            attend = own_function(plain, module, shared=is_shared)
            o: torch.Tensor = attend(module, q, k, v, mask, **whole)[0]
        return o

    options["attention_mask"] = attention_mask
    return wait_for_attention(_cut((query, key, value), call, options, o_token_dim=1)), None


@contextmanager
def _grouped_by(module: torch.nn.Module, group: float) -> Iterator[None]:
    """While active, so many heads of q share one of k and v: ranks may hold a part of a group."""
    before = getattr(module, "num_key_value_groups", None)
    # Alone, a module knows best: it may repeat k and v by itself.
    if before is None or shared_attention() is None or before == group:
        yield
        return
    # What mypy takes for a tensor or a submodule is a number, set by the module's own __init__.
    vars(module)["num_key_value_groups"] = int(group)
    try:
        yield
    finally:
        vars(module)["num_key_value_groups"] = before


def _cut(
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    call: Callable[..., torch.Tensor],
    options: dict[str, Any],
    *,
    o_token_dim: int,
) -> Cut:
    ambient, shared = Ambient.current(qkv[0].device.type), shared_attention()
    if shared is not None:
        call = shared.adapted(call, tuple(t.shape[1] for t in qkv), o_token_dim)
    form = CutForm(token_dim=2, o_token_dim=o_token_dim, ambient=ambient, shared=shared)
    return Cut(tensors=qkv, call=call, options=options, form=form)
