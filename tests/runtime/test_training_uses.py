"""Ways people train: dropout, bf16, frozen parameters, LoRA, accumulation, own losses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memo_train
from memo_train.testing import (
    Step,
    assert_as_exact_as_plain,
    assert_same_bits,
    float64_step,
    gradients_of,
    run_step,
)
from tests.runtime.causal_lms import MODELS, gpt2_with_dropout
from tests.runtime.policies import POLICIES, force, step_of_all

TILE_TOKENS = 8
Make = Callable[[], nn.Module]


def check(make: Make, wrapped, batch, run: Callable[..., Step] = run_step) -> None:
    """Bitwise between policies, as exact as plain training."""
    plain, exact = run(make(), **batch), float64_step(make(), **batch)
    model = wrapped(make())
    steps = {p: run(force(model, p, TILE_TOKENS), **batch) for p in POLICIES}
    for step in steps.values():
        assert_same_bits(step, steps["keep"])
    assert_as_exact_as_plain(steps["keep"], plain, exact)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropout_draws_the_same_numbers_under_every_policy(attention: str, ids, wrapped) -> None:
    model = wrapped(gpt2_with_dropout(attn_implementation=attention))
    batch = {"input_ids": ids, "labels": ids}
    keep = run_step(force(model, "keep", TILE_TOKENS), **batch)
    stream = torch.rand(8)
    for policy in POLICIES:
        assert_same_bits(run_step(force(model, policy, TILE_TOKENS), **batch), keep)
        assert torch.equal(torch.rand(8), stream), policy
    other_seed = run_step(model, seed=1, **batch)
    assert not torch.equal(other_seed.loss, keep.loss)


@pytest.mark.parametrize("name", ["own", "llama_gqa", "gpt2", "phi"])
def test_bf16_autocast(name: str, ids, wrapped) -> None:
    make, batch = MODELS[name], {"input_ids": ids, "labels": ids}

    def run(model: nn.Module, *, backward_inside: bool = True) -> Step:
        torch.manual_seed(0)
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
        return Step(loss=loss.detach(), gradients=gradients_of(model))

    model = wrapped(make())
    steps = {p: run(force(model, p, TILE_TOKENS)) for p in POLICIES}
    for policy in POLICIES:
        assert_same_bits(steps[policy], steps["keep"])
        outside = run(force(model, policy, TILE_TOKENS), backward_inside=False)
        assert_same_bits(outside, steps["keep"])
    exact = float64_step(make(), **batch)
    assert_as_exact_as_plain(steps["keep"], run(make()), exact, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["own", "llama_gqa", "gpt2", "phi"])
def test_bf16_model(name: str, ids, wrapped) -> None:
    batch = {"input_ids": ids, "labels": ids}
    plain = run_step(MODELS[name]().bfloat16(), **batch)
    exact = float64_step(MODELS[name]().bfloat16(), **batch)
    model = wrapped(MODELS[name]().bfloat16())
    step = step_of_all(model, TILE_TOKENS, **batch)
    assert all(g.dtype == torch.bfloat16 for g in step.gradients.values())
    assert_as_exact_as_plain(step, plain, exact, dtype=torch.bfloat16)


TRAINED: dict[str, Callable[[str], bool]] = {
    "all_but_embeddings": lambda name: "embed" not in name,
    "all_but_block_1": lambda name: "layers.1." not in name,
    "last_block": lambda name: "layers.2." in name,
    "mlp": lambda name: "mlp" in name,
    "q": lambda name: "q_proj" in name,
    "o": lambda name: "o_proj" in name,
    "norms": lambda name: "norm" in name,
    "head": lambda name: "lm_head" in name,
    "embeddings": lambda name: "embed" in name,
}


@pytest.mark.parametrize("which", TRAINED)
def test_frozen_parameters(which: str, ids, wrapped) -> None:
    def make() -> nn.Module:
        model = MODELS["llama_gqa"]()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(TRAINED[which](name))
        return model

    check(make, wrapped, {"input_ids": ids, "labels": ids})


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["o_proj", "lm_head"]},
    ],
    ids=["blocks", "saved_head_and_embedding", "adapted_head"],
)
def test_lora(options: dict[str, list[str]], ids, wrapped) -> None:
    def make() -> nn.Module:
        config = peft.LoraConfig(r=4, init_lora_weights=False, **options)
        return peft.get_peft_model(MODELS["llama_gqa"](), config)

    check(make, wrapped, {"input_ids": ids, "labels": ids})


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_dropout_before_the_cut(ids, wrapped) -> None:
    """LoRA's dropout on q draws in pre, so that a recomputed tile needs its own numbers again."""
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj"], lora_dropout=0.3, init_lora_weights=False
    )
    model = wrapped(peft.get_peft_model(MODELS["llama_gqa"](), config))
    batch = {"input_ids": ids, "labels": ids}
    step = step_of_all(model, TILE_TOKENS, **batch)
    assert not torch.equal(run_step(model, seed=1, **batch).loss, step.loss)


