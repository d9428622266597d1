"""Gradients of a small Llama, bit for bit, with its saved tensors swapped or recomputed.

Numerics level 3: where a saved tensor waits for backward changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

import memo_train
from memo_train.selftest._modes import MODES, check_mode, llama_step, wrapped
from memo_train.selftest._place import Place
from memo_train.selftest._scenario import Figures, NotSupported, Scenario, ScenarioFailed
from memo_train.testing import Step, run_step

# A page, as in the runtime.
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


def by_hooks(place: Place) -> Figures:
    """A plain step whose saved tensors are swapped one by one, against a plain step.

    Raises: ScenarioFailed; NotSupported if even two plain steps differ.
    """
    with place.here(), _deterministic(place):
        model, batch = llama_step(place)
        plain = _repeatable_step(model, batch)
        stay = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        hooks = _SwapHooks(place, stay)
        with torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack):
            swapped = run_step(model, **batch)
        place.finish()
    figures = {"swapped_tensors": hooks.num_swapped}
    if hooks.num_swapped == 0:
        raise ScenarioFailed("nothing was swapped", figures)
    _check_same(swapped, plain, "with saved tensors swapped", figures)
    return figures


def by_wrap(place: Place) -> Figures:
    """Steps of `wrap` that swap or recompute everything, against one that keeps everything.

    Of each kind the first step, one at planned addresses, one behind late compute (on a GPU) and
    one behind late copies. Raises: ScenarioFailed; NotSupported.
    """
    figures: Figures = {"modes": {}, "steps_each": 0}
    with place.here(), _deterministic(place):
        keep: Step | None = None
        for mode in MODES:
            model, batch = llama_step(place)
            with wrapped(model, mode):
                memo_train.reset_stats()
                steps = _undisturbed(model, batch)
                figures["modes"][mode] = check_mode(mode)
                steps |= _late(place, model, batch)
            figures["steps_each"] = len(steps)
            keep = steps["first"] if keep is None else keep
            for name, step in steps.items():
                _check_same(step, keep, f"{mode}, {name} step", figures)
    return figures


def _undisturbed(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Step]:
    first = run_step(model, **batch)
    memo_train.memory_report(model)  # waits for the layout
    return {"first": first, "planned": run_step(model, **batch)}


def _late(place: Place, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Step]:
    steps = {}
    if place.on_gpu:
        place.delay_compute()
        steps["late compute"] = run_step(model, **batch)
    with place.backlog() as backlog:
        backlog.to_host()
        backlog.to_device()
        steps["late copies"] = run_step(model, **batch)
        place.finish()
    return steps


def _repeatable_step(model: nn.Module, batch: Mapping[str, Any]) -> Step:
    first, second = run_step(model, **batch), run_step(model, **batch)
    if _num_wrong(first, second):
        raise NotSupported("two plain steps differ here, so bits cannot be compared")
    return first


@contextmanager
def _deterministic(place: Place) -> Iterator[None]:
    """Kernels of a GPU whose results are the same each time; those of the CPU are."""
    if not place.on_gpu:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _check_same(step: Step, other: Step, what: str, figures: Figures) -> None:
    num_wrong = _num_wrong(step, other)
    if num_wrong:
        numel = sum(gradient.numel() for gradient in other.gradients.values())
        raise ScenarioFailed(f"{what}: {num_wrong} of {numel} gradients differ", figures)


def _num_wrong(step: Step, other: Step) -> int:
    """Gradients that are not equal, a loss that is not counted as one."""
    pairs = ((step.gradients[name], other.gradients[name]) for name in other.gradients)
    return int(step.loss != other.loss) + sum(int((a != b).sum()) for a, b in pairs)


GRADIENT_SCENARIOS = (
    Scenario("gradients by hooks", by_hooks),
    Scenario("gradients by wrap", by_wrap),
)
