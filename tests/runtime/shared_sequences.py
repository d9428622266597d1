"""Ranks that share sequences, against one process. Writes what each case found, as JSON.

torchrun --nproc-per-node N tests/runtime/shared_sequences.py OUT.json

Every case runs on all ranks and returns None where all is well, on this rank; or raises.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

import memo_train
from memo_train.errors import InvalidInput, MemoError, PlanInfeasible, RanksDiffer, UnsupportedModel
from memo_train.model._llama import LlamaOutput
from memo_train.testing import (
    Step,
    assert_as_exact_as_plain,
    assert_same_bits,
    float64_step,
    run_step,
)
from tests.runtime.causal_lms import MODELS, gpt2_with_dropout
from tests.runtime.mixer_blocks import TwiceAttendingBlock
from tests.runtime.policies import POLICIES, force
from tests.runtime.small_llama import own_llama
from tests.runtime.toy import ToyBlock, ToyLM

Case = Callable[[DeviceMesh], None]
CASES: dict[str, tuple[Case, frozenset[int]]] = {}
ANY = frozenset({1, 2, 4})
SEVERAL = frozenset({2, 4})
TWO = frozenset({2})


def case(ranks: frozenset[int] = ANY) -> Callable[[Case], Case]:
    def add(function: Case) -> Case:
        CASES[function.__name__] = function, ranks
        return function

    return add


# What the cases are made of


def ids_of(tokens: int = 37, batch: int = 2) -> torch.Tensor:
    return torch.randint(1, 61, (batch, tokens), generator=torch.Generator().manual_seed(3))


def labelled(tokens: int = 37) -> dict[str, Any]:
    ids = ids_of(tokens)
    labels = ids.clone()
    labels[0, 5:9] = -100
    return {"input_ids": ids, "labels": labels}


def packed(*lengths: int) -> dict[str, Any]:
    """Documents one behind the other, as Transformers knows them when it makes no cache."""
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1).contiguous()
    return labelled(sum(lengths)) | {"position_ids": positions, "use_cache": False}


def averaged(step: Step) -> Step:
    """The step with the mean of all ranks' gradients, as DDP makes it."""
    for gradient in step.gradients.values():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return step


def check(
    make: Callable[..., nn.Module],
    batch: dict[str, Any],
    mesh: DeviceMesh,
    *,
    dtype: torch.dtype = torch.float32,
    policies: tuple[str, ...] = ("keep", "mixed"),
    sp: str = "auto",
) -> None:
    """Every policy gives the same bits, and the step is as exact as plain autograd's (level 4)."""
    plain_model = make().to(dtype)
    plain, exact = run_step(plain_model, **batch), float64_step(plain_model, **batch)
    model = memo_train.wrap(make().to(dtype), mesh=mesh, sp=sp, alpha=0.5, tile_tokens=8)
    part = memo_train.shard_batch(batch, mesh)
    steps = {p: averaged(run_step(force(model, p, 4), **part)) for p in policies}
    for step in steps.values():
        assert_same_bits(step, steps[policies[0]])
    assert_as_exact_as_plain(steps[policies[0]], plain, exact, dtype=dtype)


def check_refused(
    error: type[MemoError], match: str, run: Callable[[], Any], others: str | None = None
) -> None:
    """The same kind of error on every rank, none waits for another; others: for ranks but 0."""
    wanted = match if others is None or dist.get_rank() == 0 else others
    with pytest.raises(MemoError, match=wanted) as raised:
        run()
    assert isinstance(raised.value, error if wanted == match else RanksDiffer), raised.value
    dist.barrier()


# Numbers


@case()
def heads_of_their_own(mesh: DeviceMesh) -> None:
    check(MODELS["llama"], labelled(), mesh, policies=POLICIES)


@case()
def two_key_value_heads(mesh: DeviceMesh) -> None:
    check(MODELS["llama_gqa"], labelled(40), mesh, policies=POLICIES)


