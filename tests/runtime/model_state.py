"""Steps of a wrapped model under DDP and FSDP2, each against one process without either.

torchrun --nproc-per-node 2 tests/runtime/model_state.py OUT.json [case ...]

Each rank has one sequence of a batch; one process has them all. Rank 0 writes for each case what
came out: "right", or the error's class and words; and what was counted on the way.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.nn.parallel import DistributedDataParallel

import memo_train
from memo_train.profiling import AHEAD_VARIABLE
from memo_train.testing import (
    Step,
    assert_as_exact_as_plain,
    assert_same_losses,
    float64_step,
    run_step,
)
from tests.runtime.causal_lms import MODELS
from tests.runtime.policies import force

TILE_TOKENS = 8
IDS = torch.randint(1, 61, (2, 37), generator=torch.Generator().manual_seed(3))
LOW = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def make(dtype: torch.dtype = torch.float32) -> Any:
    return MODELS["llama_gqa"]().to(dtype)


def wrap(model: Any, *, planned: bool = False) -> Any:
    """By a policy set by hand, for which nobody asks for a profile: each takes seconds.

    planned: measured as users do, at wrap: while FSDP2 brings parameters in and out nothing can be.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(AHEAD_VARIABLE, "1" if planned else "0")
        memo_train.wrap(model, alpha=0.5, tile_tokens=TILE_TOKENS)
    return model if planned else force(model, "mixed", TILE_TOKENS)


def whole_blocks(model: Any, **policy: Any) -> Any:
    for block in model.model.layers:
        fully_shard(block, **policy)
    return fully_shard(model, **policy)


def head_alone(model: Any, **policy: Any) -> Any:
    fully_shard(model.lm_head, **policy)
    return whole_blocks(model, **policy)


def head_with_norm(model: Any, **policy: Any) -> Any:
    fully_shard([model.model.norm, model.lm_head], **policy)
    return whole_blocks(model, **policy)


def embedding_alone(model: Any, **policy: Any) -> Any:
    fully_shard(model.model.embed_tokens, **policy)
    return head_with_norm(model, **policy)


def parts_and_blocks(model: Any, **policy: Any) -> Any:
    for block in model.model.layers:
        fully_shard(block.self_attn, **policy)
        fully_shard(block.mlp, **policy)
    return whole_blocks(model, **policy)


def mlps_and_blocks(model: Any, **policy: Any) -> Any:
    for block in model.model.layers:
        fully_shard(block.mlp, **policy)
    return whole_blocks(model, **policy)


def parts_without_blocks(model: Any, **policy: Any) -> Any:
    for block in model.model.layers:
        fully_shard(block.self_attn, **policy)
        fully_shard(block.mlp, **policy)
    return fully_shard(model, **policy)


def only_blocks(model: Any, **policy: Any) -> Any:
    for block in model.model.layers:
        fully_shard(block, **policy)
    return model


SHARDINGS: dict[str, Callable[..., Any]] = {
    "blocks": whole_blocks,
    "head": head_alone,
    "head and norm": head_with_norm,
    "embedding": embedding_alone,
    "parts and blocks": parts_and_blocks,
    "MLPs and blocks": mlps_and_blocks,
    "parts without blocks": parts_without_blocks,
}


PLANNED = ("blocks", "embedding")
"""What is profiled and planned too: the least that is sharded apart, and the most."""


