"""`wrap` and `unwrap` as users meet them: what they refuse, and what they leave alone."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import memo_train
from memo_train.caps import Caps
from memo_train.device import get_cpu_device
from memo_train.errors import InvalidInput, MemoError, PlanInfeasible, UnsupportedModel
from memo_train.runtime import find_parts
from memo_train.testing import assert_same_bits, run_step
from tests.runtime.causal_lms import MODELS, own_llama

Make = Callable[[], Any]

# transformers 5.23 has another name for the switch; the old one works in all of 5.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, 61, (2, 37), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def no_caps_left() -> Iterator[None]:
    """Every test leaves the device without caps and with an empty host pool."""
    yield
    counters = get_cpu_device().counters()
    get_cpu_device().set_device_cap(None)
    get_cpu_device().set_host_cap(None)
    assert (counters.device_cap_bytes, counters.host_cap_bytes) == (None, None)
    assert counters.host_used_bytes == 0


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    """Everything a refused `wrap` must leave as it was."""
    modules = list(model.modules())
    return (
        [sorted(vars(module)) for module in modules],
        [module.training for module in modules],
        [id(parameter) for parameter in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
    )


def assert_refused(make: Make, error: type[MemoError], message: str, **options: Any) -> None:
    """`wrap` raises `error` with `message`, and the model is as it was."""
    model = make()
    if not isinstance(model, nn.Module):
        with pytest.raises(error, match=message):
            memo_train.wrap(model, **options)
        return
    before, values = snapshot(model), copy.deepcopy(model.state_dict())
    stream = torch.get_rng_state()
    with pytest.raises(error, match=message):
        memo_train.wrap(model, **options)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(v, values[name]) for name, v in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def small(family: str, suffix: str, **options: Any) -> nn.Module:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 61}
    config = getattr(transformers, f"{family}Config")(**(sizes | options))
    return getattr(transformers, f"{family}{suffix}")(config)


def bert() -> nn.Module:
    return small("Bert", "ForMaskedLM", num_hidden_layers=1, intermediate_size=48)


def t5() -> nn.Module:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    return small("T5", "ForConditionalGeneration", **sizes)


def gpt2_with_cross_attention() -> nn.Module:
    return MODELS["gpt2"](add_cross_attention=True)


def without_blocks() -> nn.Module:
    model = own_llama()
    model.model.blocks = nn.ModuleList()
    return model


def checkpointing() -> nn.Module:
    model = MODELS["llama"]()
    model.gradient_checkpointing_enable()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bert, "BertForMaskedLM is not a causal language model; wrap takes"),
        (lambda: nn.Linear(4, 4), "Linear is not a causal LM .* it needs a `base_model`"),
        (lambda: "gpt2", "wrap takes a torch.nn.Module, got str"),
        (lambda: MODELS["llama"]().model, "LlamaModel is not a causal"),
        (t5, "T5ForConditionalGeneration has cross-attention"),
        (gpt2_with_cross_attention, "GPT2LMHeadModel has cross-attention"),
        (without_blocks, "no blocks found in Decoder: expected a torch.nn.ModuleList"),
        (checkpointing, r"gradient checkpointing on.*gradient_checkpointing_disable\(\)"),
        (lambda: MODELS["llama"](output_attentions=True, attn_implementation="eager"), "False"),
    ],
    ids=[
        "masked LM",
        "linear",
        "no module",
        "decoder alone",
        "encoder-decoder",
        "cross-attention",
        "no blocks",
        "checkpointing",
        "attentions wanted",
    ],
)
def test_unsupported_models(make: Make, message: str) -> None:
    assert_refused(make, UnsupportedModel, message)


@pytest.mark.parametrize(
    "options",
    [
        *({"alpha": value} for value in (-0.01, 1.01, float("nan"), float("inf"), "1", True)),
        *({"tile_tokens": value} for value in (0, -8, 8.0, "8", True)),
        *({"seq_len": value} for value in (0, -1, 37.0, "37", True)),
        *({"device_gib": value} for value in (0, 0.0, -1, float("nan"), float("inf"), "1", True)),
        *({"host_gib": value} for value in (0, 0.0, -1, float("nan"), float("inf"), "1", True)),
        {"device_gib": 1e-10},
        {"device_gib": 1, "host_gib": -1},
    ],
    ids=str,
)
def test_invalid_options(options: dict[str, Any]) -> None:
    name, value = list(options.items())[-1]
    assert_refused(own_llama, InvalidInput, rf"^{name} must be .*got {value!r}", **options)


@pytest.mark.parametrize("seq_len", [None, 1, 1 << 20])
def test_a_cap_too_small_for_one_tile(seq_len: int | None) -> None:
    """The state of this model alone, with AdamW's moments, is larger than the cap."""
    cap_gib = 3e6 / memo_train.wrap.__globals__["GIB"]
    make = lambda: own_llama(hidden_size=128, ffn_size=512, num_heads=4)  # noqa: E731
    message = r"on the device, limit 2\.9 MiB; no sequence fits.*raise the limit"
    assert_refused(make, PlanInfeasible, message, device_gib=cap_gib, seq_len=seq_len)


