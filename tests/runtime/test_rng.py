"""Random numbers of all generators that a device's computation draws from. Numerics level 3."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import memo_train
from memo_train.device import CpuDevice
from memo_train.runtime import precision, preserved_rng
from memo_train.runtime._ambient import Ambient, RngStates, set_rng
from memo_train.testing import Step, assert_same_bits, run_step
from tests.runtime.policies import force
from tests.runtime.small_llama import own_llama


@pytest.fixture
def second() -> torch.Generator:
    """As a GPU has one beside the CPU's."""
    return torch.Generator().manual_seed(5)


def test_states_go_back_to_where_they_were(second: torch.Generator) -> None:
    generators = (torch.default_generator, second)
    taken = RngStates(generators)
    states = taken.take()
    assert all(a is b for a, b in zip(states, taken.take(), strict=True)), "nothing was drawn"
    with preserved_rng(generators):
        drawn = torch.rand(3), torch.rand(3, generator=second)
    again = taken.take()
    assert all(a is b for a, b in zip(states, again, strict=True))
    torch.rand(3, generator=second)
    assert [a is b for a, b in zip(states, taken.take(), strict=True)] == [True, False]
    set_rng(generators, states)
    assert torch.equal(drawn[0], torch.rand(3))
    assert torch.equal(drawn[1], torch.rand(3, generator=second))


def drops_by(generator: torch.Generator) -> nn.Module:
    """A Llama whose MLPs drop a fifth of their outputs, by a generator that is not the CPU's."""

    def drop(mlp: nn.Module, args: object, y: torch.Tensor) -> torch.Tensor:
        kept = torch.rand(y.shape, generator=generator) > 0.2
        return y * kept if mlp.training else y

    model = own_llama()
    for block in model.model.blocks:
        block.mlp.register_forward_hook(drop)
    return model


def steps(generator: torch.Generator, ids: torch.Tensor) -> Iterator[Step]:
    """The same step, kept and recomputed."""
    model = memo_train.wrap(drops_by(generator), alpha=0.5)
    for policy in ("keep", "recompute"):
        generator.manual_seed(7)
        yield run_step(force(model, policy, 8), input_ids=ids, labels=ids)


def test_what_is_recomputed_draws_the_same(
    second: torch.Generator, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The generator is not the device's, so nobody looks after it.
    with pytest.warns(UserWarning, match="run as they are, with nothing saved"):
        list(steps(second, ids))
    both = (torch.default_generator, second)
    monkeypatch.setattr(CpuDevice, "generators", both)
    kept, recomputed = steps(second, ids)
    assert_same_bits(kept, recomputed)


def test_autocast_of_another_device_is_another_state() -> None:
    before = Ambient.current("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        inside = Ambient.current("cuda")
        assert (precision("cuda"), precision("cpu")) == ("autocast to bfloat16", "its own types")
        assert inside.attention_dtype(torch.float32) is torch.bfloat16
        with before.restored():
            assert precision("cuda") == "its own types"
        assert Ambient.current("cuda") == inside
    finally:
        before.put_in_force()
    assert Ambient.current("cuda") == before