def mine(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    return {name: tensor.chunk(num_ranks)[rank] for name, tensor in batch.items()}


def step_of(model: Any, batch: dict[str, torch.Tensor], names: Any = None) -> Step:
    """The step of all ranks: the mean of their losses, whole gradients."""
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    loss = model(**mine(batch)).loss
    loss.backward()
    return collected(model, loss)


def collected(model: Any, loss: torch.Tensor) -> Step:
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    gradients = {
        name.removeprefix("module."): (g.full_tensor() if hasattr(g, "full_tensor") else g).clone()
        for name, p in model.named_parameters()
        if (g := p.grad) is not None
    }
    return Step(loss=mean / dist.get_world_size(), gradients=gradients)


def batch_of(ids: torch.Tensor = IDS) -> dict[str, torch.Tensor]:
    return {"input_ids": ids, "labels": ids}


_references: dict[bytes, tuple[Step, Step]] = {}


def reference(batch: dict[str, torch.Tensor]) -> tuple[Step, Step]:
    """Of one process: plain autograd's step, and float64's."""
    key = b"".join(tensor.numpy().tobytes() for tensor in batch.values())
    if key not in _references:
        _references[key] = run_step(make(), **batch), float64_step(make(), **batch)
    return _references[key]


def check(model: Any, batch: dict[str, torch.Tensor], steps: int = 2) -> None:
    plain, exact = reference(batch)
    for _ in range(steps):  # the second finds what the first has left behind
        assert_as_exact_as_plain(step_of(model, batch), plain, exact)


# The cases


def ddp(*, after: bool = False, **options: Any) -> None:
    model = make() if after else wrap(make(), planned=not options)
    model = DistributedDataParallel(model, **options)
    if after:
        wrap(model.module)
    check(model, batch_of())


def accumulated(model: Any, no_sync: Callable[[bool], Any]) -> None:
    """Two micro-batches, the first of which is not reduced."""
    ids = torch.cat([IDS, IDS.flip(1)])
    batch = batch_of(ids)
    plain, exact = reference(batch)
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        losses = []
        for first in (True, False):
            half = {n: t[:2] if first else t[2:] for n, t in batch.items()}
            with no_sync(first):
                loss = model(**mine(half)).loss / 2
                loss.backward()
            losses.append(loss.detach())
        assert_as_exact_as_plain(collected(model, sum(losses)), plain, exact)


def ddp_no_sync() -> None:
    model = DistributedDataParallel(wrap(make()))
    accumulated(model, lambda first: model.no_sync() if first else nullcontext())


def fsdp_no_sync(after: bool) -> None:
    model = sharded("parts and blocks", after=after)

    def no_sync(first: bool) -> Any:
        model.set_requires_gradient_sync(not first)
        return nullcontext()

    accumulated(model, no_sync)


def sharded(
    how: str, *, after: bool, model: Any = None, planned: bool = False, **policy: Any
) -> Any:
    model = make() if model is None else model
    shard = SHARDINGS[how]
    if after:
        return wrap(shard(model, **policy), planned=planned)
    return shard(wrap(model, planned=planned), **policy)


def fsdp(how: str, after: bool, **policy: Any) -> None:
    model = sharded(how, after=after, planned=how in PLANNED, **policy)
    check(model, batch_of())


def low_precision(how: str, after: bool) -> None:
    """Against FSDP2 without wrap, whose arithmetic this is."""
    batch = batch_of()
    plain = step_of(SHARDINGS[how](make(), mp_policy=LOW), batch)
    _, exact = reference(batch)
    for _ in range(2):
        step = step_of(sharded(how, after=after, mp_policy=LOW), batch)
        assert all(g.dtype == torch.float32 for g in step.gradients.values())
        assert_as_exact_as_plain(step, plain, exact, dtype=torch.bfloat16)


def shapes(after: bool) -> None:
    """Lengths, batches and masks that nobody asked for ahead."""
    model = sharded("blocks", after=after, planned=True)
    generator = torch.Generator().manual_seed(9)
    for rows, tokens in ((2, 21), (4, 50), (2, 5), (2, 64)):
        ids = torch.randint(1, 61, (rows, tokens), generator=generator)
        check(model, batch_of(ids), steps=1)
    mask = torch.ones_like(IDS)
    mask[:, -3:] = 0
    labels = IDS.masked_fill(mask == 0, -100)
    check(model, {"input_ids": IDS, "labels": labels, "attention_mask": mask}, steps=2)


def frozen(after: bool) -> None:
    def make_frozen() -> Any:
        model = make()
        model.model.embed_tokens.requires_grad_(False)
        model.model.layers[0].requires_grad_(False)
        for block in model.model.layers:
            block.mlp.up_proj.requires_grad_(False)
        return model

    batch = batch_of()
    plain, exact = run_step(make_frozen(), **batch), float64_step(make_frozen(), **batch)
    model = sharded("parts and blocks", after=after, model=make_frozen())
    for _ in range(2):
        assert_as_exact_as_plain(step_of(model, batch), plain, exact)


def blocks_without_the_model() -> None:
    wrap(only_blocks(make()))


def parts_of_another_precision(after: bool) -> None:
    """A part inside a block would cast what the block around it does not."""
    model = make() if after else wrap(make())
    for block in model.model.layers:
        fully_shard(block.mlp, mp_policy=LOW)
    fully_shard(model)
    step_of(wrap(model) if after else model, batch_of())


# What is counted: level 2


@contextmanager
def counting_gathers() -> Iterator[Counter[str]]:
    """Gathers of FSDP2 by a parameter's name in each group, while active."""
    counts: Counter[str] = Counter()
    own = _fsdp_param_group.foreach_all_gather

    def counted(fsdp_params: Any, *args: Any, **kwargs: Any) -> Any:
        counts[fsdp_params[0]._param_fqn] += 1
        return own(fsdp_params, *args, **kwargs)

    _fsdp_param_group.foreach_all_gather = counted
    try:
        yield counts
    finally:
        _fsdp_param_group.foreach_all_gather = own


def gathers(how: str, after: bool) -> None:
    """As many as without wrap: one in forward and one in backward, for five tiles as for one."""
    batch = batch_of()
    plain = SHARDINGS[how](make())
    model = sharded(how, after=after)
    for step in range(2):
        with counting_gathers() as expected:
            step_of(plain, batch)
        for policy in ("keep", "swap", "recompute"):
            with counting_gathers() as found:
                step_of(force(model, policy, TILE_TOKENS), batch)
            assert found == expected, f"step {step}, {policy}: {found}, plain {expected}"
    in_blocks = {name: n for name, n in found.items() if ".layers." in name}
    assert set(in_blocks.values()) == {2}, in_blocks
    if dist.get_rank() == 0:
        print(f"{how}, {'after' if after else 'before'}: {dict(found)}", flush=True)


def hooks_of_parameters(model: Any, parameters: Any = None) -> None:
    """Each fires once a step, with the whole step's gradient."""
    named = dict((parameters or model).named_parameters())
    fired: Counter[str] = Counter()
    for name, parameter in named.items():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: fired.update({name: int(p.grad is not None)})
        )
    for policy in ("keep", "swap", "recompute"):
        force(getattr(model, "module", model), policy, TILE_TOKENS)
        fired.clear()
        step_of(model, batch_of())
        assert fired == dict.fromkeys(named, 1), f"{policy}: {fired}"