@case(SEVERAL)
def one_key_value_head(mesh: DeviceMesh) -> None:
    make = lambda: MODELS["llama_gqa"](num_key_value_heads=1)  # noqa: E731
    check(make, labelled(), mesh, policies=POLICIES)


@case(TWO)
def half_precision(mesh: DeviceMesh) -> None:
    """In bf16 the gradients of replicated heads are summed wide."""
    make = lambda: MODELS["llama_gqa"](num_key_value_heads=1)  # noqa: E731
    check(make, labelled(), mesh, dtype=torch.bfloat16)


@case()
def an_own_model(mesh: DeviceMesh) -> None:
    check(MODELS["own"], labelled(), mesh, policies=POLICIES)


@case(TWO)
def adapters(mesh: DeviceMesh) -> None:
    """LoRA on q, k, v and o: only the adapters have gradients."""

    def make() -> nn.Module:
        names = ["q_proj", "k_proj", "v_proj", "o_proj"]
        config = LoraConfig(r=4, target_modules=names, init_lora_weights=False)
        model = MODELS["llama_gqa"]()
        return get_peft_model(model, config)

    check(make, labelled(), mesh, policies=POLICIES)


@case(TWO)
def learned_positions(mesh: DeviceMesh) -> None:
    check(MODELS["gpt2"], labelled(), mesh)


@case(TWO)
def attention_by_arithmetic(mesh: DeviceMesh) -> None:
    """Transformers' eager attention counts groups by itself, and always has a mask."""
    make = lambda: MODELS["llama_gqa"](attn_implementation="eager", num_key_value_heads=1)  # noqa: E731
    check(make, labelled(), mesh)


@case(TWO)
def fewer_tokens_than_a_window(mesh: DeviceMesh) -> None:
    """Of one rank: all ranks' tokens are more than the window."""
    check(MODELS["mistral_window"], labelled(13), mesh)


@case(SEVERAL)
def packed_documents(mesh: DeviceMesh) -> None:
    """One lies across all borders, one begins where a rank ends, one is of a single token."""
    check(MODELS["llama_gqa"], packed(3, 16, 1, 18), mesh)


@case(TWO)
def packed_documents_in_windows(mesh: DeviceMesh) -> None:
    check(MODELS["mistral_window"], packed(3, 16, 18), mesh)


@case(TWO)
def padding_of_the_users_own(mesh: DeviceMesh) -> None:
    batch = labelled()
    mask = torch.ones_like(batch["input_ids"])
    mask[0, :7] = 0
    batch["labels"] = batch["labels"].masked_fill(mask == 0, -100)
    check(MODELS["llama_gqa"], batch | {"attention_mask": mask}, mesh)


@case(TWO)
def labels_on_the_last_rank_alone(mesh: DeviceMesh) -> None:
    batch = labelled(40)
    batch["labels"] = batch["labels"].clone()
    batch["labels"][:, :-4] = -100
    check(MODELS["llama_gqa"], batch, mesh)
    check(lambda: AroundLlama(own_llama()), batch, mesh)


