"""A recorded step: every byte of it, and where each request came from."""

from __future__ import annotations

import functools
import gc

import pytest
import torch
from torch import nn

import memo_train
from memo_planner.trace import BEFORE, NOWHERE, PHASES, Trace
from memo_train.device import get_cpu_device
from memo_train.trace._record import record_step
from tests.runtime.causal_lms import MODELS, VOCAB_SIZE
from tests.runtime.policies import force, wrapped_of

TILE_TOKENS, TOKENS, NUM_TILES, NUM_BLOCKS = 16, 64, 4, 3


def steady_trace(model: nn.Module, *, is_wrapped: bool) -> tuple[Trace, int]:
    """The third step, with the bytes the arena itself counted above those in use at its start."""
    torch.set_num_threads(1)
    device = get_cpu_device()
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(1, VOCAB_SIZE, (2, TOKENS))
    wrapped = wrapped_of(model) if is_wrapped else None
    for _ in range(3):
        gc.collect()
        device.reset_peak()
        before = device.counters().device_used_bytes
        trace = record_step(model, ids, optimizer=optimizer, wrapped=wrapped)
    return trace, device.counters().device_peak_bytes - before


@functools.cache
def wrapped_trace(policy: str, family: str = "llama_gqa") -> tuple[Trace, int]:
    model = force(memo_train.wrap(MODELS[family](), alpha=0.5), policy, TILE_TOKENS)
    try:
        return steady_trace(model, is_wrapped=True)
    finally:
        memo_train.unwrap(model)


@pytest.mark.parametrize("policy", ["keep", "recompute", "mixed"])
def test_live_bytes_are_the_arena_s(policy: str) -> None:
    """At the peak and at the end; what lived before the step and is freed in it is counted."""
    trace, peak_bytes = wrapped_trace(policy)
    live = trace.requests.live_bytes()
    assert int(live.max()) - int(live[0]) == peak_bytes
    assert int(live[-1]) == int(live[0]), "a step leaves as many bytes as it found"


def test_every_block_and_tile_has_its_requests() -> None:
    requests = wrapped_trace("recompute")[0].requests
    ops = [requests.op_names[op] for op in requests.ops]
    phases, blocks, tiles = requests.phases, requests.blocks, requests.tiles
    rows = set(zip(ops, phases.tolist(), blocks.tolist(), tiles.tolist(), strict=True))
    forward, backward = PHASES.index("forward"), PHASES.index("backward")
    for block in range(NUM_BLOCKS):
        assert ("attention", forward, block, NOWHERE) in rows
        assert ("attention_backward", backward, block, NOWHERE) in rows
        for tile in range(NUM_TILES):
            assert ("pre", forward, block, tile) in rows
            assert ("post", forward, block, tile) in rows
            assert ("post_backward", backward, block, tile) in rows
            assert ("pre_backward", backward, block, tile) in rows
    found = {PHASES[phase] for phase in requests.phases.tolist()}
    assert found >= {"forward", "loss", "backward", "optimizer"}
    assert {tile for op, _, _, tile in rows if op == "loss"} >= set(range(NUM_TILES))


def test_a_recomputed_step_asks_the_same_every_time() -> None:
    """Where every copy is waited for at once, so that no thread's pace shows."""
    model = force(memo_train.wrap(MODELS["own"](), alpha=0.5), "recompute", TILE_TOKENS, 0)
    first, second = (steady_trace(model, is_wrapped=True)[0] for _ in range(2))
    memo_train.unwrap(model)
    assert first == second


def test_the_source_tells_policies_and_models_apart() -> None:
    traces = [wrapped_trace("recompute")[0], wrapped_trace("keep")[0]]
    traces.append(wrapped_trace("keep", "gpt2")[0])
    assert len({trace.inputs_hash for trace in traces}) == 3
    assert traces[0].source.tile_tokens == TILE_TOKENS
    assert traces[0].source.tokens == TOKENS


def test_a_model_that_is_not_wrapped() -> None:
    """Every block has requests in forward and in backward, in that order; bytes are the arena's."""
    trace, peak_bytes = steady_trace(MODELS["llama_gqa"](), is_wrapped=False)
    requests = trace.requests
    live = requests.live_bytes()
    assert int(live.max()) - int(live[0]) == peak_bytes
    blocks = requests.blocks
    new = requests.phases != BEFORE
    for phase, order in (("forward", [0, 1, 2]), ("backward", [2, 1, 0])):
        inside = new & (requests.phases == PHASES.index(phase)) & (blocks != NOWHERE)
        assert list(dict.fromkeys(blocks[inside].tolist())) == order
    assert trace.source.tile_tokens == 0


def test_the_observer_is_put_back_when_a_step_fails() -> None:
    model = memo_train.wrap(MODELS["own"](), alpha=0.5)
    wrapped = wrapped_of(model)
    observer = wrapped.observer
    with pytest.raises(Exception, match="at least one token"):
        record_step(model, torch.zeros((1, 0), dtype=torch.long), wrapped=wrapped)
    assert wrapped.observer is observer
    assert len(get_cpu_device().stop_recording()) == 0
    memo_train.unwrap(model)
