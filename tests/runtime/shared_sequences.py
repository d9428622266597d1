"""Numbers and plans of ranks that share sequences, against one process: cases by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate.parallelism_config import ParallelismConfig
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_outputs import CausalLMOutputWithPast

import memo_train
from memo_planner.programme import make_plan
from memo_train.errors import InvalidInput, PlanInfeasible, RanksDiffer, UnsupportedModel
from memo_train.testing import (
    Step,
    assert_as_exact_as_plain,
    assert_same_bits,
    float64_step,
    run_step,
)
from tests.runtime.causal_lms import MODELS, gpt2_with_dropout
from tests.runtime.policies import POLICIES, force
from tests.runtime.shared_cases import (
    SEVERAL,
    TWO,
    AroundLlama,
    averaged,
    case,
    check,
    check_refused,
    ids_of,
    labelled,
    packed,
    wrapped,
)
from tests.runtime.small_llama import own_llama

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


@case(TWO)
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
        found = wrapped(lambda: model, mesh)(**part)
    tokens = part["input_ids"].shape[1]
    mine = range(37)[mesh.get_local_rank() * tokens :][:tokens]
    torch.testing.assert_close(found.loss, plain.loss, rtol=1e-6, atol=0)
    expected = plain.logits[:, mine.start : mine.stop]
    torch.testing.assert_close(found.logits[:, : len(mine)], expected, rtol=1e-4, atol=1e-5)


class OnHidden(nn.Module):
    """A loss on the decoder's output, as TRL's fused head takes it: the model is not called.

    It sums a rank's own tokens; the mean over ranks is of them all, with their number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lm, self.num_ranks = MODELS["llama_gqa"](), 1

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **_: Any) -> Any:
        hidden = self.lm.model(input_ids=input_ids, position_ids=position_ids).last_hidden_state
        return CausalLMOutputWithPast(loss=self.lm.lm_head(hidden).square().sum() * self.num_ranks)


@case(TWO)
def a_decoder_called_by_itself(mesh: DeviceMesh) -> None:
    positions = torch.arange(40)[None]
    batch = {"input_ids": ids_of(40), "position_ids": positions.expand(len(ids_of(40)), -1)}
    plain, exact = run_step(OnHidden(), **batch), float64_step(OnHidden(), **batch)
    ours, part = OnHidden(), memo_train.shard_batch(batch, mesh)
    ours.num_ranks = mesh.size()
    memo_train.wrap(ours.lm, mesh=mesh, alpha=0.5, tile_tokens=8)
    found = run_step(ours, **part)
    loss = found.loss.detach().clone()
    dist.all_reduce(loss)
    found = Step(loss=loss / mesh.size(), gradients=found.gradients)
    assert_as_exact_as_plain(averaged(found), plain, exact)


@case(TWO)
def dropout(mesh: DeviceMesh) -> None:
    """Each rank draws its own numbers, and the same ones whatever the policy."""
    model = wrapped(gpt2_with_dropout, mesh)
    part, rank = memo_train.shard_batch(labelled(), mesh), mesh.get_local_rank()
    steps = {p: run_step(force(model, p, 4), seed=rank, **part) for p in POLICIES}
    for step in steps.values():
        assert_same_bits(step, steps["keep"])


@case(TWO)
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
    model = wrapped(MODELS["llama_gqa"], mesh)
    parallel = DistributedDataParallel(force(model, "mixed", 4))
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
    model = wrapped(MODELS["llama_gqa"], both)
    own = ids[both.get_local_rank("dp")][None]
    part = memo_train.shard_batch({"input_ids": own, "labels": own}, both)
    step = averaged(run_step(force(model, "mixed", 4), **part))
    dist.all_reduce(step.loss)
    whole = Step(loss=step.loss / 4, gradients=step.gradients)
    assert_as_exact_as_plain(whole, plain, exact)


@case(TWO)
def a_mesh_of_accelerates(mesh: DeviceMesh) -> None:
    """Its dimension "cp"; for "sp" it makes none, and leaves that to DeepSpeed."""
    theirs = ParallelismConfig(cp_size=mesh.size()).build_device_mesh("cpu")
    assert theirs.mesh_dim_names is not None
    assert "cp" in theirs.mesh_dim_names
    check(MODELS["llama_gqa"], labelled(), theirs, policies=("mixed",))
    check(MODELS["llama_gqa"], labelled(), theirs["cp"], policies=("mixed",))


