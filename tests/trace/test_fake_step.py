"""Steps without arithmetic against the same steps computed: the same bytes, and no memory."""

from __future__ import annotations

import gc
import resource
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import memo_train
from memo_planner.trace import NOWHERE, PHASES, ProfileFile, Requests
from memo_train.device import get_cpu_device
from memo_train.errors import InvalidInput, UnsupportedModel
from memo_train.model import Llama, LlamaConfig
from memo_train.trace import measure_profile
from memo_train.trace._fake_device import Speeds
from memo_train.trace._fake_mode import FakeArithmetic
from memo_train.trace._fake_step import FakeModel, FakeStep
from memo_train.trace._flops import count_block_flops
from memo_train.trace._record import record_step
from tests.runtime.causal_lms import MODELS, NUM_BLOCKS, VOCAB_SIZE
from tests.runtime.policies import chooser, force, wrapped_of

TILE_TOKENS, TOKENS, BATCH = 16, 64, 2
SPEEDS = Speeds(
    flops_per_s=1e9,
    matmul_efficiency=1.0,
    attention_efficiency=0.5,
    memory_bytes_per_s=1e9,
    d2h_bytes_per_s=1e15,
    h2d_bytes_per_s=1e15,
)
GIB = 2**30
FREE_BYTES = 0
"""Nothing is under way for long: real copies would be done sooner or later than fake ones."""


def fake_step(family: str, policy: str | None, speeds: Speeds = SPEEDS) -> FakeStep:
    chosen = None
    if policy is not None:
        chosen = chooser(policy, TILE_TOKENS, NUM_BLOCKS, FREE_BYTES)(BATCH, TOKENS)
    return FakeModel(MODELS[family], speeds).step(batch=BATCH, tokens=TOKENS, policy=chosen)


def real_step(family: str, policy: str | None) -> Requests:
    torch.set_num_threads(1)
    model, wrapped = MODELS[family](), None
    if policy is not None:
        forced = force(memo_train.wrap(model, alpha=0.5), policy, TILE_TOKENS, FREE_BYTES)
        wrapped = wrapped_of(forced)
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(1, VOCAB_SIZE, (BATCH, TOKENS))
    for _ in range(2):
        trace = record_step(model, ids, optimizer=optimizer, wrapped=wrapped)
    if wrapped is not None:
        memo_train.unwrap(model)
    return trace.requests


def above_start(requests: Requests) -> int:
    live = requests.live_bytes()
    return int(live.max() - live[0])


@pytest.mark.parametrize("policy", [None, "keep", "recompute", "mixed"])
@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
def test_the_peak_is_the_real_one_to_the_byte(family: str, policy: str | None) -> None:
    fake = fake_step(family, policy).trace.requests
    assert above_start(fake) == above_start(real_step(family, policy))


def test_garbage_of_before_is_no_part_of_the_step() -> None:
    """A cycle that holds a tensor, and a collection in mid-step."""

    fake = FakeModel(MODELS["own"], SPEEDS)

    def requests_after(garbage_bytes: int) -> Requests:
        cycle: list[Any] = [torch.empty(garbage_bytes, dtype=torch.uint8)]
        cycle.append(cycle)
        del cycle
        return fake.step(batch=BATCH, tokens=TOKENS).trace.requests

    def collect(module: nn.Module, *_: object) -> None:
        if isinstance(module, nn.Embedding):
            gc.collect()

    requests_after(64)
    gc.disable()
    hook = nn.modules.module.register_module_forward_hook(collect)
    try:
        small, large = requests_after(64), requests_after(1 << 20)
    finally:
        hook.remove()
        gc.enable()
    assert above_start(large) == above_start(small)
    assert len(large) == len(small)


def test_stages_blocks_and_tiles_are_the_real_ones() -> None:
    """Where anything is asked for; operations have names besides."""

    def places(requests: Requests) -> set[tuple[str, int, int, int]]:
        large = requests.size_bytes >= 512
        stages = [requests.op_names[op].split(":")[0] for op in requests.ops]
        rows = zip(
            stages,
            requests.phases.tolist(),
            requests.blocks.tolist(),
            requests.tiles.tolist(),
            large.tolist(),
            strict=True,
        )
        return {row[:4] for row in rows if row[4] and row[2] != NOWHERE}

    fake = fake_step("llama_gqa", "recompute").trace.requests
    assert places(fake) == places(real_step("llama_gqa", "recompute"))
    assert {"pre:mm", "attention:_scaled_dot_product_flash_attention_for_cpu"} <= set(fake.op_names)


