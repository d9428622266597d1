"""The tiled loss: what it gives is the plain model's, however it is asked for and used.

Numerics level 4, fp16 included: error against float64 at most twice plain autograd's.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import memo_train
from memo_train.errors import BackwardTwice, DoubleBackward, UnsupportedModel
from memo_train.runtime import find_parts
from memo_train.testing import (
    run_step,
)
from tests.runtime.causal_lms import MODELS, gpt2_with_dropout
from tests.runtime.ranks import run_ranks
from tests.runtime.tiled_loss import WHOLE, Make, check, family

# The loss function and what else may change after wrap


def shifted_mean(logits, labels, vocab_size, **_: object) -> torch.Tensor:
    logits, labels = logits[:, :-1].float(), labels[:, 1:]
    return 10 * F.cross_entropy(logits.reshape(-1, vocab_size), labels.reshape(-1))


def mean_of_labels(logits, labels, vocab_size, shift_labels=None, **_: object) -> torch.Tensor:
    """Divides by the labels that count, whatever it is told."""
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=-100)[:, 1:]
    return 2 * F.cross_entropy(logits.float().reshape(-1, vocab_size), shift_labels.reshape(-1))


def mean_of_sequences(logits, labels, vocab_size, shift_labels=None, **_: object) -> torch.Tensor:
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=-100)[:, 1:]
    losses = F.cross_entropy(logits.float().transpose(1, 2), shift_labels, reduction="none")
    return (losses.sum(1) / (shift_labels != -100).sum(1)).mean()


class Weighted:
    """A loss function with a setting, and a part that does not add up once it is on."""

    def __init__(self) -> None:
        self.of_largest = 0.0

    def __call__(self, logits, labels, vocab_size, **options: Any) -> torch.Tensor:
        loss = transformers.loss.loss_utils.ForCausalLMLoss(logits, labels, vocab_size, **options)
        return loss + self.of_largest * logits.float().max()


@pytest.mark.parametrize(
    ("loss", "tiled"), [(shifted_mean, False), (mean_of_labels, True), (mean_of_sequences, False)]
)
def test_a_loss_function_set_after_wrap_is_used(loss, tiled: bool, ids, wrapped) -> None:
    def make() -> nn.Module:
        model = MODELS["llama"]()
        model.loss_function = loss
        return model

    model = wrapped(MODELS["llama"]())
    labels = ids.clone()
    labels[0, :21] = -100
    check(model, MODELS["llama"], input_ids=ids, labels=labels)
    model.loss_function = loss
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check(model, make, tiled=tiled, input_ids=ids, labels=labels)
        check(model, make, tiled=tiled, input_ids=ids, labels=labels)
    assert sum(WHOLE in str(w.message) for w in told) == (0 if tiled else 1)
    del model._loss_function
    check(model, MODELS["llama"], input_ids=ids, labels=labels)


def test_a_mean_over_no_labels_of_a_tile(ids, wrapped) -> None:
    """A tile without labels that count is left out of a mean, for it has none."""

    def make() -> nn.Module:
        model = MODELS["llama"]()
        model.loss_function = mean_of_labels
        return model

    labels = ids.clone()
    labels[:, 4:21] = -100
    check(wrapped(make()), make, input_ids=ids, labels=labels)


def test_a_setting_of_the_loss_function_changed_between_steps(ids, wrapped) -> None:
    loss = Weighted()

    def make() -> nn.Module:
        model = MODELS["llama"]()
        model.loss_function = loss
        return model

    model = wrapped(make())
    check(model, make, input_ids=ids, labels=ids)
    loss.of_largest = 0.1
    with pytest.warns(UserWarning, match=WHOLE):
        check(model, make, tiled=False, input_ids=ids, labels=ids)


class LlamaForCausalLM(transformers.LlamaForCausalLM):
    """A loss of its own, with a part that a setting of the config switches on."""

    def forward(self, input_ids=None, labels=None, use_cache=None, **kwargs: Any) -> Any:
        output = super().forward(input_ids, labels=labels, use_cache=use_cache, **kwargs)
        if output.loss is not None and self.config.penalty:
            output.loss = output.loss + self.config.penalty * output.logits.float().square().mean()
        return output


def penalised(penalty: float) -> nn.Module:
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(vocab_size=61, num_attention_heads=4, **sizes)
    config.penalty = penalty
    return LlamaForCausalLM(config).train()


def test_a_setting_of_the_config_changed_between_steps(ids, wrapped) -> None:
    model = wrapped(penalised(0.0))
    check(model, lambda: penalised(0.0), input_ids=ids, labels=ids)
    model.config.penalty = 0.5
    with pytest.warns(UserWarning, match=WHOLE):
        check(model, lambda: penalised(0.5), tiled=False, input_ids=ids, labels=ids)


def test_embeddings_resized_after_wrap_are_refused(ids, wrapped) -> None:
    model = wrapped(MODELS["llama"]())
    model.resize_token_embeddings(77, mean_resizing=False)
    with pytest.raises(UnsupportedModel, match="resized embeddings"):
        model(input_ids=ids, labels=ids)


# Hooks of the head


def test_a_hook_that_reads_the_logits_sees_them_whole(ids, wrapped) -> None:
    model, seen = wrapped(MODELS["llama"]()), []
    hook = model.lm_head.register_forward_hook(lambda m, args, logits: seen.append(logits.shape))
    with pytest.warns(UserWarning, match=WHOLE):
        check(model, MODELS["llama"], tiled=False, input_ids=ids, labels=ids)
    assert seen == [(2, 37, 61)]
    hook.remove()
    check(model, MODELS["llama"], input_ids=ids, labels=ids)


@pytest.mark.filterwarnings(f"ignore:.*{WHOLE}")
@pytest.mark.parametrize("where", ["lm_head", "model"])
@pytest.mark.parametrize(
    "register", ["forward_pre", "forward", "full_backward", "full_backward_pre"]
)
def test_hooks_run_once_and_are_obeyed(register: str, where: str, ids, wrapped) -> None:
    calls: list[int] = []

    if where == "model" and "backward" in register:
        pytest.skip("torch calls none: the decoder gives no tensors but an object that holds them")

    def hook(module: nn.Module, *values: Any) -> Any:
        calls.append(1)
        if register == "forward_pre" and where == "lm_head":
            return (values[0][0] * 2,)
        if register == "forward" and where == "lm_head":
            return values[1] * 2
        return None

    def make() -> nn.Module:
        model = MODELS["llama"]()
        getattr(getattr(model, where), f"register_{register}_hook")(hook)
        return model

    batch = {"inputs_embeds": MODELS["llama"]().model.embed_tokens(ids).detach(), "labels": ids}
    batch["inputs_embeds"].requires_grad_()
    plain = run_step(make(), **batch)
    per_step = len(calls)
    model = wrapped(MODELS["llama"]())
    getattr(getattr(model, where), f"register_{register}_hook")(hook)
    calls.clear()
    step = run_step(model, **batch)
    assert len(calls) == per_step >= 1
    for name, gradient in plain.gradients.items():
        torch.testing.assert_close(step.gradients[name], gradient, rtol=1e-4, atol=1e-6)


# Autograd's rules


def test_gradients_of_gradients_are_refused_by_name(ids, wrapped) -> None:
    model = wrapped(MODELS["llama"]())
    loss = model(input_ids=ids, labels=ids).loss
    (gradient,) = torch.autograd.grad(loss, model.lm_head.weight, create_graph=True)
    torch.testing.assert_close(
        gradient, run_step(MODELS["llama"](), input_ids=ids, labels=ids).gradients["lm_head.weight"]
    )
    with pytest.raises(DoubleBackward, match="unwrap"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_second_backward_is_refused_by_name(dtype: torch.dtype, ids, wrapped) -> None:
    model = wrapped(MODELS["llama"]().to(dtype))
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward(retain_graph=True)
    with pytest.raises(BackwardTwice, match="second time"):
        loss.backward()


def test_a_head_changed_before_backward_is_noticed_in_fp16(ids, wrapped) -> None:
    """There the head is used again in backward."""
    model = wrapped(MODELS["llama"]().half())
    loss = model(input_ids=ids, labels=ids).loss
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parameters_swapped_in_for_the_call(dtype: torch.dtype, ids, wrapped) -> None:
    """Those of the head get their gradients, and backward does not fall back on the model's own."""
    model = wrapped(MODELS["llama"]().to(dtype), "keep")
    mine = {n: (p.detach() * 2).requires_grad_() for n, p in model.lm_head.named_parameters()}
    mine = {f"lm_head.{name}": parameter for name, parameter in mine.items()}
    batch = {"input_ids": ids, "labels": ids}
    torch.func.functional_call(model, mine, (), batch).loss.backward()
    plain = MODELS["llama"]().to(dtype)
    with torch.no_grad():
        plain.lm_head.weight.mul_(2)
    exact = run_step(plain, **batch).gradients["lm_head.weight"]
    assert model.lm_head.weight.grad is None
    torch.testing.assert_close(mine["lm_head.weight"].grad, exact, rtol=1e-2, atol=1e-4)


