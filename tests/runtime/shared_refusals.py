"""What ranks that share sequences refuse: one clear error on every rank, and none waits."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

import memo_train
from memo_train.errors import InvalidInput, RanksDiffer, UnsupportedModel
from tests.runtime.causal_lms import MODELS
from tests.runtime.mixer_blocks import TwiceAttendingBlock
from tests.runtime.shared_cases import (
    SEVERAL,
    TWO,
    CountedLM,
    ShiftedLM,
    case,
    check_refused,
    ids_of,
    labelled,
    wrapped,
)
from tests.runtime.small_llama import own_llama
from tests.runtime.toy import ToyBlock, ToyLM

# Bad input: one clear error on every rank


@case(SEVERAL)
def lengths_that_differ(mesh: DeviceMesh) -> None:
    part = memo_train.shard_batch(labelled(), mesh)
    cut = dist.get_rank() == 1
    short = {name: value[:, :-cut] if cut else value for name, value in part.items()}
    tokens = part["input_ids"].shape[1]
    message = (
        rf"number of tokens of each rank must be the same .*{tokens} on .*{tokens - 1} on rank 1"
    )
    check_refused(RanksDiffer, message, lambda: wrapped(MODELS["llama_gqa"], mesh)(**short))


@case(TWO)
def tile_sizes_that_differ(mesh: DeviceMesh) -> None:
    def wrap() -> None:
        tile_tokens = 8 if dist.get_rank() != 1 else 16
        memo_train.wrap(MODELS["llama_gqa"](), mesh=mesh, tile_tokens=tile_tokens)

    check_refused(RanksDiffer, r"tile_tokens must be the same .*8 on rank.* 0.*16 on rank 1", wrap)


@case(TWO)
def models_that_differ(mesh: DeviceMesh) -> None:
    width = 48 if dist.get_rank() != 1 else 64
    make = lambda: wrapped(lambda: MODELS["llama_gqa"](intermediate_size=width), mesh)  # noqa: E731
    check_refused(RanksDiffer, "the model .* must be the same on all", make)


@case(SEVERAL)
def an_error_on_one_rank(mesh: DeviceMesh) -> None:
    """At wrap and in a step: the others hear of it and do not wait."""

    def wrap() -> None:
        memo_train.wrap(MODELS["llama_gqa"](), mesh=mesh, alpha=0.5 if dist.get_rank() else 2.0)

    check_refused(InvalidInput, "alpha must be", wrap, "rank 0 of .* failed: InvalidInput: alpha")
    model, part = wrapped(MODELS["llama_gqa"], mesh), memo_train.shard_batch(labelled(), mesh)
    if dist.get_rank() == 0:
        del part["position_ids"]
    message = "needs position_ids .*shard_batch"
    check_refused(InvalidInput, message, lambda: model(**part), f"rank 0 of .*{message}")


@case(TWO)
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
    model = wrapped(MODELS["llama_gqa"], mesh)
    other = dist.init_device_mesh("cpu", (mesh.size(),), mesh_dim_names=("sp",))
    again = lambda: memo_train.wrap(model, mesh=other)  # noqa: E731
    check_refused(UnsupportedModel, r"wrapped already.*call memo_train.unwrap", again)
    wrapped(lambda: memo_train.unwrap(model), other)


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
    model, ids = wrapped(MODELS["llama_gqa"], mesh), ids_of()
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
    model, part = wrapped(MODELS["llama_gqa"], mesh), memo_train.shard_batch(labelled(), mesh)
    decoder = lambda: model.model(input_ids=part["input_ids"])  # noqa: E731
    check_refused(InvalidInput, "needs position_ids", decoder)
    verify = lambda: memo_train.verify(model, part)  # noqa: E731
    check_refused(UnsupportedModel, "verify the model wrapped without mesh", verify)