class AroundLlama(nn.Module):
    """A causal LM with the parts of the project's own."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.model, self.lm_head, self.config = inner.model, inner.lm_head, inner.config

    @property
    def base_model(self) -> nn.Module:
        return self.model

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def hidden(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids, position_ids)
        return hidden

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        *,
        position_ids: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
    ) -> Any:
        """Its loss is a mean, whatever `num_items_in_batch` there might be."""
        logits = self.lm_head(self.hidden(input_ids, position_ids))
        if shift_labels is None and labels is not None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        if shift_labels is None:
            return LlamaOutput(None, logits)
        return LlamaOutput(F.cross_entropy(logits.flatten(0, 1), shift_labels.flatten()), logits)


class ShiftedLM(AroundLlama):
    """Mixes tokens behind its blocks."""

    def hidden(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> torch.Tensor:
        hidden = super().hidden(input_ids, position_ids)
        return hidden + hidden.roll(1, dims=1)


class CountedLM(AroundLlama):
    """Counts positions by itself, though it takes some."""

    def hidden(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> torch.Tensor:
        return super().hidden(input_ids, None)


@case(TWO)
def a_mean_loss(mesh: DeviceMesh) -> None:
    check(lambda: AroundLlama(own_llama()), labelled(), mesh)


@case(TWO)
def a_count_of_the_callers(mesh: DeviceMesh) -> None:
    """`num_items_in_batch`, of all micro-batches of an accumulated step."""
    check(MODELS["llama_gqa"], labelled() | {"num_items_in_batch": torch.tensor(1000)}, mesh)


@case(TWO)
def evaluation(mesh: DeviceMesh) -> None:
    """Without gradients: the loss of all ranks, and this rank's logits."""
    model, batch = MODELS["llama_gqa"]().eval(), labelled()
    with torch.no_grad():
        plain = model(**batch)
        part = memo_train.shard_batch(batch, mesh)
        found = memo_train.wrap(model, mesh=mesh, alpha=0.5, tile_tokens=8)(**part)
    tokens = part["input_ids"].shape[1]
    mine = range(37)[mesh.get_local_rank() * tokens :][:tokens]
    torch.testing.assert_close(found.loss, plain.loss, rtol=1e-6, atol=0)
    expected = plain.logits[:, mine.start : mine.stop]
    torch.testing.assert_close(found.logits[:, : len(mine)], expected, rtol=1e-4, atol=1e-5)


@case(TWO)
def dropout(mesh: DeviceMesh) -> None:
    """Each rank draws its own numbers, and the same ones whatever the policy."""
    model = memo_train.wrap(gpt2_with_dropout(), mesh=mesh, alpha=0.5, tile_tokens=8)
    part, rank = memo_train.shard_batch(labelled(), mesh), mesh.get_local_rank()
    steps = {p: run_step(force(model, p, 4), seed=rank, **part) for p in POLICIES}
    for step in steps.values():
        assert_same_bits(step, steps["keep"])


@case(SEVERAL)
def a_step_of_adamw_under_ddp(mesh: DeviceMesh) -> None:
    """Weights and losses of two steps are one process's; eps is large, so that scale shows."""

    def trained(model: nn.Module, batch: dict[str, Any]) -> list[torch.Tensor]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1.0)
        losses = []
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return [*losses, *(p.detach() for p in model.parameters())]

    expected = trained(MODELS["llama_gqa"](), labelled())
    wrapped = memo_train.wrap(MODELS["llama_gqa"](), mesh=mesh, alpha=0.5, tile_tokens=8)
    parallel = DistributedDataParallel(force(wrapped, "mixed", 4))
    found = trained(parallel, memo_train.shard_batch(labelled(), mesh))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-7)


@case(frozenset({4}))
def two_groups_of_two(mesh: DeviceMesh) -> None:
    """A mesh of two dimensions: each pair shares a sequence, the mean over all is of both."""
    both = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "sp"))
    ids = ids_of()
    plain_model = MODELS["llama_gqa"]()
    plain = run_step(plain_model, input_ids=ids, labels=ids)
    exact = float64_step(plain_model, input_ids=ids, labels=ids)
    model = memo_train.wrap(MODELS["llama_gqa"](), mesh=both, alpha=0.5, tile_tokens=8)
    own = ids[both.get_local_rank("dp")][None]
    part = memo_train.shard_batch({"input_ids": own, "labels": own}, both)
    step = averaged(run_step(force(model, "mixed", 4), **part))
    dist.all_reduce(step.loss)
    whole = Step(loss=step.loss / 4, gradients=step.gradients)
    assert_as_exact_as_plain(whole, plain, exact)


@case()
def around_a_ring(mesh: DeviceMesh) -> None:
    """An odd number of tokens a rank, and an even one; heads in groups."""
    check(MODELS["llama_gqa"], labelled(37), mesh, policies=POLICIES, sp="ring")
    check(MODELS["own"], labelled(48), mesh, sp="ring")


