"""`wrap` and `unwrap`: a user's model under the runtime, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from memo_planner import Limits, Plan
from memo_train.caps import Caps, CapsBytes
from memo_train.device import Device, device_of, memory_share_bytes
from memo_train.errors import InvalidInput, UnsupportedModel
from memo_train.layout import StepLayouts
from memo_train.parallel import HeadsSeen, ModelState, SequenceGroup, SharedSteps, join
from memo_train.planning import Choices, PlannedStep, StepPlanner
from memo_train.runtime import (
    BlockVerdict,
    ModelParts,
    TiledLoss,
    WrappedModel,
    attention_shared_by,
    causal_lm_of,
    check_shareable,
    configs_of,
    deepspeed_ulysses_of,
    evaluating,
    find_parts,
    kept_model,
    preserved_rng,
    probe_model,
    report,
    runnable,
    settled,
    without_caches,
    without_user_hooks,
)
from memo_train.stats import count
from memo_train.trace import kinds_of, model_hash

GIB = 2**30
_ATTRIBUTE = "_memo_train"
_PACKS = "support_avx512bf16_for_cpu"


def wrap(  # noqa: PLR0913  # each is an option that users name
    model: nn.Module,
    *,
    seq_len: int | None = None,
    device_gib: float | None = None,
    host_gib: float | None = None,
    alpha: float | None = None,
    tile_tokens: int | None = None,
    mesh: DeviceMesh | None = None,
    sp: str = "auto",
    state: str | ModelState | None = None,
) -> nn.Module:
    """Make `model` train by token tiles under a plan; returns the same model.

    seq_len: tokens per sequence to plan for now (batch 1); other shapes are planned when they
        first come. With it, a plan that does not fit is refused here and not in the first step.
    device_gib, host_gib: GiB of this process's device memory (everything: parameters, gradients,
        AdamW's moments, activations) and of its host pool. A `device_gib` is enforced: on the CPU
        device and where torch's own allocator serves the GPU, beyond it torch.OutOfMemoryError
        (memo-train's allocator: see `memo_train.device._cuda_memory`). host_gib defaults to half of
        this process's share of the memory (a container's limit and torchrun's other ranks on the
        machine count), device_gib to the same, on a GPU to nine tenths of the GPU's.
    alpha: the share of each block's tiles to swap, in [0, 1]; the rest is recomputed and x and
        o are swapped. None lets the planner choose what to keep, swap and recompute.
    tile_tokens: tokens per tile; None lets the planner choose.
    mesh: the ranks that share every sequence, each with a range of its tokens: a mesh of one
        dimension, or its dimension "sp". All of them wrap the same model with the same options,
        and call it with `memo_train.shard_batch(batch, mesh)`. The loss is then the mean over the
        labels of all ranks, scaled such that the *mean* of the ranks' gradients (what DDP takes)
        is one process's. Each rank draws its own dropout; seed them apart. seq_len counts the
        whole sequence, the limits are of each rank. Rank 0 profiles and plans for all.
    sp: how ranks share attention: "ulysses" by heads, "ring" by passing keys and values around
        (plain causal attention on CPUs only); "auto" is Ulysses over as many ranks as can share the
        heads, in a ring of as many places as that needs. A mesh that is wide in "cp" and in "sp"
        says it: keys and values go around "cp". DeepSpeed's `UlyssesSPAttentionHF`, registered
        before, needs no mesh: its ranks share sequences, with its batches and its kind of loss.
    state: who looks after parameters, gradients and moments, for the plan to count them: a kind of
        `memo_train.ModelState`, or one. None: FSDP2 where the model is sharded already, else this
        process alone.

    The model is trained where its parameters lie: on the CPU or on one GPU.
    Blocks that are not token-wise outside attention are checkpointed whole, with a warning; ranks
    cannot share them.
    Raises: UnsupportedModel, UnsupportedDevice, CudaUnavailable, InvalidInput, PlanInfeasible,
        RanksDiffer; the model is then as it was.
    """
    deepspeed = deepspeed_ulysses_of(model)
    group = _group_of(mesh, sp, deepspeed)
    caps_gib = {"device_gib": device_gib, "host_gib": host_gib}
    choice = {"alpha": alpha, "tile_tokens": tile_tokens, "seq_len": seq_len}
    steps_of = None if group is None else partial(SharedSteps, group, sp=sp, deepspeed=deepspeed)
    found = _find(model, caps_gib | choice | {"sp": sp, "state": state}, group, steps_of)
    limits = _limits(found.device, *found.caps_bytes)
    choices = Choices(limits=limits, alpha=alpha, tile_tokens=tile_tokens, state=found.state)
    planner = _planner(found, choices, seq_len, group)
    setattr(found.parts.causal_lm, _ATTRIBUTE, planner)
    count(planner.wrapped)
    return model


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What the probe found out about a model. steps: how ranks share them, if any do.

    state: what `wrap` was told of the model's state.
    """

    parts: ModelParts
    device: Device
    verdicts: tuple[BlockVerdict, ...]
    loss: TiledLoss | None
    steps: SharedSteps | None
    caps_bytes: CapsBytes
    state: ModelState