def used_bytes() -> int:
    """Once gloo's thread has let go of the tensors of collectives that are over."""
    gc.collect()  # outputs and what makes their logits hold one another
    readings = []
    while len(readings) < 20 or readings[-1] < readings[-20]:
        time.sleep(0.01)
        readings.append(memo_train.stats().device_used_bytes)
    return readings[-1]


def bytes_between(how: str, **policy: Any) -> None:
    """Gathered weights of blocks are gone between forward and backward, whatever tiles saved."""
    away = sharded(how, after=True, **policy)
    here = sharded(how, after=True, reshard_after_forward=False, **policy)
    low = 2 if policy else 4
    weights_bytes = sum(low * p.numel() for p in make().model.layers.parameters())
    off = {}
    for places in ("keep", "swap", "recompute"):
        held = []
        for model in (away, here):
            # Without bytes for copies: what is under way when one looks hangs on the clock.
            memo_train.use_layouts(force(model, places, TILE_TOKENS, free_bytes=0), False)
            step_of(model, batch_of())
            model.reshard()
            before = used_bytes()
            loss = model(**mine(batch_of())).loss
            held.append(used_bytes() - before)
            loss.backward()
            del loss
        off[places] = (held[1] - held[0]) / weights_bytes - 1
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, off)
    # Each request is rounded up.
    assert all(abs(part) < 0.03 for found in every for part in found.values()), every


