"""Parameters that are divided among ranks (FSDP2, ZeRO 3), brought in and let go around a block.

What shards a module brings its parameters in by hooks around the module's call, on all ranks at
once. Tiles call modules many times a step; so the hooks of modules inside a block run once around
all tiles (`in_one_call`), and not while tiles run (`without_moves`). Outside of steps, probe and
profile need whole parameters: `whole` brings them in for a while, on all ranks in one order, and
what runs meanwhile enters no collective, so that ranks may do different things in there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memo_train.errors import UnsupportedModel
from memo_train.runtime._hooks import hooks_taken_out

# ZeRO 3 puts a timer for NVTX around some of its hooks.
_MOVERS = ("torch.distributed.fsdp.", "deepspeed.runtime.zero.", "deepspeed.utils.nvtx")
_BEFORE = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
_BEHIND = ("_forward_hooks", "_forward_hooks_with_kwargs")


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether FSDP2's `fully_shard` was called on it."""
    fsdp = getattr(torch.distributed, "fsdp", None)
    return fsdp is not None and isinstance(module, getattr(fsdp, "FSDPModule", ()))


def class_of(module: nn.Module) -> type[nn.Module]:
    """Its class, of a module that FSDP2 shards the one that it had before."""
    if not is_fully_sharded(module):
        return type(module)
    fsdp: Any = torch.distributed.fsdp.FSDPModule
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, fsdp))


def sharded_in(module: nn.Module) -> tuple[Any, ...]:
    """The modules in `module`, itself with them, that FSDP2 shards; outer ones first."""
    return tuple(inner for inner in module.modules() if is_fully_sharded(inner))


def moves_parameters(hook: Callable[..., Any]) -> bool:
    """Whether it cares for parameters only, and for whether an output needs gradients."""
    return str(getattr(hook, "__module__", "")).startswith(_MOVERS)


def is_taken_by_zero(parameter: torch.Tensor) -> bool:
    """Whether DeepSpeed's ZeRO 3 has it, which gives it other memory whenever it is needed."""
    return hasattr(parameter, "ds_id")


def refuse_torn_blocks(blocks: Sequence[nn.Module]) -> None:
    """Whether ZeRO 3 would move the parameters of some block part by part, while tiles run.

    Raises: UnsupportedModel.
    """
    for block in blocks:
        taken = any(map(is_taken_by_zero, block.parameters()))
        if taken and not getattr(block, "_z3_leaf", False):
            name = type(block).__name__
            raise UnsupportedModel(
                f"DeepSpeed's ZeRO stage 3 moves the parameters of {name} module by module, many "
                f"times for its tiles; call deepspeed.utils.set_z3_leaf_modules(model, [{name}]) "
                "after memo_train.wrap and before deepspeed.initialize, or train with stage 2"
            )


def in_one_call(
    modules: Sequence[nn.Module], x: torch.Tensor, run: Callable[[torch.Tensor], Any]
) -> Any:
    """`run(x)` as if it were one call of each of `modules`, of the first around that of the next.

    Only the hooks that move their parameters run: before and behind it, and in its backward.
    Raises: UnsupportedModel, as `refuse_casts`.
    """
    if not modules:
        return run(x)
    first, *others = modules
    refuse_casts((first,), x.dtype)
    given: torch.Tensor = _run_hooks(first, _BEFORE, (x,), None)[0]
    output = in_one_call(others, given, run)
    return _run_hooks(first, _BEHIND, (given,), output)


def refuse_casts(modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Whether a block that runs in `dtype` has modules inside whose sharding casts their inputs.

    Around all tiles the cast would be of the whole block's input.
    Raises: UnsupportedModel.
    """
    for module in filter(is_fully_sharded, modules):
        policy: Any = module._get_fsdp_state()._mp_policy  # type: ignore[operator]
        of_input = policy.param_dtype if policy.cast_forward_inputs else None
        if {of_input, policy.output_dtype} - {None, dtype}:
            raise UnsupportedModel(
                f"{type(module).__name__} inside a block is sharded with {policy}, but the block "
                f"gets {dtype}; call fully_shard on the whole block and on the model with that "
                "param_dtype, too, and leave output_dtype to the model"
            )


def _run_hooks(
    module: nn.Module, kinds: tuple[str, str], args: tuple[Any, ...], output: Any
) -> Any:
    """What the hooks that move parameters make of a call's arguments, or of its output."""
    hooks, with_kwargs = (getattr(module, name) for name in kinds)
    is_before = kinds is _BEFORE
    for key, hook in list(hooks.items()):
        if not moves_parameters(hook):
            continue
        call: tuple[Any, ...] = (args, {}) if key in with_kwargs else (args,)
        result = hook(module, *call) if is_before else hook(module, *call, output)
        if result is None:
            continue
        if not is_before:
            output = result
        else:
            args = result[0] if key in with_kwargs else result
    return args if is_before else output


@contextmanager
def without_moves(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While active, calls of `modules` move no parameters; their other hooks run."""
    every = (
        hooks for module in modules for hooks in (module._forward_pre_hooks, module._forward_hooks)
    )
    with hooks_taken_out(every, moves_parameters):
        yield


@contextmanager
def whole(modules: Iterable[Any]) -> Iterator[None]:
    """While active, those of `modules` that FSDP2 shards have their parameters, and keep them.

    A collective call, as long as there is one of them: all ranks make it, in one order.
    """
    sharded = tuple(module for module in modules if is_fully_sharded(module))
    for module in sharded:
        module.unshard()
    try:
        with without_moves(sharded):
            yield
    finally:
        for module in sharded:
            module.reshard()


@contextmanager
def settled(root: nn.Module) -> Iterator[None]:
    """Afterwards nothing is left in FSDP2 of what ran in here; `root` holds all that it shards."""
    sharded = sharded_in(root)
    if sharded:
        # Its first call would make the module that is called the outermost one.
        sharded[0]._get_fsdp_state()._lazy_init()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
        # Else the first backward brings in what forwards without a backward have listed.
        reset = getattr(sharded[0], "reset_iter_state", None) if sharded else None
        if reset is not None:
            reset()


@contextmanager
def pretended(blocks: Sequence[nn.Module], whole_blocks: Sequence[nn.Module]) -> Iterator[None]:
    """While active, parameters of `blocks` are of the types of those of the block beside them.

    whole_blocks: for each block one that has its parameters, or itself. So whoever counts bytes
    and kinds finds them alike; there are no values, and no memory behind them.
    """
    places = [
        (slots, name, parameter, other._parameters[name])
        for block, whole_block in zip(blocks, whole_blocks, strict=True)
        if block is not whole_block
        for module, other in zip(block.modules(), whole_block.modules(), strict=True)
        for slots in (module._parameters,)
        for name, parameter in slots.items()
        if parameter is not None
    ]
    for slots, name, parameter, like in places:
        assert like is not None
        nothing = like.new_zeros(()).expand(like.shape)
        slots[name] = nn.Parameter(nothing, requires_grad=parameter.requires_grad)
    try:
        yield
    finally:
        for slots, name, parameter, _ in places:
            slots[name] = parameter


def held_here(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor that may be divided among ranks."""
    to_local = getattr(tensor, "to_local", None)
    local: torch.Tensor = tensor if to_local is None else to_local()
    return local
