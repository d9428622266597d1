"""Plans that two ranks carry out, their own and those of a job; writes what each rank found wrong.

torchrun --nproc-per-node 2 tests/runtime/node_plans.py OUT.json [CASE...]
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

import memo_train
from memo_planner import PlanFileError, PlanInfeasible, TilePlace
from memo_planner.hardware import machine
from memo_planner.plan import Plan
from memo_planner.strategies import Job, plan_job, strategy_named
from memo_planner.workload import Parallel, Workload, model_named
from memo_train.device import get_cpu_device
from memo_train.errors import MemoError
from memo_train.testing import assert_as_exact_as_plain, float64_step, run_step
from tests.runtime.causal_lms import MODELS
from tests.runtime.model_state import whole_blocks
from tests.runtime.policies import wrapped_of
from tests.runtime.shared_cases import averaged, labelled

MIB = 2**20
TOKENS = 128
CASES: dict[str, Callable[[DeviceMesh], None]] = {}


def case(function: Callable[[DeviceMesh], None]) -> Callable[[DeviceMesh], None]:
    CASES[function.__name__] = function
    return function


_wrapped: list[nn.Module] = []


def wrap(model: nn.Module, **options: Any) -> nn.Module:
    """Until the case is over: caps are of the whole process."""
    _wrapped.append(memo_train.wrap(model, **options))
    return model


def unwrap_all() -> None:
    while _wrapped:
        memo_train.unwrap(_wrapped.pop())


def wrapped(mesh: DeviceMesh, kv_heads: int = 2, **options: Any) -> nn.Module:
    return wrap(MODELS["llama_gqa"](num_key_value_heads=kv_heads), mesh=mesh, **options)


# What a profile knows of ranks


@case
def exchanges_are_counted(mesh: DeviceMesh) -> None:
    """Bytes of q, k, v, o and their gradients that go to the other rank, replicas each time."""
    for kv_heads, kv_width in ((2, 16), (1, 16), (4, 32)):
        exchange = memo_train.plan(wrapped(mesh, kv_heads, seq_len=TOKENS)).profile.exchange
        assert exchange is not None
        numbers = 2 * 32 + 2 * kv_width  # q and o, k and v
        assert exchange.way == "2 ranks, ulysses"
        assert exchange.forward_bytes_per_token == numbers * 4 / 2
        assert exchange.backward_bytes_per_token == 2 * numbers * 4 / 2
        assert 1e5 < exchange.bytes_per_s < 1e12


@case
def the_ring_is_counted(mesh: DeviceMesh) -> None:
    exchange = memo_train.plan(wrapped(mesh, seq_len=TOKENS, sp="ring")).profile.exchange
    assert exchange is not None
    assert exchange.way == "2 ranks, ring"
    assert exchange.backward_bytes_per_token > exchange.forward_bytes_per_token > 0


@case
def attention_is_over_all_tokens(mesh: DeviceMesh) -> None:
    """Its log-sum-exp is of half the heads over twice the tokens, as much as of one process."""
    shared = memo_train.plan(wrapped(mesh, seq_len=TOKENS)).profile
    alone = memo_train.plan(wrap(MODELS["llama_gqa"](), seq_len=TOKENS)).profile
    assert shared.attention_bytes_per_token == alone.attention_bytes_per_token
    assert shared.qkv_bytes_per_token == alone.qkv_bytes_per_token
    for point in ("forward", "backward"):
        assert shared.peak_bytes(point, 512, 64) > alone.peak_bytes(point, 512, 64)


@case
def lengths_are_of_whole_sequences(mesh: DeviceMesh) -> None:
    """What is asked for, and what a refusal names."""

    def wrap_long(**options: Any) -> nn.Module:
        # As long a table as profiles are, so that one profile serves all lengths asked for.
        return wrap(MODELS["llama_gqa"](max_position_embeddings=2048), mesh=mesh, **options)

    plan = memo_train.plan(wrap_long(seq_len=TOKENS))
    assert plan.policy.tokens == TOKENS // 2
    with pytest.raises(PlanInfeasible) as refused:
        wrap_long(seq_len=2**20, device_gib=4 / 1024)
    longest = refused.value.max_tokens
    assert longest is not None
    assert memo_train.plan(wrap_long(seq_len=longest, device_gib=4 / 1024))
    unwrap_all()
    with pytest.raises(PlanInfeasible):
        wrap_long(seq_len=longest + 2, device_gib=4 / 1024)


# What each rank holds of the model's state


@case
def planned_peaks_are_measured(mesh: DeviceMesh) -> None:
    """With AdamW, in steps that find moments (level 2, to 1 %)."""
    for state in ("ddp-views", "fsdp2"):
        ratio = planned_over_measured(state, mesh)
        unwrap_all()
        assert abs(ratio - 1) < 0.01, f"{state}: {ratio:.4f}"


def planned_over_measured(state: str, mesh: DeviceMesh) -> float:
    gc.collect()
    before = memo_train.stats().device_used_bytes  # what other cases have left
    sizes = {"hidden_size": 128, "intermediate_size": 320, "max_position_embeddings": 2048}
    model = MODELS["llama_gqa"](**sizes)
    wrap(model, mesh=mesh, seq_len=1024, alpha=0.0, tile_tokens=64, state=state)
    part = memo_train.shard_batch(long_batch(1024), mesh)
    trained = (
        whole_blocks(model)
        if state == "fsdp2"
        else DistributedDataParallel(model, gradient_as_bucket_view=True)
    )
    measured = peak_of_steps(trained, model, part) - before
    return memo_train.plan(model).prediction.device_peak_bytes / measured


def long_batch(tokens: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 61, (1, tokens), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}


def peak_of_steps(trained: Any, model: nn.Module, part: dict[str, Any]) -> int:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    most = 0
    for step in range(4):
        gc.collect()
        memo_train.reset_stats()
        trained(**part).loss.backward()
        most = max(most, memo_train.stats().device_peak_bytes if step else 0)
        optimizer.step()
        optimizer.zero_grad()
    return most


# A plan of a job, made without the model


def job_plan(folder: Path, device_mib: int = 64, **changes: Any) -> tuple[Path, Plan]:
    """Of a laptop's `memo-plan make`, little device memory; changes: of the parallel degrees."""
    config = MODELS["llama_gqa"]().config
    path = folder / "small.json"
    path.write_text(json.dumps(config.to_dict()))
    workload = Workload(
        model=model_named(str(path), dtype_bytes=4),
        tokens=TOKENS,
        batch=1,
        parallel=Parallel(**({"gpus": 2, "sequence": 2} | changes)),
        dtype_bytes=4,
    )
    job = Job.of(workload, machine("cpu"))
    limits = replace(job.limits, device_bytes=device_mib * MIB, host_bytes=64 * MIB)
    job = replace(job, limits=limits, attention_again=False)
    plan = plan_job(job, strategy_named("tiles"), alpha=0.5)
    plan.save(folder / "plan.json")
    return folder / "plan.json", plan