@case(frozenset({4}))
def more_ranks_than_heads(mesh: DeviceMesh) -> None:
    """ "auto" takes the ring, and ranks may have a single token each."""
    make = lambda: MODELS["llama_gqa"](num_attention_heads=2, num_key_value_heads=1)  # noqa: E731
    check(make, labelled(41), mesh)
    batch = {"input_ids": ids_of(4), "labels": ids_of(4)}
    check(make, batch, mesh)


@case(TWO)
def around_a_ring_in_half_precision(mesh: DeviceMesh) -> None:
    check(MODELS["llama_gqa"], labelled(40), mesh, dtype=torch.bfloat16, sp="ring")


@case(TWO)
def what_a_ring_cannot(mesh: DeviceMesh) -> None:
    """Windows and masks at wrap, packed documents and dropout in the step."""
    for name, options in (
        ("mistral_window", {}),
        ("llama_gqa", {"attn_implementation": "eager"}),
    ):
        make = lambda name=name, options=options: memo_train.wrap(  # noqa: E731
            MODELS[name](**options), mesh=mesh, sp="ring"
        )
        check_refused(UnsupportedModel, r"asks for (sliding_window|attention_mask); use", make)
    model = memo_train.wrap(MODELS["llama_gqa"](), mesh=mesh, sp="ring", alpha=0.5, tile_tokens=8)
    part = memo_train.shard_batch(packed(3, 17, 18), mesh)
    check_refused(UnsupportedModel, "asks for attention_mask|packed", lambda: model(**part))
    model = memo_train.wrap(gpt2_with_dropout(), mesh=mesh, sp="ring", alpha=0.5, tile_tokens=8)
    part = memo_train.shard_batch(labelled(), mesh)
    check_refused(UnsupportedModel, "asks for dropout", lambda: model(**part))


