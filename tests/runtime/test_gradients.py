"""Every supported model: the policy changes no bit, tiling no more than rounding.

Numerics levels 3 (policies, bitwise) and 4 (error against float64 at most twice plain autograd's).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memo_train.runtime import AtCut
from memo_train.testing import assert_as_exact_as_plain, assert_same_bits, float64_step, run_step
from tests.runtime.causal_lms import MODELS
from tests.runtime.policies import POLICIES, force, step_of_all, wrapped_of

TILE_TOKENS = 8
HUGGING_FACE = [name for name in MODELS if name != "own"]


def check(name: str, wrapped, batch: dict[str, torch.Tensor], **options: Any) -> None:
    plain_model = MODELS[name](**options)
    plain, exact = run_step(plain_model, **batch), float64_step(plain_model, **batch)
    model = wrapped(MODELS[name](**options))
    assert all(v.because is None for v in wrapped_of(model).verdicts)
    step = step_of_all(model, TILE_TOKENS, **batch)
    assert_as_exact_as_plain(step, plain, exact)


def padded(ids: torch.Tensor, side: str) -> dict[str, torch.Tensor]:
    """The batch with its second sequence shorter by 9 tokens."""
    mask = torch.ones_like(ids)
    mask[1, -9:] = 0
    mask = mask if side == "right" else mask.flip(1)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, -100),
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face(name: str, attention: str, ids, wrapped) -> None:
    check(name, wrapped, {"input_ids": ids, "labels": ids}, attn_implementation=attention)


def test_own_llama(ids, wrapped) -> None:
    check("own", wrapped, {"input_ids": ids, "labels": ids})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama_gqa", "mistral_window", "gpt2", "gpt_neox"])
def test_padding_mask(name: str, side: str, attention: str, ids, wrapped) -> None:
    check(name, wrapped, padded(ids, side), attn_implementation=attention)


@pytest.mark.parametrize("name", ["llama_gqa", "qwen3", "mistral_window", "own"])
def test_packed_positions(name: str, ids, wrapped) -> None:
    """Two documents in one sequence. Without a cache Transformers masks them from one another."""
    positions = torch.cat([torch.arange(20), torch.arange(17)])[None].expand(2, -1)
    batch = {"input_ids": ids, "labels": ids, "position_ids": positions}
    check(name, wrapped, batch | ({} if name == "own" else {"use_cache": False}))


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 16])
def test_lengths_around_the_tile(tokens: int, ids, wrapped) -> None:
    batch = {"input_ids": ids[:, :tokens], "shift_labels": ids[:, :tokens]}
    plain = run_step(MODELS["own"](), **batch)
    exact = float64_step(MODELS["own"](), **batch)
    model = wrapped(MODELS["own"]())
    keep = run_step(force(model, "keep", TILE_TOKENS), **batch)
    assert_as_exact_as_plain(keep, plain, exact)
    for policy in POLICIES:
        assert_same_bits(run_step(force(model, policy, TILE_TOKENS), **batch), keep)


@pytest.mark.parametrize("tile_tokens", [1, 3, 36, 37, 1000])
def test_tile_sizes(tile_tokens: int, ids, wrapped) -> None:
    batch = {"input_ids": ids, "labels": ids}
    plain = run_step(MODELS["llama_gqa"](), **batch)
    exact = float64_step(MODELS["llama_gqa"](), **batch)
    model = wrapped(MODELS["llama_gqa"]())
    keep = run_step(force(model, "keep", tile_tokens), **batch)
    assert_as_exact_as_plain(keep, plain, exact)
    for policy in POLICIES:
        assert_same_bits(run_step(force(model, policy, tile_tokens), **batch), keep)


def test_nothing_of_the_frames_is_held_when_it_need_not_be(ids, wrapped) -> None:
    """Suspended frames give q, k and v up in every supported model."""
    for name, make in MODELS.items():
        verdicts = wrapped_of(wrapped(make())).verdicts
        assert {v.at_cut for v in verdicts} == {AtCut.RELEASE}, name