@case
def a_job_s_plan_is_carried_out(mesh: DeviceMesh) -> None:
    """As many tiles of each kind as the file says, and one process's loss and gradients (4)."""
    batch = labelled(TOKENS)
    batch = {name: value[:1] for name, value in batch.items()}
    plain = MODELS["llama_gqa"]()
    reference, exact = run_step(plain, **batch), float64_step(plain, **batch)
    model = wrapped(mesh, device_gib=0.5, host_gib=0.5)
    with tempfile.TemporaryDirectory() as folder:
        path, plan = job_plan(Path(folder))
        mine = memo_train.load_plan(model, path)
    assert mine.policy.tokens * 2 == plan.policy.tokens
    assert mine.policy.blocks == plan.policy.blocks
    counts = wrapped_of(model).tile_counts
    counts.clear()
    step = averaged(run_step(model, **memo_train.shard_batch(batch, mesh)))
    assert_as_exact_as_plain(step, reference, exact)
    blocks = plan.policy.blocks
    assert counts == {
        TilePlace.KEEP: sum(b.keep_tiles for b in blocks),
        TilePlace.SWAP: sum(b.swap_tiles for b in blocks),
        TilePlace.RECOMPUTE: sum(b.recompute_tiles for b in blocks),
    }
    assert counts[TilePlace.SWAP] > 0


@case
def another_job_s_plan_is_refused(mesh: DeviceMesh) -> None:
    """By the field that differs, on every rank."""
    model = wrapped(mesh, device_gib=0.5, host_gib=0.5)
    ring = wrapped(mesh, sp="ring", device_gib=0.5, host_gib=0.5)
    other = wrap(MODELS["llama_gqa"](intermediate_size=64), mesh=mesh)
    half = wrap(MODELS["llama_gqa"]().bfloat16(), mesh=mesh)
    with tempfile.TemporaryDirectory() as folder:
        for changes, trained, message in (
            ({"gpus": 4, "sequence": 4}, model, "setting.gpus is 4, this model's is 2"),
            ({"sequence": 1}, model, "setting.sequence is 1, this model's is 2"),
            ({"zero_stage": 3}, model, "setting.zero_stage is 3, this model's is 0"),
            ({}, ring, "setting.context is 1, this model's is 2"),
            ({}, other, r"setting.parameters is \d+, this model's is"),
            ({}, half, "profile.x_bytes_per_token is 128, this model's is 64"),
            ({"device_mib": 1024}, model, "limits.device_bytes is 1.0 GiB, this rank has 51"),
        ):
            path, _ = job_plan(Path(folder), **changes)
            with pytest.raises(PlanFileError, match=message):
                memo_train.load_plan(trained, path)


@case
def plans_that_differ_are_refused(mesh: DeviceMesh) -> None:
    model = wrapped(mesh, device_gib=0.5, host_gib=0.5)
    with tempfile.TemporaryDirectory() as folder:
        path, plan = job_plan(Path(folder))
        if dist.get_rank():
            limits = replace(plan.limits, host_bytes=63 * MIB)
            replaced = Plan.of(
                profile=plan.profile,
                limits=limits,
                policy=plan.policy,
                prediction=plan.prediction,
                setting=plan.setting,
            )
            replaced.save(path)
        with pytest.raises(MemoError, match="the plan must be the same on all 2 ranks"):
            memo_train.load_plan(model, path)


@case
def own_plans_are_of_so_many_ranks(mesh: DeviceMesh) -> None:
    model = wrapped(mesh, seq_len=TOKENS)
    alone = wrap(MODELS["llama_gqa"](), seq_len=TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.json"
        memo_train.save_plan(model, path)
        memo_train.load_plan(model, path)
        with pytest.raises(PlanFileError, match=r"exchange.way is '2 ranks, ulysses'.*None"):
            memo_train.load_plan(alone, path)


def main(out: str, *names: str) -> None:
    torch.set_num_threads(1)
    # Before any model, so that parameters are counted.
    get_cpu_device()
    dist.init_process_group("gloo")
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    found: dict[str, list[Any]] = {}
    for name in names or CASES:
        why = None
        try:
            CASES[name](mesh)
        except (Exception, pytest.fail.Exception) as error:
            why = f"{type(error).__name__}: {error}"
        unwrap_all()
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, why)
        found[name] = every
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(found))
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
