"""What of a wrapped model may not change, or asks for another look, checked before every step.

Modules put in, taken out or resized are refused: the runtime holds the old ones. A change of dtype,
of the attention function or of what is trained is another `state`, and the model is tried again.
Both read attributes only: well under a millisecond for a model of a thousand modules.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

from memo_train.errors import UnsupportedModel
from memo_train.runtime._parts import ZERO3_MESSAGE, ModelParts

_WAY_OUT = "call memo_train.unwrap(model), change it, and wrap it again"


class Fingerprint:
    """Remembers the modules of a model as it is made."""

    def __init__(self, parts: ModelParts) -> None:
        self._causal_lm = parts.causal_lm
        named = list(parts.causal_lm.named_modules())
        self._children = [(name, m._modules, [*map(id, m._modules.values())]) for name, m in named]
        self._slots = [
            (f"{name}.{key}".lstrip("."), module._parameters, key, parameter.shape)
            for name, module in named
            for key, parameter in module._parameters.items()
            if parameter is not None
        ]
        self._names = [[*module._parameters] for _, module in named]
        self._parameters = [module._parameters for _, module in named]
        configs = (vars(module).get("config") for _, module in named)
        self._configs = [*{id(config): config for config in configs if config is not None}.values()]
        self._device = next(parts.causal_lm.parameters()).device
        self._types = [type(module) for _, module in named]
        self._modules = [module for _, module in named]
        self._inside_blocks = {
            id(inner) for block in parts.blocks for inner in block.modules() if inner is not block
        }
        self.is_sharded = False
        """Whether FSDP2 holds the parameters; their types and devices then change in mid-step."""
        self._state: Hashable = self._read_state(trains=True)

    def check(self) -> None:
        """Raises: UnsupportedModel if modules or shapes are others than they were."""
        if [type(module) for module in self._modules] != self._types:
            self._note_types()
        for name, children, ids in self._children:
            if [*map(id, children.values())] != ids:
                raise UnsupportedModel(
                    f"modules inside {name or 'the model'} were replaced, added or removed after "
                    f"wrap (an adapter, resized embeddings?); {_WAY_OUT}"
                )
        if [[*parameters] for parameters in self._parameters] != self._names:
            raise UnsupportedModel(f"parameters were added or removed after wrap; {_WAY_OUT}")
        if not self.is_sharded:
            self._check_parameters()

    def state(self, *, trains: bool) -> Hashable:
        """Equal while steps may be run in the ways that were proven.

        trains: whether it counts what is trained; in evaluation the last answer stands.
        """
        if trains and not self.is_sharded:
            self._state = self._read_state(trains=True)
        return self._state

    def is_changed(self, *, trains: bool) -> bool:
        """Whether `state` is another than at the last call of it."""
        if self.is_sharded:
            return False
        return self._read_state(trains=trains) != (
            self._state if trains else self._without_training(self._state)
        )

    def _read_state(self, *, trains: bool) -> Hashable:
        tensors = [parameters[key] for _, parameters, key, _ in self._slots]
        attention = tuple(getattr(c, "_attn_implementation", None) for c in self._configs)
        dtypes = tuple(tensor.dtype for tensor in tensors)
        trained = tuple(tensor.requires_grad for tensor in tensors) if trains else ()
        return attention, dtypes, trained

    def _without_training(self, state: Any) -> Hashable:
        attention, dtypes, _ = state
        return attention, dtypes, ()

    def _check_parameters(self) -> None:
        for name, parameters, key, shape in self._slots:
            tensor: Any = parameters[key]
            if hasattr(tensor, "ds_id"):
                raise UnsupportedModel(ZERO3_MESSAGE)
            if tensor.shape != shape:
                raise UnsupportedModel(
                    f"{name} was {tuple(shape)} at wrap and is {tuple(tensor.shape)}; {_WAY_OUT}"
                )
            if tensor.device != self._device:
                raise UnsupportedModel(
                    f"{name} was on {self._device} at wrap and is on {tensor.device}; {_WAY_OUT}"
                )

    def _note_types(self) -> None:
        """FSDP2 changes the class of the modules that it shards."""
        self._types = [type(module) for module in self._modules]
        for module in self._modules:
            if not _is_fully_sharded(module):
                continue
            self.is_sharded = True
            if id(module) in self._inside_blocks:
                raise UnsupportedModel(
                    f"fully_shard was called on {type(module).__name__} inside a block; its "
                    "parameters come and go in mid-tile: shard whole blocks and the model"
                )


def _is_fully_sharded(module: nn.Module) -> bool:
    fsdp = getattr(torch.distributed, "fsdp", None)
    return fsdp is not None and isinstance(module, getattr(fsdp, "FSDPModule", ()))
