"""What waits on the host while attention runs by groups of heads; the norm behind the blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

import memo_train
from memo_train.device import CpuDevice
from memo_train.runtime._last_norm import LastNorm
from memo_train.runtime._parked import parkable, parked
from memo_train.testing import assert_same_bits, run_step
from tests.runtime.causal_lms import MODELS
from tests.runtime.policies import force, wrapped_of

TILE_TOKENS = 8


def test_parked_memory_is_given_back_and_comes_again(device: CpuDevice) -> None:
    """Numerics level 1, through every view of it; also after an error."""
    whole = torch.randn(64, 256)
    row, expected = whole[3], whole.clone()
    storages = parkable([whole, row, whole.T], frozenset(), device)
    assert len(storages) == 1
    before = device.counters().device_used_bytes
    with parked(storages, device):
        assert device.counters().device_used_bytes == before - whole.nbytes
    with pytest.raises(KeyError), parked(storages, device):
        raise KeyError
    assert device.counters().device_used_bytes == before
    assert torch.equal(whole, expected)
    assert torch.equal(row, expected[3])


def test_poison_shows_who_reads_parked_memory(device: CpuDevice) -> None:
    whole = torch.ones(5, 7)
    with parked(parkable([whole], frozenset(), device), device, poisons=True):
        assert bool(whole.isnan().all())
    assert torch.equal(whole, torch.ones(5, 7))


def test_what_is_read_or_is_no_device_memory_is_not_parked(device: CpuDevice) -> None:
    read = torch.ones(4, 4)
    elsewhere = torch.frombuffer(bytearray(64), dtype=torch.float32)
    given = [read, elsewhere, torch.empty(0), torch.ones(4).to_sparse()]
    assert parkable(given, frozenset({read.untyped_storage().data_ptr()}), device) == ()


seen: dict[str, Tensor] = {}
"""What `with_tables` reads behind the runtime's back."""


def with_tables(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Attention that scales by 1, made of the position tables."""
    by = 1.0 + 0.0 * seen["cos"].flatten()[0]
    o = F.scaled_dot_product_attention(query * by, key, value, is_causal=True, enable_gqa=True)
    return o.transpose(1, 2).contiguous(), None


def note_tables(module: nn.Module) -> None:
    """Let `seen` have the position tables of each of its calls."""
    forward = module.forward

    def noting(*args: Any, **kwargs: Any) -> Any:
        seen["cos"] = kwargs["position_embeddings"][0]
        return forward(*args, **kwargs)

    module.forward = noting


def test_attention_that_reads_what_is_parked_runs_whole(ids: Tensor) -> None:
    AttentionInterface.register("with_tables_for_this_test", with_tables)
    model = MODELS["llama_gqa"]()
    model.config._attn_implementation = "with_tables_for_this_test"
    for block in model.model.layers:
        note_tables(block.self_attn)
    memo_train.wrap(model, alpha=0.5)
    verdict = wrapped_of(model).verdicts[0]
    assert verdict.heads is None
    assert "in groups of heads" in str(verdict.heads_meet)
    seen.clear()


def nodes_of(loss: Tensor) -> set[str]:
    """The names of all nodes of a graph."""
    names: set[str] = set()
    waiting, known = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in known:
            known.add(node)
            names.add(node.name())
            waiting += [following for following, _ in node.next_functions]
    return names


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2"])
def test_the_last_norm_keeps_every_bit(ids: Tensor, name: str) -> None:
    """Numerics level 3: by tiles, of RMSNorm and of LayerNorm with a bias."""
    model = memo_train.wrap(MODELS[name](), alpha=0.5)
    batch = {"input_ids": ids, "labels": ids}
    whole = run_step(force(model, "keep", TILE_TOKENS), **batch)
    assert "_NormFunctionBackward" not in nodes_of(model(**batch).loss)
    force(model, "recompute", TILE_TOKENS, 0, 2)
    assert_same_bits(run_step(model, **batch), whole)
    assert "_NormFunctionBackward" in nodes_of(model(**batch).loss)


class MixingNorm(nn.Module):
    """A norm whose tokens meet, behind a gate of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x + 0.0 * x.mean(1, keepdim=True)


def test_a_norm_whose_tokens_meet_runs_whole(device: CpuDevice) -> None:
    x = torch.randn(1, 8, 32, requires_grad=True).clone()
    for module, can_run in ((MixingNorm(), False), (nn.LayerNorm(32), True)):
        norm = LastNorm(module)
        norm.prove(device, "a state")
        assert norm.can_run(x, device) == can_run


def test_a_long_step_takes_four_widths(device: CpuDevice) -> None:
    """At the peak of two groups q, k, v, o and their gradients are there, of one of them."""
    tokens, hidden = 2048, 64
    long = torch.randint(1, 61, (1, tokens), generator=torch.Generator().manual_seed(3))
    sizes = {"hidden_size": hidden, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = memo_train.wrap(MODELS["llama"](**sizes), alpha=0.5)
    force(model, "recompute", 64, 0, 2)
    run_step(model, input_ids=long, labels=long)
    before = device.counters().device_used_bytes
    device.reset_peak()
    run_step(model, input_ids=long, labels=long)
    taken = device.counters().device_peak_bytes - before
    flash_bytes = 2 * 512 * 512 * 4
    assert taken - flash_bytes <= 4.25 * tokens * hidden * 4