# Families whose decoder or loss is of another kind


_BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
FAMILIES: dict[str, Make] = {
    "OPT": family(
        "OPT",
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        word_embed_proj_dim=32,
        dropout=0.0,
    ),
    "Bart": family("Bart", **_BART, dropout=0.0, max_position_embeddings=256),
    "MBart": family("MBart", **_BART, dropout=0.0, max_position_embeddings=256),
    "Gemma2": family(
        "Gemma2",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    ),
}


@pytest.mark.filterwarnings("ignore:.*blocks .* are .*not tiled")
@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_of_other_families_is_tiled(name: str, ids, wrapped) -> None:
    labels = ids.clone()
    labels[0, :21] = -100
    check(wrapped(FAMILIES[name]()), FAMILIES[name], input_ids=ids, labels=labels)


def test_a_head_with_layers_before_it(ids, wrapped) -> None:
    """RoBERTa's: a dense layer and a norm, then the head."""
    make = family(
        "Roberta",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = wrapped(make())
    check(model, make, input_ids=ids, labels=ids)


# A sharded head


@pytest.mark.parametrize("how", ["alone", "grouped"])
def test_a_head_that_fsdp2_shards(how: str) -> None:
    """Its hooks fire once a step, around all tiles: every parameter has plain's gradient."""
    script = Path(__file__).with_name("sharded_head.py")
    run_ranks(2, script, how)


# Large vocabularies


@pytest.mark.parametrize("tile_tokens", [8, 64])
def test_a_large_vocabulary_is_as_exact_as_plain(tile_tokens: int) -> None:
    def make() -> nn.Module:
        torch.manual_seed(1)
        config = transformers.LlamaConfig(
            vocab_size=16_384,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=4,
        )
        return transformers.LlamaForCausalLM(config)

    ids = torch.randint(16_384, (1, 201), generator=torch.Generator().manual_seed(7))
    model = memo_train.wrap(make(), alpha=0.0, tile_tokens=tile_tokens)
    check(model, make, input_ids=ids, labels=ids)


def test_no_tile_of_the_loss_is_a_few_tokens_only() -> None:
    """And its size is a line over the block tile's, as the profile takes it to be."""
    config = transformers.LlamaConfig(
        vocab_size=131_072, hidden_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    with torch.device("meta"):
        parts = find_parts(transformers.LlamaForCausalLM(config))
    sizes = [parts.loss_tile_tokens(tile) for tile in (64, 1024, 2048, 4096)]
    assert sizes[0] >= 32
    assert sizes[3] - sizes[2] == pytest.approx(2 * (sizes[2] - sizes[1]), abs=2)


def test_the_probe_draws_nothing_and_leaves_modes(ids) -> None:
    model = gpt2_with_dropout()
    torch.manual_seed(5)
    stream = torch.get_rng_state()
    memo_train.wrap(model, alpha=0.5)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(module.training for module in model.modules())