def twenty_steps(prepare: Callable[[Any], Any]) -> None:
    """Level 6: every step's loss, of AdamW on changing batches."""
    generator = torch.Generator().manual_seed(5)
    batches = [batch_of(torch.randint(1, 61, (2, 37), generator=generator)) for _ in range(4)] * 5

    def losses(model: Any, loss_of: Callable[[Any], torch.Tensor]) -> list[float]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        found = []
        for batch in batches:
            optimizer.zero_grad()
            found.append(float(loss_of(model(**batch_for(model, batch)).loss)))
            optimizer.step()
        return found

    plain = make()

    def batch_for(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return batch if model is plain else mine(batch)

    def alone(loss: torch.Tensor) -> torch.Tensor:
        loss.backward()
        return loss.detach()

    def together(loss: torch.Tensor) -> torch.Tensor:
        mean = alone(loss).clone()
        dist.all_reduce(mean)
        return mean / dist.get_world_size()

    expected, model = losses(plain, alone), prepare(make())
    with counting_gathers() as counts:
        found = losses(model, together)
    assert_same_losses(found, expected)
    if dist.get_rank() == 0:
        print(f"20 steps, losses {found[0]:.4f} to {found[-1]:.4f}", flush=True)
        print(f"gathers of each group: {dict(counts)}", flush=True)


CASES: dict[str, Callable[[], None]] = {
    "ddp": ddp,
    "ddp, static graph": partial(ddp, static_graph=True),
    "ddp, unused found": partial(ddp, find_unused_parameters=True),
    "ddp, no_sync": ddp_no_sync,
    "ddp, wrapped after": partial(ddp, after=True),
    "ddp, hooks": lambda: hooks_of_parameters(DistributedDataParallel(wrap(make()))),
    "ddp, 20 steps": lambda: twenty_steps(lambda m: DistributedDataParallel(wrap(m))),
    "fsdp bytes": partial(bytes_between, "blocks"),
    "fsdp bytes of parts": partial(bytes_between, "parts and blocks"),
    "fsdp bytes in bf16": partial(bytes_between, "blocks", mp_policy=LOW),
    "blocks without the model": blocks_without_the_model,
    "parts of another precision": partial(parts_of_another_precision, False),
    "parts of another precision, wrapped after": partial(parts_of_another_precision, True),
}
REFUSED = {
    "blocks without the model": "call fully_shard(model), too, before memo_train.wrap",
    "parts of another precision": "call fully_shard on the whole block and on the model",
    "parts of another precision, wrapped after": "call fully_shard on the whole block and on the",
}
"""Cases that end in an error, on every rank, and what it says."""

for _after, _when in ((False, "wrapped before"), (True, "wrapped after")):
    CASES |= {f"fsdp {how}, {_when}": partial(fsdp, how, _after) for how in SHARDINGS}
    CASES |= {
        f"fsdp kept whole, {_when}": partial(fsdp, "blocks", _after, reshard_after_forward=False),
        f"fsdp bf16, {_when}": partial(low_precision, "parts and blocks", _after),
        f"fsdp no sync, {_when}": partial(fsdp_no_sync, _after),
        f"fsdp shapes, {_when}": partial(shapes, _after),
        f"fsdp frozen, {_when}": partial(frozen, _after),
        f"fsdp gathers, {_when}": partial(gathers, "blocks", _after),
        f"fsdp gathers of parts, {_when}": partial(gathers, "parts and blocks", _after),
        f"fsdp gathers of head, {_when}": partial(gathers, "embedding", _after),
        f"fsdp hooks, {_when}": lambda a=_after: hooks_of_parameters(
            sharded("parts and blocks", after=a)
        ),
        f"fsdp 20 steps, {_when}": lambda a=_after: twenty_steps(
            lambda m: sharded("parts and blocks", after=a, model=m)
        ),
    }


def outcome(run: Callable[[], None]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="(?s).*(not tiled|returned a view)")
            # Gathered parameters are asked for between a step's requests; nothing hangs on it.
            warnings.filterwarnings("ignore", message="(?s).*did not go as its layout planned")
            run()
    except Exception as error:
        if "VERBOSE" in os.environ:
            traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return "right"


def run_cases(cases: dict[str, Callable[[], None]], out: Path, names: list[str]) -> None:
    """Run them, in a process group, and end this process."""
    torch.set_num_threads(1)
    found: dict[str, str] = {}
    for name in names or cases:
        began = time.monotonic()
        found[name] = outcome(cases[name])
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, found[name])
        if len(set(every)) > 1:
            found[name] = f"ranks differ: {every}"
        if dist.get_rank() == 0:
            out.write_text(json.dumps(found, indent=1))
            print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # without the process group's threads at interpreter exit


if __name__ == "__main__":
    # Collections need not look at the libraries' million objects.
    gc.collect()
    gc.freeze()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    run_cases(CASES, Path(sys.argv[1]), sys.argv[2:])