@pytest.mark.parametrize(("family", "work_spaces"), [("llama_gqa", 0), ("gpt2", 1)])
def test_forward_asks_for_the_same_tensors(family: str, work_spaces: int) -> None:
    """Every request of pre and post, by its size; backward sums in place where nobody watches.

    Besides, a kernel of GPT-2 takes a work space for every tile.
    """

    def sizes(requests: Requests) -> Counter[tuple[str, int]]:
        stages = [requests.op_names[op].split(":")[0] for op in requests.ops]
        rows = zip(stages, requests.size_bytes.tolist(), strict=True)
        return Counter(row for row in rows if row[0] in ("pre", "post") and row[1] >= 512)

    fake = sizes(fake_step(family, "mixed").trace.requests)
    real = sizes(real_step(family, "mixed"))
    assert not fake - real
    assert list((real - fake).values()) == [NUM_BLOCKS * TOKENS // TILE_TOKENS] * work_spaces


def test_the_profile_has_the_measured_bytes() -> None:
    """All but a constant: the work space inside attention's kernels, which no one sees."""
    model = memo_train.wrap(MODELS["llama_gqa"](), alpha=0.5)
    real = measure_profile(wrapped_of(model), 1, 2048)
    memo_train.unwrap(model)
    fake = FakeModel(MODELS["llama_gqa"], SPEEDS).profile(batch=1, tokens=2048)
    seen = {"times": real.times, "link": real.link, "peaks": real.peaks, "kinds": real.kinds}
    assert replace(fake, **seen) == real
    for ours, theirs in zip(fake.kinds, real.kinds, strict=True):
        assert replace(ours, peaks=theirs.peaks) == theirs
    workspace = []
    for ours, theirs in zip(fake.peaks, real.peaks, strict=True):
        assert replace(ours, base_bytes=theirs.base_bytes) == theirs
        workspace.append(theirs.base_bytes - ours.base_bytes)
    assert sum(extra != 0 for extra in workspace) <= 3
    assert all(extra >= 0 for extra in workspace)
    assert fake.times.attention_s_per_token2 > 0
    assert fake.link.d2h_bytes_per_s == pytest.approx(SPEEDS.d2h_bytes_per_s)


def test_seconds_follow_the_speeds() -> None:
    """Matrix products twice as fast at twice the FLOP/s; what only moves bytes as before."""
    one = FakeModel(MODELS["own"], SPEEDS).profile(batch=1, tokens=256).times
    faster = replace(SPEEDS, flops_per_s=2 * SPEEDS.flops_per_s, memory_bytes_per_s=2e9)
    two = FakeModel(MODELS["own"], faster).profile(batch=1, tokens=256).times
    for name in ("pre_s_per_token", "post_s_per_token", "attention_backward_s_per_token2"):
        assert getattr(one, name) == pytest.approx(2 * getattr(two, name), rel=1e-6)


@pytest.mark.parametrize("policy", ["fake", "real"])
def test_flops_of_a_block_by_stage(policy: str) -> None:
    """q and o are [32, 32], k and v [32, 16], the three of the MLP [32, 48]; causal attention."""
    if policy == "fake":
        flops = FakeModel(MODELS["own"], SPEEDS).block_flops(batch=1)
    else:
        model = memo_train.wrap(MODELS["own"](), alpha=0.5)
        flops = count_block_flops(wrapped_of(model), 1)
        memo_train.unwrap(model)
    assert flops.pre_flops_per_token == 2 * 32 * (32 + 16 + 16)
    assert flops.post_flops_per_token == 2 * 32 * (32 + 3 * 48)
    assert flops.pre_backward_flops_per_token == 2 * flops.pre_flops_per_token
    assert flops.post_backward_flops_per_token == 2 * flops.post_flops_per_token
    assert flops.attention_flops_per_token2 == 2 * 32
    assert flops.attention_backward_flops_per_token2 == 5 * 32


def test_a_profile_file_of_a_model_that_never_fits(tmp_path: Path) -> None:
    found = FakeModel(MODELS["llama_gqa"], SPEEDS).profile_file(batch=1, tokens=256)
    found.save(tmp_path / "profile.json")
    assert ProfileFile.load(tmp_path / "profile.json") == found
    assert found.source.kind == "fake"
    assert "flops_per_s=1000000000.0" in found.source.assumptions


def test_seven_billion_parameters_and_a_million_tokens() -> None:
    """Terabytes are asked for, and none is touched."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=1 << 20,
    )
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def make() -> nn.Module:
        model: nn.Module = transformers.LlamaForCausalLM(config).bfloat16()
        return model

    step = FakeModel(make, SPEEDS).step(batch=1, tokens=1 << 20)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert step.device_peak_bytes > 5_000 * GIB
    assert grown_kib < 1_000_000
    assert set(step.trace.requests.blocks.tolist()) == {NOWHERE, *range(32)}


def test_flops_are_six_a_parameter_and_token_and_attention_s() -> None:
    """Causal attention: 2 products of half tokens squared in forward, 5 in backward."""
    sizes = {"hidden_size": 32, "ffn_size": 48, "num_heads": 4, "num_kv_heads": 4}
    config = LlamaConfig(vocab_size=VOCAB_SIZE, num_blocks=NUM_BLOCKS, **sizes)
    model = Llama(config)
    linear = sum(p.numel() for p in model.parameters() if p.dim() == 2) - VOCAB_SIZE * 32
    step = FakeModel(lambda: Llama(config), SPEEDS).step(batch=BATCH, tokens=TOKENS)
    attention = NUM_BLOCKS * BATCH * 32 * TOKENS**2 * (2 + 5)
    assert step.flops == 6 * linear * BATCH * TOKENS + attention


def test_recomputation_costs_flops_and_swaps_cost_waits() -> None:
    fast = {name: fake_step("own", name) for name in ("keep", "swap", "recompute")}
    assert fast["keep"].flops == fast["swap"].flops < fast["recompute"].flops
    assert fast["keep"].host_peak_bytes == 0
    assert fast["swap"].stall_s < 1e-6 * fast["swap"].step_s
    slow = fake_step("own", "swap", replace(SPEEDS, h2d_bytes_per_s=1e6))
    assert slow.step_s >= slow.host_peak_bytes / 1e6 * 0.5
    assert slow.step_s == pytest.approx(fast["swap"].step_s + slow.stall_s, rel=1e-3)
    assert slow.trace.inputs_hash == fast["swap"].trace.inputs_hash


def test_state_is_in_the_peak() -> None:
    """Parameters and both moments stay; without an optimiser the gradients do."""
    model = MODELS["own"]()
    parameter_bytes = sum(p.nbytes for p in model.parameters())
    fake = FakeModel(MODELS["own"], SPEEDS)
    step = fake.step(batch=BATCH, tokens=TOKENS)
    state = step.device_peak_bytes - above_start(step.trace.requests)
    assert state == pytest.approx(3 * parameter_bytes, rel=0.05)
    bare = fake.step(batch=BATCH, tokens=TOKENS, optimizer=False)
    kept = bare.trace.requests.size_bytes[bare.trace.requests.outlive].sum()
    assert kept == pytest.approx(parameter_bytes, rel=0.05)
    assert (bare.trace.requests.phases < PHASES.index("optimizer")).all()


def test_a_policy_for_something_else_is_refused() -> None:
    fake = FakeModel(MODELS["own"], SPEEDS)
    for blocks, tokens in ((NUM_BLOCKS + 1, TOKENS), (NUM_BLOCKS, TOKENS + 1)):
        policy = chooser("keep", TILE_TOKENS, blocks)(1, tokens)
        with pytest.raises(InvalidInput, match=f"the policy is for {blocks} blocks and {tokens}"):
            fake.step(batch=1, tokens=TOKENS, policy=policy)


def test_blocks_that_cannot_be_tiled_are_checkpointed() -> None:
    """A state-space block has no attention call: as the probe finds out with values."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MambaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=NUM_BLOCKS, state_size=4
    )
    fake = FakeModel(lambda: transformers.MambaForCausalLM(config), SPEEDS)
    policy = chooser("recompute", TILE_TOKENS, NUM_BLOCKS)(1, TOKENS)
    tiled = fake.step(batch=1, tokens=TOKENS, policy=policy)
    plain = fake.step(batch=1, tokens=TOKENS)
    assert tiled.flops > plain.flops
    assert tiled.device_peak_bytes < plain.device_peak_bytes


def test_a_cap_is_in_the_way() -> None:
    device = get_cpu_device()
    device.set_device_cap(8 * GIB)
    try:
        with pytest.raises(InvalidInput, match="cap of 8,589,934,592 bytes"):
            FakeModel(MODELS["own"], SPEEDS)
    finally:
        device.set_device_cap(None)


def test_numbers_that_control_a_model_are_computed_and_others_are_not() -> None:
    with FakeArithmetic():
        positions = torch.arange(10)[None]
        assert bool((positions.diff() == 1).all())
        step = torch.tensor(3.0)
        step += 1
        assert step.item() == 4.0
        huge = torch.ones(1 << 40)
        assert (huge @ huge).shape == ()
        with pytest.raises(UnsupportedModel, match="depends on values"):
            torch.ones(9).nonzero()
    assert torch.ones(3).sum() == 3