def _look_at(
    model: nn.Module,
    steps_of: Callable[[nn.Module], SharedSteps] | None,
    caps_bytes: CapsBytes,
    state: ModelState,
) -> _Found:
    """Probe the model, alone, and warn of what is not tiled. Raises: as `wrap`."""
    parts = find_parts(model)
    lm = parts.causal_lm
    if hasattr(lm, _ATTRIBUTE):
        raise UnsupportedModel("the model is wrapped already; call memo_train.unwrap(model) first")
    _keep_unpacked(lm)
    device, heads = device_of(lm.parameters()), HeadsSeen()
    tries = runnable(lm, "on the few tokens of the probe")
    alone = attention_shared_by(None if steps_of is None else heads)
    hooks = without_user_hooks(lm, parts.blocks)
    with settled(model), hooks, without_caches(configs_of(lm)), tries, alone:
        verdicts, loss = probe_model(parts, device)
    steps = None if steps_of is None else steps_of(lm)
    if steps is not None:
        check_shareable(parts, verdicts)
        steps.check_model(heads.num_heads)
    report(parts, verdicts, loss.why_whole)
    tiled = None if loss.why_whole else loss
    return _Found(
        parts=parts,
        device=device,
        verdicts=verdicts,
        loss=tiled,
        steps=steps,
        caps_bytes=caps_bytes,
        state=state,
    )


def _group_of(mesh: DeviceMesh | None, sp: str, deepspeed: Any | None) -> SequenceGroup | None:
    """The ranks that share sequences, if any do. Raises: InvalidInput."""
    if deepspeed is None:
        return None if mesh is None else join(mesh, sp)
    if mesh is not None or sp == "ring":
        raise InvalidInput(
            "the model attends by DeepSpeed's UlyssesSPAttentionHF, whose ranks share sequences; "
            'wrap it without mesh and with sp="auto", or do not register that'
        )
    return SequenceGroup(deepspeed.process_group)