def test_a_cap_below_what_is_in_use() -> None:
    """The first cap is taken back when the second is refused."""
    device = get_cpu_device()
    address = device.host_alloc(1 << 20)
    try:
        message = "host cap of .* is below the 1048576 bytes"
        assert_refused(own_llama, MemoError, message, device_gib=1.0, host_gib=1e-4)
    finally:
        device.host_free(address)


def test_infeasible_plans_name_the_longest_sequence() -> None:
    with pytest.raises(PlanInfeasible) as caught:
        memo_train.wrap(own_llama(), seq_len=1 << 20, device_gib=0.01)
    longest = caught.value.max_tokens
    assert 100 < longest < 1 << 20
    assert f"longest sequence that fits: {longest:,} tokens" in str(caught.value)


def test_wrapped_twice() -> None:
    model = memo_train.wrap(own_llama(), alpha=0.0)
    with pytest.raises(UnsupportedModel, match=r"wrapped already; call memo_train\.unwrap"):
        memo_train.wrap(model)
    memo_train.unwrap(model)


@pytest.mark.parametrize("make", [own_llama, lambda: nn.Linear(2, 2)])
def test_unwrap_of_what_is_not_wrapped(make: Make) -> None:
    model = make()
    with pytest.raises(UnsupportedModel, match=f"this {type(model).__name__} is not wrapped"):
        memo_train.unwrap(model)
    with pytest.raises(UnsupportedModel, match="is not wrapped"):
        memo_train.plan(model)


def test_plan_before_any_step_says_how_to_get_one() -> None:
    model = memo_train.wrap(own_llama(), alpha=0.0)
    with pytest.raises(UnsupportedModel, match="pass seq_len to wrap or run a step"):
        memo_train.plan(model)
    memo_train.unwrap(model)


@pytest.mark.parametrize("name", ["own", "llama_gqa", "gpt2"])
def test_unwrap_restores(name: str, ids) -> None:
    model = MODELS[name]()
    before, plain = snapshot(model), run_step(model, input_ids=ids, labels=ids)
    with torch.no_grad():
        logits = model(ids).logits
    memo_train.wrap(model, alpha=0.5, device_gib=1.0, host_gib=1.0, tile_tokens=8)
    assert "forward" in vars(model)
    run_step(model, input_ids=ids, labels=ids)
    assert memo_train.unwrap(model) is model
    assert snapshot(model) == before
    assert_same_bits(run_step(model, input_ids=ids, labels=ids), plain)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)
    memo_train.unwrap(memo_train.wrap(model, alpha=1.0))
    assert snapshot(model) == before


def test_a_forward_of_the_instances_own_comes_back(ids) -> None:
    """As accelerate's mixed precision sets one."""
    model = own_llama()
    forward, calls = model.forward, []
    model.forward = own = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    memo_train.wrap(model, alpha=0.0, tile_tokens=8)
    calls.clear()
    run_step(model, input_ids=ids, labels=ids)
    assert calls, "the instance's own forward runs while wrapped"
    memo_train.unwrap(model)
    assert vars(model)["forward"] is own


def test_a_model_that_is_dropped_takes_its_cap_with_it() -> None:
    device = get_cpu_device()
    first = memo_train.wrap(own_llama(), alpha=0.0, device_gib=1.0)
    second = memo_train.wrap(own_llama(), alpha=0.0, device_gib=2.0)
    del first
    gc.collect()
    assert device.counters().device_cap_bytes == pytest.approx(2 * 2**30, rel=1e-3)
    del second
    gc.collect()
    assert device.counters().device_cap_bytes is None


def test_what_a_dropped_model_still_holds_does_not_count() -> None:
    device, parts = get_cpu_device(), find_parts(own_llama())
    gc.collect()
    gc.disable()
    try:
        dropped = memo_train.wrap(own_llama(), alpha=0.0)
        dropped.register_buffer("large", torch.zeros(2**24))
        del dropped
        assert device.counters().device_used_bytes > 2**26
        caps = Caps(device)
        caps.set(2**26, None, parts)
        caps.restore()
    finally:
        gc.enable()


def test_two_wrapped_models_keep_their_own_caps() -> None:
    device = get_cpu_device()
    first = memo_train.wrap(own_llama(), alpha=0.0, device_gib=1.0)
    second = memo_train.wrap(own_llama(), alpha=0.0)
    memo_train.unwrap(second)
    assert device.counters().device_cap_bytes == pytest.approx(2**30, rel=1e-3)
    memo_train.unwrap(first)
    assert device.counters().device_cap_bytes is None
