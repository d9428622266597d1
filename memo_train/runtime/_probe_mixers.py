"""Which module of a block mixes its tokens, for blocks without an attention call that is caught.

One run of the block with NaN in all tokens but some: a module that is given finite values there and
gives others has mixed them. What it is proven with is the same as for a cut at attention.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from memo_train.runtime._mixer import Mixer, rest_of
from memo_train.runtime._probe_calls import BlockCall
from memo_train.runtime._tile import split_output, tensors_in, tile_of

_MATRIX_DIMS = 2


def mixers_of(
    block: nn.Module, call: BlockCall, x: torch.Tensor, spans: Sequence[range]
) -> list[Mixer]:
    """The modules at which `block` may be cut, innermost first; each contains the one before.

    x: of `call`, [batch, tokens, hidden], with NaN outside of the tokens `spans`. Left out are
    modules outside of which there is nothing worth a tile: norms and biases only. None where two
    modules mix side by side.
    """
    found: dict[str, Mixer] = {}
    num_calls: Counter[str] = Counter()

    def look(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            num_calls[path] += 1
            o, rest = split_output(output)
            given = [t for t in tensors_in((args, kwargs)) if t.shape[:2] == x.shape[:2]]
            if given and _is_of(o, x) and _are_finite(given, spans) and not _are_finite([o], spans):
                found[path] = Mixer(path=path, rest=rest_of(rest, block), container=type(output))

        return hook

    with ExitStack() as stack:
        for path, module in block.named_modules():
            if path:
                handle = module.register_forward_hook(look(path), with_kwargs=True)
                stack.callback(handle.remove)
        block.forward(x, *call.args, **call.kwargs)
    return _nested([m for path, m in found.items() if num_calls[path] == 1], block)


def _nested(found: list[Mixer], block: nn.Module) -> list[Mixer]:
    """Those with something to tile outside of them, from the inside; none if not all nested."""
    inward = sorted(found, key=lambda mixer: mixer.path.count("."))
    outer = inward[:1]
    if any(not _is_inside(mixer.path, outer[0].path) for mixer in inward):
        return []
    return [mixer for mixer in reversed(inward) if _leaves_work(mixer.path, block)]


def _is_inside(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}.")


def _leaves_work(path: str, block: nn.Module) -> bool:
    """Whether a matrix of the block is outside of the module at `path`."""
    return any(
        parameter.dim() >= _MATRIX_DIMS and not _is_inside(name, path)
        for name, parameter in block.named_parameters()
    )


def _is_of(o: Any, x: torch.Tensor) -> bool:
    return isinstance(o, torch.Tensor) and o.shape[:2] == x.shape[:2]


def _are_finite(tensors: Sequence[torch.Tensor], spans: Sequence[range]) -> bool:
    return all(bool(tile_of(t, span).isfinite().all()) for t in tensors for span in spans)