@pytest.mark.parametrize(
    ("name", "option"), [("llama", "tie_word_embeddings"), ("own", "tie_embeddings")]
)
def test_tied_embeddings(name: str, option: str, ids, wrapped) -> None:
    check(lambda: MODELS[name](**{option: True}), wrapped, {"input_ids": ids, "labels": ids})


def test_labels_left_out_and_items_in_batch(ids, wrapped) -> None:
    labels = ids.clone()
    labels[0, :21] = -100
    check(MODELS["llama"], wrapped, {"input_ids": ids, "labels": labels})
    for items in (100, torch.tensor(100)):
        batch = {"input_ids": ids, "labels": labels, "num_items_in_batch": items}
        check(MODELS["llama"], wrapped, batch)


@pytest.mark.parametrize("both_forwards_first", [False, True])
def test_gradient_accumulation(both_forwards_first: bool, ids, wrapped) -> None:
    micro_batches = [ids[:1], ids[1:, :29], ids[:, 5:22]]

    def run(model: nn.Module) -> Step:
        model.zero_grad(set_to_none=True)
        losses = []
        for micro in micro_batches:
            losses.append(model(input_ids=micro, labels=micro).loss)
            if not both_forwards_first:
                losses[-1].backward()
        for loss in losses if both_forwards_first else ():
            loss.backward()
        return Step(loss=torch.stack(losses).sum().detach(), gradients=gradients_of(model))

    model = wrapped(MODELS["llama"]())
    steps = {p: run(force(model, p, TILE_TOKENS)) for p in POLICIES}
    for step in steps.values():
        assert_same_bits(step, steps["keep"])
    plain, exact = run(MODELS["llama"]()), run(MODELS["llama"]().double())
    assert_as_exact_as_plain(steps["keep"], plain, exact)


@pytest.mark.parametrize("policy", POLICIES)
def test_evaluation_between_forward_and_backward(policy: str, ids, wrapped) -> None:
    model = wrapped(MODELS["llama"](), policy)
    undisturbed = run_step(model, input_ids=ids, labels=ids)
    model.zero_grad(set_to_none=True)
    loss = model(input_ids=ids, labels=ids).loss
    model.eval()
    with torch.no_grad():
        evaluated = model(input_ids=ids[:, :20], labels=ids[:, :20])
    loss.backward()
    assert_same_bits(Step(loss=loss.detach(), gradients=gradients_of(model)), undisturbed)
    with torch.no_grad():
        plain = MODELS["llama"]().eval()(input_ids=ids[:, :20], labels=ids[:, :20])
    torch.testing.assert_close(evaluated.loss, plain.loss)
    torch.testing.assert_close(evaluated.logits, plain.logits)


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_logits_without_labels(mode, ids, wrapped) -> None:
    model = wrapped(MODELS["llama"]())
    with mode():
        torch.testing.assert_close(model(ids).logits, MODELS["llama"]()(ids).logits)


def test_a_loss_of_the_users_own_from_logits(ids, wrapped) -> None:
    def run(model: nn.Module, input_ids: torch.Tensor) -> Step:
        model.zero_grad(set_to_none=True)
        logits = model(input_ids).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
        (3 * loss).backward()
        return Step(loss=loss.detach(), gradients=gradients_of(model))

    plain, exact = run(MODELS["qwen3"](), ids), run(MODELS["qwen3"]().double(), ids)
    model = wrapped(MODELS["qwen3"]())
    steps = {p: run(force(model, p, TILE_TOKENS), ids) for p in POLICIES}
    for step in steps.values():
        assert_same_bits(step, steps["keep"])
    assert_as_exact_as_plain(steps["keep"], plain, exact)


def test_a_scaled_loss(ids, wrapped) -> None:
    """As gradient scalers and accumulation by division do."""
    model = wrapped(MODELS["own"]())
    whole = run_step(model, input_ids=ids, labels=ids)
    model.zero_grad(set_to_none=True)
    (model(input_ids=ids, labels=ids).loss * 0.25).backward()
    for name, gradient in gradients_of(model).items():
        assert torch.equal(gradient * 4, whole.gradients[name]), name


@pytest.mark.parametrize("options", [{}, {"seq_len": 37, "device_gib": 1.0}], ids=str)
def test_a_model_with_nothing_to_train(ids, options, device) -> None:
    """A frozen reference model, called outside of no_grad."""
    frozen = MODELS["llama"]().requires_grad_(False)
    model = memo_train.wrap(frozen, alpha=0.0, tile_tokens=8, **options)
    plain = MODELS["llama"]()(input_ids=ids, labels=ids)
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, plain.loss.detach())
    memo_train.unwrap(model)
    assert device.counters().device_cap_bytes is None
