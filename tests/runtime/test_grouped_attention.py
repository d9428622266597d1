"""Heads of k and v that groups of q share: repeated only where scores would exist otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import memo_train
from memo_train.runtime import _cut as cut
from memo_train.testing import assert_same_bits, run_step
from tests.runtime.policies import force
from tests.runtime.small_llama import VOCAB_SIZE, own_llama

TOKENS, TILE_TOKENS = 40, 16


def make_qkv(dtype: torch.dtype, device: str = "cpu", tokens: int = TOKENS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, tokens, 16) for heads in (6, 2, 2)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [t.to(device, dtype).requires_grad_() for t in made]


def run(qkv: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output and the gradients of q, k and v."""
    o = memo_train.attention(*qkv)
    return [o.detach(), *torch.autograd.grad(o.square().sum(), qkv)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """Heads of q and of k, and whether they are groups, of each call of PyTorch's attention."""
    seen: list[tuple[int, int, bool]] = []
    plain = F.scaled_dot_product_attention

    def noted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append((q.shape[1], k.shape[1], options["enable_gqa"]))
        return plain(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    return seen


def test_the_cpu_takes_groups_as_they_are(asked: list[tuple[int, int, bool]]) -> None:
    run(make_qkv(torch.float32))
    assert asked == [(6, 2, True)]


def test_repeated_heads_give_the_same_attention(
    asked: list[tuple[int, int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numerics level 4."""
    exact = run(make_qkv(torch.float64))
    grouped = run(make_qkv(torch.float32))
    monkeypatch.setattr(cut, "scores_exist_if_grouped", lambda *_, **__: True)
    repeated = run(make_qkv(torch.float32))
    assert asked[-1] == (6, 6, False)
    for true, one, other in zip(exact, grouped, repeated, strict=True):
        assert other.shape == one.shape
        least = torch.finfo(torch.float32).eps * true.abs().max()
        assert (other - true).abs().max() <= 2 * max((one - true).abs().max(), least)


@pytest.mark.parametrize("policy", ["swap", "recompute"])
def test_policies_keep_every_bit_of_repeated_heads(
    asked: list[tuple[int, int, bool]], monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Numerics level 3: the heads are repeated once, for all tokens, outside of the tiles."""
    monkeypatch.setattr(cut, "scores_exist_if_grouped", lambda *_, **__: True)
    ids = torch.randint(1, VOCAB_SIZE, (2, TOKENS), generator=torch.Generator().manual_seed(3))
    model = memo_train.wrap(own_llama(), alpha=0.5)
    keep = run_step(force(model, "keep", TILE_TOKENS), input_ids=ids, labels=ids)
    asked.clear()
    step = run_step(force(model, policy, TILE_TOKENS), input_ids=ids, labels=ids)
    assert_same_bits(step, keep)
    assert set(asked) == {(4, 4, False)}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_never_makes_the_scores(dtype: torch.dtype) -> None:
    tokens = 8192
    qkv = make_qkv(dtype, "cuda", tokens)
    run(qkv)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(qkv)
    scores_bytes = 2 * 6 * tokens**2 * dtype.itemsize
    assert torch.cuda.max_memory_allocated() - before < scores_bytes / 4