@case()
def around_a_ring(mesh: DeviceMesh) -> None:
    """An odd number of tokens a rank, and an even one; heads in groups."""
    check(MODELS["llama_gqa"], labelled(37), mesh, policies=POLICIES, sp="ring")
    check(MODELS["own"], labelled(48), mesh, sp="ring")


@case(frozenset({4}))
def more_ranks_than_heads(mesh: DeviceMesh) -> None:
    """ "auto" takes a ring of as many as share the heads; ranks may have a single token each."""
    make = lambda: MODELS["llama_gqa"](num_attention_heads=2, num_key_value_heads=1)  # noqa: E731
    check(make, labelled(41), mesh)
    batch = {"input_ids": ids_of(4), "labels": ids_of(4)}
    for sp in ("auto", "ring"):
        check(make, batch, mesh, sp=sp)
    model = wrapped(make, mesh)
    assert model._memo_train.wrapped.ranks.way == "4 ranks, ring of 2 x ulysses of 2"


@case(frozenset({4}))
def both_ways_on_a_mesh(mesh: DeviceMesh) -> None:
    """Keys go around two places, in each of which two ranks exchange tokens for heads."""
    both = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("cp", "sp"))
    check(MODELS["llama_gqa"], labelled(37), both, policies=POLICIES)
    make = lambda: MODELS["llama_gqa"](num_key_value_heads=1)  # noqa: E731
    check(make, labelled(50), both, dtype=torch.bfloat16)
    for way in ("ulysses", "ring"):
        run = lambda way=way: memo_train.wrap(MODELS["llama_gqa"](), mesh=both, sp=way)  # noqa: E731
        check_refused(InvalidInput, r"2 ranks in 'cp' and 2 .* in 'sp'.* sp=\"auto\"", run)
    turned = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("sp", "cp"))
    run = lambda: memo_train.wrap(MODELS["llama_gqa"](), mesh=turned)  # noqa: E731
    check_refused(InvalidInput, 'name "cp" before "sp"', run)


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
    model = force(wrapped(MODELS["llama_gqa"], mesh, sp="ring"), "mixed", 4)
    part = memo_train.shard_batch(packed(3, 17, 18), mesh)
    check_refused(UnsupportedModel, "asks for attention_mask|packed", lambda: model(**part))
    model = force(wrapped(gpt2_with_dropout, mesh, sp="ring"), "mixed", 4)
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


@case(TWO)
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
        report = memo_train.memory_report(model).shapes[0]
    assert report.num_steps == 2
    assert (report.unplanned, report.missing) == (0, 0), report
    every: list[Any] = [None] * mesh.size()
    dist.all_gather_object(every, memo_train.plan(model))
    assert all(plan == every[0] for plan in every)


@case(TWO)
def a_plan_that_one_rank_loads(mesh: DeviceMesh) -> None:
    model = memo_train.wrap(MODELS["llama_gqa"](), mesh=mesh, alpha=0.5, tile_tokens=8)
    part = memo_train.shard_batch(labelled(), mesh)
    run_step(model, **part)
    if dist.get_rank() == 1:
        planner, own = model._memo_train, model._memo_train.last
        theirs = make_plan(
            own.plan.profile, own.shape.tokens, own.plan.limits, alpha=0.0, tile_tokens=4
        )
        planner.adopt(own.shape, theirs, park_pre=False)
    message = (
        r"the plan must be the same on all .*tiles of 8 .* on rank.* 0.*tiles of 4 .* on rank 1"
    )
    check_refused(RanksDiffer, message, lambda: run_step(model, **part))


@case(TWO)
def a_plan_that_does_not_fit(mesh: DeviceMesh) -> None:
    """What else would help is told, too: here masks are what is large."""

    def wrap() -> None:
        memo_train.wrap(MODELS["mistral_window"](), mesh=mesh, seq_len=1 << 20, device_gib=0.01)

    check_refused(PlanInfeasible, "longest sequence .* are masks and scores", wrap)
