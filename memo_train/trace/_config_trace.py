"""One forward over fake tensors: what each block multiplies, saves and attends to, per token.

Attention itself is not run: its call is taken down, and gives an output of the right shape. Ahead
of it is pre, behind it post. Routing gives every token its number of experts, whichever they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from memo_train.errors import InvalidInput
from memo_train.trace._flops import flops_of

_TOKENS = 64
"""Enough that numbers per step, not per token, do not show; recurrences run token by token."""


@dataclass(frozen=True, kw_only=True)
class AttentionCut:
    """A block's attention call. window: tokens that one attends to at most, or None."""

    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None


@dataclass(frozen=True, kw_only=True)
class TracedBlock:
    """What one block does for a token, forward.

    cut: its one attention call; None if it has none or several, or mixes tokens elsewhere too: by
        a convolution over tokens, or by another block's k and v. Without a call all is pre.
    pre_bytes_per_token, post_bytes_per_token: saved for backward besides x, q, k, v and o.
    experts: the block's modules that hold experts, by name, and how many a token is sent to.
    down_flops_per_token: of post's products that give numbers of the width between blocks.
    """

    cut: AttentionCut | None
    pre_flops_per_token: float
    post_flops_per_token: float
    pre_bytes_per_token: float
    post_bytes_per_token: float
    experts: tuple[tuple[str, int], ...]
    down_flops_per_token: float


@dataclass(frozen=True, kw_only=True)
class TracedModel:
    """A model's blocks in order, FLOPs of all else a token, and the width between blocks."""

    blocks: tuple[TracedBlock, ...]
    outside_flops_per_token: float
    hidden: int


def trace_blocks(model: nn.Module, blocks: tuple[nn.Module, ...]) -> TracedModel:
    """Follow a forward of `model`, whose tensors are those of the FakeTensorMode that is active.

    Raises: InvalidInput if a block does not run once; whatever the model raises.
    """
    watch = _Watch(blocks)
    ids = torch.zeros((1, _TOKENS), dtype=torch.long)
    with ExitStack() as stack:
        stack.enter_context(watch.hooked())
        stack.enter_context(_attention_calls(watch.attention))
        # Without a graph nothing is saved.
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(watch.saved, lambda t: t))
        stack.enter_context(watch)
        model(input_ids=ids, use_cache=False)
    runs = [seen.num_runs for seen in watch.seen]
    if set(runs) != {1}:
        raise InvalidInput(f"blocks run {sorted(set(runs))} times a step; each must run once")
    widths = {seen.x_width for seen in watch.seen}
    if len(widths) != 1:
        raise InvalidInput(f"blocks have inputs of several widths: {sorted(widths)}")
    return TracedModel(
        blocks=tuple(seen.traced() for seen in watch.seen),
        outside_flops_per_token=watch.outside_flops / _TOKENS,
        hidden=widths.pop(),
    )


