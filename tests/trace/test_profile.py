"""The profile of a block: its bytes counted a second way, and a model left as it was."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import memo_train
from memo_planner.kinds import STAGES
from memo_planner.policy import TilePlace
from memo_train.device import get_cpu_device
from memo_train.model import Llama, LlamaConfig
from memo_train.runtime._loss_pass import LossPass
from memo_train.trace import Effort, PlainSteps, measure_link, measure_profile, model_hash
from memo_train.trace._profile import state_bytes
from memo_train.trace._steps import Way, measure_step, only_block
from tests.runtime.policies import wrapped_of

HIDDEN, FFN, HEADS, KV_HEADS = 64, 96, 4, 2
TOKENS = 256


def make_model(**options) -> nn.Module:
    torch.manual_seed(1)
    sizes = {
        "hidden_size": HIDDEN,
        "ffn_size": FFN,
        "num_heads": HEADS,
        "num_kv_heads": KV_HEADS,
        "vocab_size": 61,
        "num_blocks": 2,
    }
    return Llama(LlamaConfig(**(sizes | options)))


@pytest.fixture
def model() -> Iterator[nn.Module]:
    torch.set_num_threads(1)
    model = memo_train.wrap(make_model(), alpha=0.5, tile_tokens=32)
    yield model
    memo_train.unwrap(model)


def saved_by_autograd(tokens: int) -> dict[int, int]:
    """Storage -> bytes of all that plain autograd saves for one block's backward."""
    model = make_model()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor.detach()  # with its graph, an output would keep itself alive

    x = torch.randn(1, tokens, HIDDEN, requires_grad=True)
    angles = torch.rand(1, tokens, HIDDEN // HEADS)
    cos, sin = angles.cos(), angles.sin()
    own |= {t.untyped_storage().data_ptr() for t in (cos, sin)}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = model.model.blocks[0](x, cos, sin)
    counted = {key: s.nbytes() for key, s in storages.items() if key not in own}
    del y
    return counted


def test_bytes_of_x_o_q_k_v_and_the_log_sum_exp(model) -> None:
    profile = measure_profile(wrapped_of(model), 1, TOKENS)
    kv_size = HIDDEN // HEADS * KV_HEADS
    assert profile.x_bytes_per_token == 4 * HIDDEN
    assert profile.o_bytes_per_token == 4 * HIDDEN
    assert profile.qkv_bytes_per_token == 4 * (HIDDEN + 2 * kv_size)
    assert profile.attention_bytes_per_token == 4 * HEADS


def test_all_saved_bytes_are_what_plain_autograd_saves(model) -> None:
    profile = measure_profile(wrapped_of(model), 1, TOKENS)
    per_token = (
        profile.x_bytes_per_token
        + profile.o_bytes_per_token
        + profile.qkv_bytes_per_token
        + profile.attention_bytes_per_token
        + profile.pre_bytes_per_token
        + profile.post_bytes_per_token
    )
    plain = sum(saved_by_autograd(TOKENS).values()) / TOKENS
    assert per_token == pytest.approx(plain, rel=0.05)


def test_bytes_grow_with_the_batch(model) -> None:
    one, two = (measure_profile(wrapped_of(model), batch, TOKENS) for batch in (1, 2))
    for name in ("x", "o", "qkv", "attention", "pre", "post"):
        field = f"{name}_bytes_per_token"
        # A tile of several sequences is not contiguous: operations may save copies of slices.
        assert 1.999 <= getattr(two, field) / getattr(one, field) <= 2.25, name


def test_bf16_halves_what_is_saved_between_blocks() -> None:
    model = memo_train.wrap(make_model().bfloat16(), alpha=0.5, tile_tokens=32)
    profile = measure_profile(wrapped_of(model), 1, TOKENS)
    assert profile.x_bytes_per_token == 2 * HIDDEN
    assert profile.qkv_bytes_per_token == 2 * (HIDDEN + 2 * HIDDEN // HEADS * KV_HEADS)
    memo_train.unwrap(model)


def test_state_counts_gradients_and_moments_of_what_is_trained() -> None:
    model = make_model()
    num_parameters = sum(p.numel() for p in model.parameters())
    buffers = sum(b.nbytes for b in model.buffers())
    assert state_bytes(model) == 4 * 4 * num_parameters + buffers
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    assert state_bytes(model) == 4 * num_parameters + 12 * 61 * HIDDEN + buffers


def test_the_hash_knows_shapes_dtypes_and_what_is_trained() -> None:
    models = [make_model(), make_model(num_blocks=3), make_model().bfloat16(), make_model()]
    models[3].lm_head.requires_grad_(False)
    assert len({model_hash(model) for model in models}) == 4
    assert model_hash(make_model()) == model_hash(make_model())


def test_profiling_leaves_no_trace(model) -> None:
    """No gradients, hooks, random numbers or tile counts of its own."""
    fired = []
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: fired.append(1))
        parameter.register_post_accumulate_grad_hook(lambda parameter: fired.append(1))
    memo_train.reset_stats()
    torch.manual_seed(5)
    stream = torch.get_rng_state()
    measure_profile(wrapped_of(model), 1, TOKENS)
    assert torch.equal(torch.get_rng_state(), stream)
    assert not fired
    assert all(parameter.grad is None for parameter in model.parameters())
    stats = memo_train.stats()
    assert (stats.keep_tiles, stats.swap_tiles, stats.recompute_tiles) == (0, 0, 0)
    assert stats.host_used_bytes == 0


@pytest.mark.usefixtures("measured_ahead")
def test_a_profiled_step_computes_two_tiles_of_its_loss(
    model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More would need no more bytes; and the steps that follow compute all of them."""

    def watch(tokens: int) -> int:
        """Tiles of the loss of a step, or of a profiled one if it has no tokens."""
        seen: list[int] = []
        tiles_of = LossPass._tiles

        def tiles(loss_pass: LossPass) -> Iterator[int]:
            for index in tiles_of(loss_pass):
                seen.append(index)
                yield index

        with monkeypatch.context() as patched:
            patched.setattr(LossPass, "_tiles", tiles)
            if tokens:
                ids = torch.randint(61, (1, tokens))
                model(ids, ids).loss.backward()
                model.zero_grad()
            else:
                way = Way(place=TilePlace.RECOMPUTE)
                with only_block(wrapped_of(model), 0):
                    measure_step(wrapped_of(model), 1, 8 * 32, 32, way, repeats=1)
        return len(seen)

    assert watch(0) == 2
    loss_tile = wrapped_of(model).parts.loss_tile_tokens(32)
    assert watch(8 * 32) == -(-8 * 32 // loss_tile) > 2


def test_kinds_of_steps_beside_plain_ones_are_as_by_long_runs() -> None:
    """Short runs say what parking takes more; long runs of the kind itself are the same bytes."""
    model = memo_train.wrap(make_model(), alpha=0.5)
    wrapped = wrapped_of(model)
    plain = PlainSteps(profile=measure_profile(wrapped, 1, 2048))
    parked = Way(place=TilePlace.KEEP, park_pre=True)
    by_long = measure_profile(wrapped, 1, 2048, parked)
    beside = measure_profile(wrapped, 1, 2048, parked, effort=Effort(plain=plain))
    memo_train.unwrap(model)
    assert beside.times == plain.profile.times
    for way, stage in itertools.product(TilePlace, STAGES):
        for tokens, tile_tokens in ((1500, 200), (4096, 512), (4096, 4096)):
            shape = (stage, way, tokens, tile_tokens)
            expected = by_long.kinds[0].peak_bytes(*shape)
            assert beside.kinds[0].peak_bytes(*shape) == pytest.approx(expected, rel=0.02), shape


def test_attention_times_grow_with_the_square_of_the_length(model) -> None:
    """Twice the tokens, the same coefficient: within a factor of five on a busy machine."""
    times = [measure_profile(wrapped_of(model), 1, tokens).times for tokens in (512, 1024)]
    short, long = (t.attention_backward_s_per_token2 for t in times)
    assert 1 / 5 < short / long < 5
    assert all(t.pre_s_per_token > 0 and t.post_s_per_token > 0 for t in times)


def test_the_link_is_measured_each_way() -> None:
    device = get_cpu_device()
    device.set_bandwidth(2e8, 5e8)
    try:
        link = measure_link(device)
    finally:
        device.set_bandwidth(None, None)
    assert link.d2h_bytes_per_s == pytest.approx(2e8, rel=0.35)
    assert link.h2d_bytes_per_s == pytest.approx(5e8, rel=0.35)
    assert device.counters().host_used_bytes == 0
