"""A tiled loss in fp16 is as exact as plain AMP, whatever scale comes after it.

Numerics level 4: error against float64 at most twice plain autograd's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from memo_train.testing import Step, gradient_error, gradients_of, run_step
from tests.runtime.causal_lms import MODELS
from tests.runtime.tiled_loss import family, is_tiled

SCALE = 2.0**16
ITEMS = 100_000
"""Tokens of an accumulated step: the loss that backward starts from is small."""


def scaled_step(
    model: nn.Module, ids: torch.Tensor, combine: Callable[[torch.Tensor], torch.Tensor]
) -> Step:
    model.zero_grad(set_to_none=True)
    loss = model(input_ids=ids, labels=ids, num_items_in_batch=ITEMS).loss
    combine(loss).backward()
    gradients = {n: g.double() / SCALE for n, g in gradients_of(model).items()}
    return Step(loss=loss.detach(), gradients=gradients)


USES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "scaled": lambda loss: loss * SCALE,
    "twice": lambda loss: loss * (SCALE / 2) + (loss * SCALE) / 2,
    "in another loss": lambda loss: (loss * SCALE) * 0.75 + torch.sin(loss * 0) + loss * SCALE / 4,
}


def with_a_hook(loss: torch.Tensor) -> torch.Tensor:
    loss.register_hook(lambda gradient: gradient * SCALE)
    return loss


USES["scaled by a hook"] = with_a_hook


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("weights", [torch.float32, torch.float16], ids=["autocast", "weights"])
def test_fp16_is_as_exact_as_plain(weights: torch.dtype, use: str, ids, wrapped) -> None:
    """Its gradients are too small for fp16 but for the scale, which comes after the loss."""

    def make() -> nn.Module:
        return family("Llama", hidden_size=64, intermediate_size=96, num_hidden_layers=2)().to(
            weights
        )

    exact = scaled_step(make().double(), ids, USES[use])
    with torch.autocast("cpu", torch.float16, enabled=weights == torch.float32):
        plain = scaled_step(make(), ids, USES[use])
        step = scaled_step(wrapped(make()), ids, USES[use])
    assert gradient_error(plain, exact) < 1e-2
    assert gradient_error(step, exact) <= 2 * gradient_error(plain, exact)


def test_fp16_with_backward_outside_of_autocast(ids, wrapped) -> None:
    make = MODELS["llama_gqa"]
    steps = []
    for inside in (True, False):
        model = wrapped(make())
        with torch.autocast("cpu", torch.float16):
            loss = model(input_ids=ids, labels=ids).loss
            if inside:
                (loss * SCALE).backward()
        if not inside:
            (loss * SCALE).backward()
        steps.append(gradients_of(model))
    assert all(torch.equal(g, steps[1][name]) for name, g in steps[0].items())


def test_fp16_draws_the_same_numbers_again_in_backward(ids, wrapped) -> None:
    """Dropout of the head: LoRA's. Whatever the model draws, its loss is one function of them."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, target_modules=["lm_head"], lora_dropout=0.5, init_lora_weights=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = wrapped(peft.get_peft_model(MODELS["llama"](), config))
    weight = next(p for n, p in model.named_parameters() if "lora_B" in n)

    def value() -> torch.Tensor:
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.float16):
            return model(input_ids=ids, labels=ids).loss

    loss = value()
    assert is_tiled(model)
    (loss * SCALE).backward()
    direction = weight.grad.sign() / SCALE
    slope = float((weight.grad / SCALE * direction).sum())
    with torch.no_grad():
        step = 1e-2 * SCALE
        weight += step * direction
        above = float(value_of(value))
        weight -= 2 * step * direction
        below = float(value_of(value))
    assert (above - below) / (2 * step) == pytest.approx(slope, rel=0.1)


def value_of(value: Callable[[], torch.Tensor]) -> torch.Tensor:
    with torch.enable_grad():
        return value().detach()


def test_a_factor_that_bf16_cannot_hold(ids, wrapped) -> None:
    """One third in bf16 is 0.3 % off, and so would be every gradient."""
    model = wrapped(MODELS["llama"]().bfloat16())
    whole = run_step(model, input_ids=ids, labels=ids).gradients["lm_head.weight"]
    model.zero_grad(set_to_none=True)
    (model(input_ids=ids, labels=ids).loss / 3).backward()
    third = model.lm_head.weight.grad
    assert torch.equal(third, (whole.float() * torch.tensor(1 / 3)).bfloat16())