@dataclass
class _Seen:
    """What has been seen of one block."""

    block: nn.Module
    num_runs: int = 0
    x_width: int = 0
    cuts: list[AttentionCut] = field(default_factory=list)
    down_flops: float = 0.0
    flops: list[float] = field(default_factory=lambda: [0.0, 0.0])
    saved: tuple[dict[Any, int], dict[Any, int]] = field(default_factory=lambda: ({}, {}))
    known: set[Any] = field(default_factory=set)
    experts: dict[str, int] = field(default_factory=dict)
    kept: list[torch.Tensor] = field(default_factory=list)
    reads_others: bool = False

    @property
    def stage(self) -> int:
        """0 ahead of the attention call, 1 behind it."""
        return min(len(self.cuts), 1)

    def know(self, tensors: Any) -> None:
        """Tensors that are the block's input or attention's: their bytes are counted elsewhere."""
        for tensor in _tensors(tensors):
            self.known.add(_storage_of(tensor))
            self.kept.append(tensor)  # a freed storage's address would be another tensor's

    def count(self, flops: float, result: Any) -> None:
        """Add an operation's FLOPs to the stage that it is in."""
        self.flops[self.stage] += flops
        if flops and self.stage and result.shape[-1] == self.x_width:
            self.down_flops += flops

    def traced(self) -> TracedBlock:
        before, behind = (
            sum(size for key, size in saved.items() if key not in self.known)
            for saved in self.saved
        )
        convolved = any(isinstance(module, nn.Conv1d) for module in self.block.modules())
        is_cut = len(self.cuts) == 1 and not convolved and not self.reads_others
        cut = self.cuts[0] if is_cut else None
        return TracedBlock(
            cut=cut,
            pre_flops_per_token=self.flops[0] / _TOKENS,
            post_flops_per_token=self.flops[1] / _TOKENS,
            pre_bytes_per_token=before / _TOKENS,
            post_bytes_per_token=behind / _TOKENS,
            experts=tuple(sorted(self.experts.items())),
            down_flops_per_token=self.down_flops / _TOKENS,
        )


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """While active, adds up FLOPs by block; its hooks tell which block runs."""

    def __init__(self, blocks: tuple[nn.Module, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = tuple(_Seen(block) for block in blocks)
        self.outside_flops = 0.0
        self._now: _Seen | None = None
        self._keys_seen: set[int] = set()
        self._parameters = {_storage_of(p) for block in blocks for p in block.parameters()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        flops = flops_of(func, args, kwargs, result)
        if self._now is None:
            self.outside_flops += flops
        else:
            self._now.count(flops, result)
        return result

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """While active, blocks and their experts report that they run."""
        handles = []
        for seen in self.seen:
            begin, end = partial(self._begin, seen), partial(self._end, seen)
            handles.append(seen.block.register_forward_pre_hook(begin, with_kwargs=True))
            handles.append(seen.block.register_forward_hook(end))
            for name, module in seen.block.named_modules():
                if type(module).__name__.endswith("Experts"):
                    hook = partial(self._experts, seen, name)
                    handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, seen: _Seen, block: nn.Module, args: Any, kwargs: Any) -> None:
        seen.num_runs += 1
        x = args[0] if args else kwargs["hidden_states"]
        seen.x_width = x.shape[-1]
        seen.know((args, kwargs))
        self._now = seen

    def _end(self, seen: _Seen, block: nn.Module, args: Any, output: Any) -> None:
        self._now = None

    def _experts(self, seen: _Seen, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Routing hands the experts whole numbers: the experts [tokens, active] of each token."""
        whole = [t for t in _tensors((args, kwargs)) if not t.is_floating_point()]
        if len(whole) != 1:
            raise InvalidInput(
                f"{type(module).__name__} is called with {len(whole)} tensors of whole numbers; "
                "one is expected, the experts of each token"
            )
        seen.experts[name] = whole[0].shape[-1]

    def saved(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor that autograd saves, parameters aside; each storage counts once a block."""
        seen, key = self._now, _storage_of(tensor)
        if seen is not None and key not in self._parameters:
            if not any(key in saved for saved in seen.saved):
                seen.saved[seen.stage][key] = tensor.untyped_storage().nbytes()
            seen.kept.append(tensor)
        return tensor

    def attention(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, o: torch.Tensor
    ) -> None:
        """A call of attention: q, k, v, o [batch, heads, tokens, head_dim], o in any order."""
        seen = self._now
        if seen is None:
            raise InvalidInput("attention is called outside the blocks; it is not planned there")
        seen.know((q, k, v, o))
        seen.reads_others |= _storage_of(k) in self._keys_seen
        self._keys_seen.add(_storage_of(k))
        cut = AttentionCut(
            heads=q.shape[1],
            kv_heads=_num_stored_heads(k),
            head_dim=q.shape[3],
            v_head_dim=v.shape[3],
            window=window,
        )
        seen.cuts.append(cut)


def _storage_of(tensor: torch.Tensor) -> int:
    """The identity of a live tensor's memory; fake memory has no address."""
    key: int = tensor.untyped_storage()._cdata
    return key


def _num_stored_heads(k: torch.Tensor) -> int:
    """Key-value heads that differ: one where all are views of one (multi-query attention)."""
    return 1 if k.stride(1) == 0 else k.shape[1]


_Report = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, "int | None", torch.Tensor],
    None,
]


@contextmanager
def _attention_calls(report: _Report) -> Iterator[None]:
    """While active, attention is reported and gives memory of its output's shape, not values.

    Caught are PyTorch's function and whatever Transformers picks; masks are not made.
    """
    from transformers import masking_utils, modeling_utils

    registry: Any = modeling_utils.ALL_ATTENTION_FUNCTIONS
    masks: Any = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    plain = F.scaled_dot_product_attention
    with ExitStack() as stack:
        F.scaled_dot_product_attention = partial(_torch_call, report)
        stack.callback(setattr, F, "scaled_dot_product_attention", plain)
        registry.get_interface = lambda *_: partial(_transformers_call, report)
        stack.callback(delattr, registry, "get_interface")
        before = masks["sdpa"]
        masks["sdpa"] = lambda *args, **options: None
        stack.callback(masks.__setitem__, "sdpa", before)
        yield


def _torch_call(
    report: _Report,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    **options: Any,
) -> torch.Tensor:
    # It requires a gradient, so that post saves as it does behind a real attention.
    o = query.new_empty((*query.shape[:-1], value.shape[-1])).requires_grad_()
    report(query, key, value, None, o)
    return o


def _transformers_call(
    report: _Report,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    if options.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise InvalidInput(
            f"{type(module).__name__} attends to later tokens too; only causal models are planned"
        )
    batch, heads, tokens, _ = query.shape
    o = query.new_empty((batch, tokens, heads, value.shape[-1])).requires_grad_()
    report(query, key, value, _window_of(module, options), o)
    return o, None


def _window_of(module: nn.Module, options: dict[str, Any]) -> int | None:
    """The window that a call is given. Transformers passes None where a block has none."""
    if "sliding_window" in options:
        given = options["sliding_window"]
        return int(given) if given else None
    return None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
