"""A step that fails, wherever it fails, leaves nothing behind: the next one is right."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from memo_train.device.errors import HostMemoryExceeded
from memo_train.testing import Step, assert_same_bits, run_step
from tests.runtime.causal_lms import MODELS
from tests.runtime.policies import POLICIES, force

PLAIN_ATTENTION = F.scaled_dot_product_attention


class Boom(RuntimeError):
    """What the tests throw."""


@contextmanager
def failing_module(module: nn.Module, call: int) -> Iterator[None]:
    """The `call`-th forward of `module` raises Boom."""
    calls = 0

    def count(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Boom

    handle = module.register_forward_hook(count)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def failing_loss(model: nn.Module, call: int) -> Iterator[None]:
    """The `call`-th forward of the head raises Boom. No hook does it: the loss would be whole.

    The first four prove how the loss of this head adds up; there it would be taken for a head that
    does not run on a part of the tokens.
    """
    calls, forward = 0, model.lm_head.forward

    def count(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Boom
        return forward(x)

    model.lm_head.forward = count
    try:
        yield
    finally:
        del model.lm_head.forward


class _FailsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dx):
        raise Boom


@contextmanager
def failing_backward(module: nn.Module, call: int) -> Iterator[None]:
    """The backward of `module`'s `call`-th forward that records a graph raises Boom."""
    calls = 0

    def replace(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += output.requires_grad
        return _FailsInBackward.apply(output) if calls == call else output

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def failing_attention(call: int) -> Iterator[None]:
    calls = 0

    def attend(*args: torch.Tensor, **options: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Boom
        return PLAIN_ATTENTION(*args, **options)

    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = PLAIN_ATTENTION


def middle(model: nn.Module) -> nn.Module:
    return model.model.layers[1]


FAILURES: dict[str, Callable[[nn.Module], object]] = {
    "pre of a middle tile": lambda m: failing_module(middle(m).self_attn.q_proj, 3),
    "post of a middle tile": lambda m: failing_module(middle(m).mlp.down_proj, 3),
    "attention": lambda m: failing_attention(2),
    "loss": lambda m: failing_loss(m, 6),
    "backward of post": lambda m: failing_backward(middle(m).mlp.up_proj, 2),
    "backward of pre": lambda m: failing_backward(middle(m).input_layernorm, 2),
}


def assert_nothing_left(model: nn.Module, good: Step, ids: torch.Tensor, device) -> None:
    gc.collect()
    assert device.counters().host_used_bytes == 0
    assert F.scaled_dot_product_attention is PLAIN_ATTENTION
    assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)
    for module in model.modules():
        slots = [p for p in module._parameters.values() if p is not None]
        assert all(isinstance(p, nn.Parameter) for p in slots)
    assert torch.is_grad_enabled()
    assert_same_bits(run_step(model, input_ids=ids, labels=ids), good)


@pytest.mark.parametrize("where", FAILURES)
@pytest.mark.parametrize("policy", POLICIES)
def test_an_exception(policy: str, where: str, ids, wrapped, device) -> None:
    good = run_step(wrapped(MODELS["llama"](), policy), input_ids=ids, labels=ids)
    model = wrapped(MODELS["llama"](), policy)
    with FAILURES[where](model), pytest.raises(Boom):
        run_step(model, input_ids=ids, labels=ids)
    assert_nothing_left(model, good, ids, device)


@pytest.mark.parametrize("policy", ["recompute", "mixed"])
def test_an_exception_while_recomputing(policy: str, ids, wrapped, device) -> None:
    """Block 1 has five tiles: the seventh call of one of its modules is in backward."""
    model = wrapped(MODELS["llama"](), policy)
    good = run_step(model, input_ids=ids, labels=ids)
    with failing_module(middle(model).mlp.down_proj, 7), pytest.raises(Boom):
        run_step(model, input_ids=ids, labels=ids)
    assert_nothing_left(model, good, ids, device)


def test_an_exception_in_evaluation(ids, wrapped, device) -> None:
    model = wrapped(MODELS["llama"]())
    good = run_step(model, input_ids=ids, labels=ids)
    with FAILURES["post of a middle tile"](model), torch.no_grad(), pytest.raises(Boom):
        force(model, "mixed", 8)(input_ids=ids)
    assert_nothing_left(model, good, ids, device)


# What fills the memory is in no layout; whether one is solved by then is a matter of time.
@pytest.mark.filterwarnings("ignore:a step of:UserWarning")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_out_of_device_memory(where: str, policy: str, ids, wrapped, device) -> None:
    model = wrapped(MODELS["llama"](), policy)
    good = run_step(model, input_ids=ids, labels=ids)
    loss = model(input_ids=ids, labels=ids).loss if where == "backward" else None
    gc.collect()
    device.set_device_cap(device.counters().device_high_water_bytes)
    hog = fill(device)
    fail = partial(run_step, model, input_ids=ids, labels=ids) if loss is None else loss.backward
    with pytest.raises(torch.OutOfMemoryError, match=r"asked .* used .* cap"):
        fail()
    del fail, loss, hog
    device.set_device_cap(None)
    assert_nothing_left(model, good, ids, device)


def fill(device) -> list[torch.Tensor]:
    """Tensors that leave no hole of more than 16 KiB under the cap."""
    hog = []
    while (hole := device.counters().device_largest_hole_bytes) > 1 << 14:
        hog.append(torch.empty(hole - 64, dtype=torch.uint8))
    return hog


@pytest.mark.parametrize("policy", ["swap", "mixed"])
def test_out_of_host_memory(policy: str, ids, wrapped, device) -> None:
    model = wrapped(MODELS["llama"](), policy)
    device.reset_peak()
    good = run_step(model, input_ids=ids, labels=ids)
    device.set_host_cap(device.counters().host_peak_bytes // 2)
    with pytest.raises(HostMemoryExceeded):
        run_step(model, input_ids=ids, labels=ids)
    device.set_host_cap(None)
    assert_nothing_left(model, good, ids, device)


@pytest.mark.parametrize("policy", ["swap", "mixed"])
def test_a_copy_that_cannot_be_asked_for(
    policy: str, ids, wrapped, device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host range that was to take it is given back."""
    model = wrapped(MODELS["llama"](), policy)
    good = run_step(model, input_ids=ids, labels=ids)
    send, calls = type(device).copy_all_to_host, 0

    def refuse(device: object, copies: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Boom
        return send(device, copies)

    with monkeypatch.context() as patched:
        patched.setattr(type(device), "copy_all_to_host", refuse)
        with pytest.raises(Boom):
            run_step(model, input_ids=ids, labels=ids)
    assert_nothing_left(model, good, ids, device)


def test_failures_do_not_add_up(ids, wrapped, device) -> None:
    """Device memory after many failed steps is what it was after the first."""
    model = wrapped(MODELS["llama"](), "swap")
    used_bytes = []
    for _ in range(4):
        for where in FAILURES:
            with FAILURES[where](model), pytest.raises(Boom):
                run_step(model, input_ids=ids, labels=ids)
        run_step(model, input_ids=ids, labels=ids)
        gc.collect()
        used_bytes.append(device.counters().device_used_bytes)
    assert len(set(used_bytes[1:])) == 1, used_bytes
