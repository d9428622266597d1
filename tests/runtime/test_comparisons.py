"""The comparisons of `memo_train.testing` fail when they should."""

from __future__ import annotations

import pytest
import torch

from memo_train.testing import (
    Step,
    assert_as_exact_as_plain,
    assert_same_bits,
    assert_same_losses,
    float64_step,
    gradient_error,
    run_step,
)
from tests.runtime.causal_lms import MODELS


def step_of(loss: float, *gradients: float) -> Step:
    named = {"weight": torch.tensor(gradients), "bias": torch.zeros(1)}
    return Step(loss=torch.tensor(loss), gradients=named)


def test_one_bit_is_a_difference() -> None:
    one, other = step_of(1.0, 2.0, 3.0), step_of(1.0, 2.0, 3.0)
    assert_same_bits(one, other)
    weight = other.gradients["weight"]
    weight[1] = torch.nextafter(weight[1], torch.tensor(4.0))
    with pytest.raises(AssertionError, match="weight: 1 of 2 gradients differ"):
        assert_same_bits(one, other)
    with pytest.raises(AssertionError, match="losses"):
        assert_same_bits(one, step_of(1.0000001, 2.0, 3.0))


def test_a_missing_gradient_is_a_difference() -> None:
    one, other = step_of(1.0, 2.0), step_of(1.0, 2.0)
    del other.gradients["bias"]
    for compare in (assert_same_bits, lambda a, b: assert_as_exact_as_plain(a, b, b)):
        with pytest.raises(
            AssertionError, match=r"only one of the two has gradients of \['bias'\]"
        ):
            compare(one, other)


def test_errors_are_measured_in_those_of_plain_autograd() -> None:
    exact, plain = step_of(1.0, 2.0, 4.0), step_of(1.0, 2.001, 4.0)
    assert_as_exact_as_plain(step_of(1.0, 2.0, 4.0019), plain, exact)
    with pytest.raises(AssertionError, match="relative error against float64"):
        assert_as_exact_as_plain(step_of(1.0, 2.0, 4.0021), plain, exact)
    with pytest.raises(AssertionError, match="loss: relative error"):
        assert_as_exact_as_plain(step_of(1.000001, 2.0, 4.0), plain, exact)
    assert gradient_error(plain, exact) == pytest.approx(0.001 / 20**0.5, rel=1e-3)


def test_a_gradient_that_is_zero_may_be_one_rounding_of_all() -> None:
    """Plain autograd's own rounding of it, 1e-9 here, is no measure."""
    exact, plain, off = step_of(1.0, 2.0, 4.0), step_of(1.0, 2.001, 4.0), step_of(1.0, 2.0, 4.0)
    for step, left in ((exact, 1e-17), (plain, 1e-9), (off, 4e-7)):
        step.gradients["q"] = torch.tensor([left, 0.0], dtype=torch.float64)
    assert_as_exact_as_plain(off, plain, exact)
    off.gradients["q"] = torch.tensor([6e-7, 0.0])
    with pytest.raises(AssertionError, match="q: 6e-07, zero in float64"):
        assert_as_exact_as_plain(off, plain, exact)


def test_not_a_number_is_never_exact() -> None:
    good = step_of(1.0, 2.0)
    bad = step_of(1.0, float("nan"))
    with pytest.raises(AssertionError):
        assert_as_exact_as_plain(bad, good, good)
    with pytest.raises(AssertionError):
        assert_same_losses([float("nan")], [1.0])


def test_losses_are_compared_step_by_step() -> None:
    assert_same_losses([1.0, 2.0], [1.000001, 2.0])
    with pytest.raises(AssertionError, match=r"step 1: loss 2\.0"):
        assert_same_losses([1.0, 2.0], [1.0, 2.0001])
    with pytest.raises(AssertionError, match="1 and 2 steps"):
        assert_same_losses([1.0], [1.0, 2.0])


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2"])
def test_the_reference_is_float64_throughout(name: str, ids) -> None:
    """A perturbation far below fp32's rounding moves the loss: nothing on the way was fp32."""
    model = MODELS[name](attn_implementation="eager").double()
    exact = float64_step(model, input_ids=ids, labels=ids)
    with torch.no_grad():
        next(model.parameters()).mul_(1 + 1e-12)
    moved = float64_step(model, input_ids=ids, labels=ids)
    relative = abs(float(moved.loss - exact.loss)) / float(exact.loss)
    assert 0 < relative < 1e-11
    plain = run_step(MODELS[name](attn_implementation="eager"), input_ids=ids, labels=ids)
    assert 1e-8 < gradient_error(plain, exact) < 1e-5
