"""Who looks after a trainer's parameters, gradients and moments: DDP, FSDP2 or DeepSpeed.

What says so is Accelerate's state, of which a process has one, whatever trainers it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy

from memo_train.errors import UnsupportedModel


def state_of(trainer: Any) -> str | None:
    """The `state` of `memo_train.wrap`; None is what the model itself shows."""
    if trainer.is_deepspeed_enabled:
        stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
        return f"zero{stage}" if stage else "ddp"
    if trainer.is_fsdp_enabled or trainer.args.world_size == 1:
        return None
    ddp = trainer.accelerator.ddp_handler
    return "ddp-views" if ddp is not None and ddp.gradient_as_bucket_view else "ddp"


def check_fsdp(trainer: Any) -> None:
    """See that `fsdp=` is one that runs here; turn off what the plan does in its place.

    Raises: UnsupportedModel.
    """
    if not trainer.is_fsdp_enabled:
        if trainer.args.fsdp:
            raise UnsupportedModel(
                "fsdp is asked for, but Accelerate shards on GPUs only and would train by DDP "
                "here; leave fsdp out, or call fully_shard and memo_train.wrap in a loop of your "
                "own"
            )
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise UnsupportedModel(
            f"fsdp_config asks for version {plugin.fsdp_version}, whose flat parameters tiles "
            'cannot be run on; set fsdp_config["version"] to 2'
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise UnsupportedModel(
            "fsdp's cpu_offload leaves the parameters on the host, and a model is wrapped where "
            "they lie; leave it out: the plan swaps activations"
        )
    plugin.activation_checkpointing = False


@contextmanager
def placed(trainer: Any, model: nn.Module) -> Iterator[None]:
    """While active, `model` may be wrapped as it will be trained: on its device, or sharded.

    Accelerate would shard it when training begins, for which it finds nothing left to do. Then
    TRL's heads stand around it already, and it has no whole parameters to be measured with.
    """
    if not trainer.is_fsdp_enabled:
        if next(model.parameters()).device.type != trainer.args.device.type:
            trainer._move_model_to_device(model, trainer.args.device)
        yield
        return
    fsdp2_prepare_model(trainer.accelerator, model)
    # In a step nothing can be measured any more, in its precision neither.
    with trainer.accelerator.autocast():
        yield


class KeptState:
    """Accelerate's state as it was when a trainer was made, for whenever that trainer runs.

    Transformers' TrainingArguments empties it, each time some are made, and a later trainer fills
    it anew: one made before then fails, or trains in the later one's precision.
    """

    def __init__(self) -> None:
        self._kept = _contents()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While active, it is that of this trainer; afterwards what it was."""
        before = _contents()
        is_other = any(
            now.get(name) is not value
            for now, kept in zip(before, self._kept, strict=True)
            for name, value in kept.items()
        )
        if is_other:
            _fill(self._kept)
        try:
            yield
        finally:
            self._kept = _contents()
            if is_other:
                _fill(before)


def _contents() -> tuple[dict[str, Any], ...]:
    return tuple(dict(kind._shared_state) for kind in (PartialState, AcceleratorState))


def _fill(contents: tuple[dict[str, Any], ...]) -> None:
    for kind, content in zip((PartialState, AcceleratorState), contents, strict=True):
        # In place: every accelerator has this very dictionary.
        kind._shared_state.clear()
        kind._shared_state.update(content)