def _keep_unpacked(lm: nn.Module) -> None:
    """Let bitsandbytes' 4-bit layers stay such that gradients go through them, on a CPU.

    On one with AVX512-BF16 their first call in evaluation packs the weights for inference; from
    then on nothing is differentiated through them, without an error.
    Raises: UnsupportedModel if that has happened.
    """
    for name, module in lm.named_modules():
        if not hasattr(module, _PACKS):
            continue
        state = getattr(module.weight, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise UnsupportedModel(
                f"{name} has packed its 4-bit weights for inference, and gives no gradients to "
                "what is before it; load the model anew, and wrap it before it is evaluated"
            )
        setattr(module, _PACKS, False)


def _find(
    model: nn.Module,
    options: dict[str, Any],
    group: SequenceGroup | None,
    steps_of: Callable[[nn.Module], SharedSteps] | None,
) -> _Found:
    """What the options and the model are found to be, of ranks once all have found the same.

    Raises: as `wrap`.
    """
    looked: list[_Found] = []

    def look() -> tuple[dict[str, Any], None]:
        _check_options(options["alpha"], options["tile_tokens"], options["seq_len"])
        device_bytes, host_bytes = (_cap_bytes(n, options[n]) for n in ("device_gib", "host_gib"))
        state = ModelState.told(options["state"], model)
        looked.append(_look_at(model, steps_of, (device_bytes, host_bytes), state))
        made_of = model_hash(looked[0].parts.causal_lm)
        return options | {"the model (its parameters, hashed)": made_of}, None

    if group is None:
        look()
    else:
        group.agree(look)
    return looked[0]


def _planner(
    found: _Found, choices: Choices, seq_len: int | None, group: SequenceGroup | None
) -> StepPlanner:
    """What plans the model's steps, with the model under it and its caps set. Raises: as `wrap`."""
    device = found.device
    wrapped = WrappedModel(found.parts, found.verdicts, device, loss=found.loss)
    wrapped.memory = layouts = StepLayouts(device)
    caps = Caps(device)
    planner = StepPlanner(wrapped, choices, caps, layouts, group)
    wrapped.install(planner.step_policy)
    try:
        with wrapped.whole(kind.index for kind in kinds_of(wrapped)):
            if group is not None:
                group.agree(lambda: _prove(found))
                # Not before: what is proven, each rank runs alone.
                wrapped.ranks = found.steps
                planner.measure_links()
            tokens = seq_len if group is None or seq_len is None else -(-seq_len // group.size)
            _plan_ahead(planner, tokens, fits_at_all=found.caps_bytes[0] is not None)
        # Last: a profile's runs may need more than the plan's steps.
        _set_caps(caps, found, planner)
    # An interrupt, too, leaves the model as it was.
    except BaseException:
        wrapped.restore()
        caps.restore()
        raise
    return planner


def _prove(found: _Found) -> tuple[dict[str, Any], None]:
    """See that ranks may share the model, by running it wrapped. Raises: UnsupportedModel."""
    parts, lm = found.parts, found.parts.causal_lm
    # An even number of tokens.
    ids = torch.arange(parts.probe_tokens() // 2 * 2, device=found.device.torch_device)[None]
    assert found.steps is not None
    with (
        without_user_hooks(lm, parts.blocks),
        kept_model(lm, parts.blocks),
        evaluating(lm),
        preserved_rng(found.device.generators),
        runnable(lm, "on parts of a short sequence"),
    ):
        found.steps.prove(lm.forward, ids * 7 % parts.vocab_size)
    return {}, None


def _set_caps(caps: Caps, found: _Found, planner: StepPlanner) -> None:
    """Raises: as `Caps.set`; RanksDiffer if it does on another rank."""

    def put() -> tuple[dict[str, Any], None]:
        caps.set(*found.caps_bytes, found.parts)
        return {}, None

    planner.agree(put)


def unwrap(model: nn.Module) -> nn.Module:
    """Give `model` its own forwards back, and the caps that were before; returns the same model.

    Raises: UnsupportedModel if it is not wrapped.
    """
    planner = planner_of(model)
    planner.wrapped.restore()
    planner.caps.restore()
    delattr(planner.wrapped.parts.causal_lm, _ATTRIBUTE)
    return model


def plan(model: nn.Module) -> Plan:
    """The plan of a wrapped model's last training step, or of `wrap`'s seq_len before the first.

    Raises: UnsupportedModel if it is not wrapped, or no step has been planned yet.
    """
    return planned_step_of(planner_of(model)).plan


def planner_of(model: nn.Module) -> StepPlanner:
    """What plans the steps of a wrapped model. Raises: UnsupportedModel if it is not wrapped."""
    planner = getattr(causal_lm_of(model), _ATTRIBUTE, None)
    if not isinstance(planner, StepPlanner):
        raise UnsupportedModel(f"this {type(model).__name__} is not wrapped")
    return planner


def planned_step_of(planner: StepPlanner) -> PlannedStep:
    """The step planned last. Raises: UnsupportedModel if there is none yet."""
    if planner.last is None:
        raise UnsupportedModel("no step has been planned yet; pass seq_len to wrap or run a step")
    return planner.last


def _check_options(alpha: float | None, tile_tokens: int | None, seq_len: int | None) -> None:
    if alpha is not None and not (_is_number(alpha) and 0 <= alpha <= 1):
        raise InvalidInput(f"alpha must be a number between 0 and 1, got {alpha!r}")
    _check_count("tile_tokens", tile_tokens)
    _check_count("seq_len", seq_len)


def _limits(device: Device, device_bytes: int | None, host_bytes: int | None) -> Limits:
    # The cap counts what the allocator takes, the plan what tensors need.
    capped = device_bytes and max(1, device_bytes - device.rounding_bytes)
    return Limits(
        device_bytes=capped or device.default_limit_bytes,
        host_bytes=host_bytes or memory_share_bytes() // 2,
    )


def _cap_bytes(name: str, gib: float | None) -> int | None:
    if gib is None:
        return None
    if not (_is_number(gib) and math.isfinite(gib) and gib * GIB >= 1):
        raise InvalidInput(
            f"{name} must be a number of GiB above 0, got {gib!r}; None means no cap of your own"
        )
    return int(gib * GIB)


def _check_count(name: str, value: object) -> None:
    if value is not None and not (type(value) is int and value >= 1):
        raise InvalidInput(f"{name} must be a whole number of at least 1, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plan_ahead(planner: StepPlanner, seq_len: int | None, *, fits_at_all: bool) -> None:
    """Plan for seq_len; without it at least see that a cap leaves room for one tile."""
    if not planner.trains:
        return
    planner.measure(limited=fits_at_all)
    if seq_len is not None:
        planner.plan(1, seq_len)
    elif fits_at_all:
        planner.plan(1, 1)
        # Nobody asked for that step, so `plan` must not show it.
        planner.last = None