class ContiguousAttention(torch.autograd.Function):
    """Causal attention that needs its o in backward, and lays it out as it likes."""

    @staticmethod
    def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
        return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(3)

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        o = (ContiguousAttention.scores(q, k) @ v).contiguous()
        ctx.save_for_backward(q, k, v, o)
        return o

    @staticmethod
    def backward(ctx: Any, do: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, o = ctx.saved_tensors
        scores = ContiguousAttention.scores(q, k)
        ds = scores * (do @ v.transpose(2, 3) - (do * o).sum(3, keepdim=True))
        ds = ds * q.shape[3] ** -0.5
        return ds @ k, ds.transpose(2, 3) @ q, scores.transpose(2, 3) @ do


@case(TWO)
def an_o_that_lies_otherwise(mesh: DeviceMesh) -> None:
    """Than what comes back from an exchange: attention's backward finds it as it was."""
    make = lambda: MODELS["own"](num_kv_heads=4)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        call = lambda q, k, v, **_: ContiguousAttention.apply(q, k, v)  # noqa: E731
        patch.setattr(F, "scaled_dot_product_attention", call)
        check(make, labelled(), mesh)


# Plans


@case(SEVERAL)
def one_plan_for_all(mesh: DeviceMesh) -> None:
    """Rank 0 makes it, at wrap and for shapes that come later; seq_len is of all ranks."""
    model = memo_train.wrap(MODELS["llama_gqa"](), mesh=mesh, seq_len=50, tile_tokens=8)
    share = -(-50 // mesh.size())
    assert memo_train.plan(model).policy.tokens == share
    plain_model = MODELS["llama_gqa"]()
    plain, exact = run_step(plain_model, **labelled()), float64_step(plain_model, **labelled())
    part = memo_train.shard_batch(labelled(), mesh)
    for _ in range(3):  # recorded, then by planned addresses
        assert_as_exact_as_plain(averaged(run_step(model, **part)), plain, exact)
    every: list[Any] = [None] * mesh.size()
    dist.all_gather_object(every, memo_train.plan(model))
    assert all(plan == every[0] for plan in every)


@case(TWO)
def a_plan_that_one_rank_loads(mesh: DeviceMesh) -> None:
    model = memo_train.wrap(MODELS["llama_gqa"](), mesh=mesh, alpha=0.5, tile_tokens=8)
    part = memo_train.shard_batch(labelled(), mesh)
    run_step(model, **part)
    other = memo_train.wrap(MODELS["llama_gqa"](), alpha=0.0, tile_tokens=4)
    if dist.get_rank() == 1:
        run_step(other, **part)
        planner, theirs = model._memo_train, other._memo_train.last
        planner.adopt(theirs.shape, theirs.plan, park_pre=False)
    message = (
        r"the plan must be the same on all .*tiles of 8 .* on rank.* 0.*tiles of 4 .* on rank 1"
    )
    check_refused(RanksDiffer, message, lambda: run_step(model, **part))


@case(TWO)
def a_plan_that_does_not_fit(mesh: DeviceMesh) -> None:
    def wrap() -> None:
        memo_train.wrap(MODELS["llama_gqa"](), mesh=mesh, seq_len=1 << 20, device_gib=0.01)

    check_refused(PlanInfeasible, "longest sequence", wrap)


# Bad input: one clear error on every rank


def wrapped(mesh: DeviceMesh, name: str = "llama_gqa", **options: Any) -> nn.Module:
    return memo_train.wrap(MODELS[name](**options), mesh=mesh, alpha=0.5, tile_tokens=8)


@case(SEVERAL)
def lengths_that_differ(mesh: DeviceMesh) -> None:
    part = memo_train.shard_batch(labelled(), mesh)
    cut = dist.get_rank() == 1
    short = {name: value[:, :-cut] if cut else value for name, value in part.items()}
    tokens = part["input_ids"].shape[1]
    message = (
        rf"number of tokens of each rank must be the same .*{tokens} on .*{tokens - 1} on rank 1"
    )
    check_refused(RanksDiffer, message, lambda: wrapped(mesh)(**short))


@case(TWO)
def tile_sizes_that_differ(mesh: DeviceMesh) -> None:
    def wrap() -> None:
        tile_tokens = 8 if dist.get_rank() != 1 else 16
        memo_train.wrap(MODELS["llama_gqa"](), mesh=mesh, tile_tokens=tile_tokens)

    check_refused(RanksDiffer, r"tile_tokens must be the same .*8 on rank.* 0.*16 on rank 1", wrap)


@case(TWO)
def models_that_differ(mesh: DeviceMesh) -> None:
    width = 48 if dist.get_rank() != 1 else 64
    make = lambda: wrapped(mesh, intermediate_size=width)  # noqa: E731
    check_refused(RanksDiffer, "the model .* must be the same on all", make)


@case(SEVERAL)
def an_error_on_one_rank(mesh: DeviceMesh) -> None:
    """At wrap and in a step: the others hear of it and do not wait."""

    def wrap() -> None:
        memo_train.wrap(MODELS["llama_gqa"](), mesh=mesh, alpha=0.5 if dist.get_rank() else 2.0)

    check_refused(InvalidInput, "alpha must be", wrap, "rank 0 of .* failed: InvalidInput: alpha")
    model, part = wrapped(mesh), memo_train.shard_batch(labelled(), mesh)
    if dist.get_rank() == 0:
        del part["position_ids"]
    message = "needs position_ids .*shard_batch"
    check_refused(InvalidInput, message, lambda: model(**part), f"rank 0 of .*{message}")


@case(SEVERAL)
def heads_that_ranks_do_not_divide(mesh: DeviceMesh) -> None:
    sizes = {"num_attention_heads": 6, "hidden_size": 48, "num_key_value_heads": 3}
    make = lambda: memo_train.wrap(MODELS["llama_gqa"](**sizes), mesh=mesh, sp="ulysses")  # noqa: E731
    message = (
        rf"{mesh.size()} ranks cannot share attention of 6 heads with 3 .* mesh of 1, 3, 6 ranks"
    )
    check_refused(UnsupportedModel, message, make)


@case(TWO)
def more_ranks_than_tokens(mesh: DeviceMesh) -> None:
    message = "ranks cannot share sequences of 1 tokens; use a mesh of at most 1"
    batch = {"input_ids": ids_of(1)}
    check_refused(InvalidInput, message, lambda: memo_train.shard_batch(batch, mesh))


@case(TWO)
def a_second_mesh(mesh: DeviceMesh) -> None:
    model = wrapped(mesh)
    other = dist.init_device_mesh("cpu", (mesh.size(),), mesh_dim_names=("sp",))
    again = lambda: memo_train.wrap(model, mesh=other)  # noqa: E731
    check_refused(UnsupportedModel, r"wrapped already.*call memo_train.unwrap", again)
    memo_train.wrap(memo_train.unwrap(model), mesh=other)


@case(TWO)
def what_is_no_mesh(mesh: DeviceMesh) -> None:
    for bad, message in ((4, "must be a torch.distributed DeviceMesh"), (None, "'auto'.*got 'x'")):
        given = mesh if bad is None else bad
        run = lambda given=given: memo_train.wrap(MODELS["own"](), mesh=given, sp="x")  # noqa: E731
        check_refused(InvalidInput, message, run)
    unnamed = dist.init_device_mesh("cpu", (mesh.size(), 1))
    run = lambda: memo_train.wrap(MODELS["own"](), mesh=unnamed)  # noqa: E731
    check_refused(InvalidInput, 'mesh of 2 dimensions needs one named "sp"', run)


@case(TWO)
def batches_that_are_not_shared(mesh: DeviceMesh) -> None:
    model, ids = wrapped(mesh), ids_of()
    positions = torch.arange(37)[None]
    for batch, message in (
        ({"labels": ids}, "needs position_ids"),
        ({"labels": ids, "position_ids": positions}, "needs shift_labels beside labels"),
        ({"position_ids": positions, "logits_to_keep": 1}, "logits_to_keep"),
        (
            {"position_ids": positions, "attention_mask": ids},
            "attention_mask must be of the tokens",
        ),
    ):
        run = lambda batch=batch: model(input_ids=ids, **batch)  # noqa: E731
        check_refused(InvalidInput, message, run)


@case(TWO)
def models_that_cannot_be_shared(mesh: DeviceMesh) -> None:
    """Positions that no rank can be told, or that hang on the length; masks of one rank's own."""
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    for make, message in (
        (lambda: ToyLM(ToyBlock), "takes no position_ids"),
        (lambda: MODELS["llama_gqa"](rope_parameters=dynamic), "kind 'dynamic'"),
        (lambda: ToyLM(TwiceAttendingBlock), "cannot be shared by ranks"),
        (lambda: ShiftedLM(own_llama()), "a part of a sequence comes out otherwise"),
        (lambda: CountedLM(own_llama()), "a part of a sequence comes out otherwise"),
    ):
        run = lambda make=make: memo_train.wrap(make(), mesh=mesh, alpha=0.5)  # noqa: E731
        check_refused(UnsupportedModel, message, run)


@case(TWO)
def calls_past_the_model(mesh: DeviceMesh) -> None:
    model, part = wrapped(mesh), memo_train.shard_batch(labelled(), mesh)
    decoder = lambda: model.model(input_ids=part["input_ids"])  # noqa: E731
    check_refused(UnsupportedModel, "decoder .* was called by itself", decoder)
    verify = lambda: memo_train.verify(model, part)  # noqa: E731
    check_refused(UnsupportedModel, "verify the model wrapped without mesh", verify)


def main(out: str, *names: str) -> None:
    torch.set_num_threads(1)
    # A case that leaves a rank waiting must fail and not hang.
    dist.init_process_group("gloo", timeout=timedelta(seconds=100))
    size = dist.get_world_size()
    mesh = dist.init_device_mesh("cpu", (size,))
    found: dict[str, list[Any]] = {}
    for name, (run, ranks) in CASES.items():
        if size not in ranks or (names and name not in names):
            continue
        why = None
        try:
            run(mesh)
        except (Exception, pytest.fail.Exception) as error:
            why = f"{type(error).__name__}: {error}"
        every: list[Any] = [None] * size
        dist.all_gather_object(every, why)
        found[name] = every
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(found))
    gc.collect()  # what failed cases hold of the group
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
