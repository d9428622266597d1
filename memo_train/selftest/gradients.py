"""Gradients of a small Llama with its saved tensors swapped, bit for bit against without.

Numerics level 3: where a saved tensor waits for backward changes no bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

import memo_train
from memo_train.model.config import LlamaConfig
from memo_train.model.llama import Llama
from memo_train.selftest.place import Place
from memo_train.testing import Step, run_step

_TOKENS = 512
_TILE_TOKENS = 128
_MIN_SWAP_BYTES = 4096


class _Swapped(NamedTuple):
    host: int
    sent: Any
    like: torch.Tensor  # on the meta device: shape, strides and dtype


class _SwapHooks:
    """Swaps every large enough tensor that autograd saves, at once, and brings it back when asked.

    The least that uses a device's copies in a training step; it overlaps little and plans nothing.
    """

    def __init__(self, place: Place, stay: set[int]) -> None:
        """stay: addresses of storages that are not swapped (parameters)."""
        self._place = place
        self._stay = stay
        self.num_swapped = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | _Swapped:
        """What autograd keeps in place of `tensor`."""
        if tensor.untyped_storage().data_ptr() in self._stay or tensor.nbytes < _MIN_SWAP_BYTES:
            return tensor
        device, dense = self._place.device, tensor.detach().contiguous()
        host = device.host_alloc(dense.nbytes)
        sent = device.copy_to_host(host, dense.data_ptr(), dense.nbytes)
        sent.wait()
        self.num_swapped += 1
        return _Swapped(host, sent, torch.empty_like(dense, device="meta"))

    def unpack(self, packed: torch.Tensor | _Swapped) -> torch.Tensor:
        """The tensor again."""
        if isinstance(packed, torch.Tensor):
            return packed
        device = self._place.device
        tensor = torch.empty_like(packed.like, device=self._place.torch_device)
        device.copy_to_device(tensor.data_ptr(), packed.host, tensor.nbytes).wait()
        device.host_free(packed.host)
        return tensor


def _model(place: Place) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, ffn_size=160, num_blocks=2, num_heads=4, num_kv_heads=2
    )
    model = Llama(config).to(place.torch_device)
    ids = torch.randint(0, 256, (1, _TOKENS), generator=torch.Generator().manual_seed(1))
    ids = ids.to(place.torch_device)
    return model, {"input_ids": ids, "labels": ids}


def swapped_by_hooks(place: Place) -> dict[str, Any]:
    """A plain step whose saved tensors are swapped one by one, against a plain step."""
    model, batch = _model(place)
    plain = run_step(model, **batch)
    stay = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    hooks = _SwapHooks(place, stay)
    with torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack):
        swapped = run_step(model, **batch)
    place.finish()
    return {
        "bitwise_equal": _same_bits(swapped, plain) and hooks.num_swapped > 0,
        "swapped_tensors": hooks.num_swapped,
    }


def by_runtime(place: Place) -> dict[str, Any]:
    """The runtime's swap and recompute against its keep, and its planned peak against the real one.

    For the CPU device only: the runtime takes CPU tensors.
    """
    steps: dict[str, Step] = {}
    peaks: dict[str, dict[str, int]] = {}
    for name, alpha in (("keep", None), ("swap", 1.0), ("recompute", 0.0)):
        others_bytes = memo_train.stats().device_used_bytes
        model, batch = _model(place)
        memo_train.wrap(model, seq_len=_TOKENS, alpha=alpha, tile_tokens=_TILE_TOKENS)
        run_step(model, **batch)
        memo_train.reset_stats()
        steps[name] = run_step(model, **batch)
        peaks[name] = {
            "planned_peak_bytes": memo_train.plan(model).prediction.device_peak_bytes,
            "actual_peak_bytes": memo_train.stats().device_peak_bytes - others_bytes,
        }
        memo_train.unwrap(model)
    same = all(_same_bits(steps[name], steps["keep"]) for name in steps)
    return {"bitwise_equal": same, "peaks": peaks}


def _same_bits(step: Step, other: Step) -> bool:
    pairs = ((step.gradients[name], other.gradients[name]) for name in other.gradients)
    return torch.equal(step.loss, other.loss) and all(torch.equal(a, b) for a, b in pairs)
