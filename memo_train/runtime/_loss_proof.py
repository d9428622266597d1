"""Proves that a model's losses of tiles add up to its loss of all tokens, or that they do not.

The model's own head and loss run on a few made-up hidden states, whole and by tiles; values and
gradients are compared. What was proved holds as long as `what_it_rests_on` gives the same.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map_only

from memo_train.errors import MemoError
from memo_train.runtime._ambient import Ambient, preserved_rng
from memo_train.runtime._loss_call import IGNORE_INDEX, WAYS, LossCall, LossIsWhole, Way
from memo_train.runtime._loss_output import loss_of
from memo_train.runtime._loss_pass import LossPass, generators_of
from memo_train.runtime._loss_tail import Tail, hidden_of, with_hidden
from memo_train.runtime._observe import ignore

# Three tiles of unlike lengths; sequences in which unlike numbers of labels count.
_NUM_SEQUENCES = 2
_NUM_TOKENS = 8
_TILE_TOKENS = 3
_NOT_KEPT = 2
_SCALE = 2.0**10
"""Of the gradients compared: in fp16 they would be too small without."""

_EXACT = (1e-5, 1e-3)
_TOLERANCES = {
    torch.float64: (1e-6, 1e-5),  # Transformers' losses are fp32, whatever the logits are
    torch.bfloat16: (4e-3, 6e-2),
    torch.float16: (2e-3, 2e-2),
}
"""Relative difference of the losses and of the gradients by the hidden states."""

_NOT_RUNNABLE = (
    MemoError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
)
_USUAL = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", "labels", "shift_labels"}
_FREE = {"num_items_in_batch", "logits_to_keep"}
"""Arguments whose values may differ from step to step and change nothing."""


def what_it_rests_on(tail: Tail, arguments: dict[str, Any]) -> Hashable:
    """Equal for calls whose losses add up alike: loss function, head, settings, kind of call."""
    model, config = tail.model, getattr(tail.model, "config", None)
    loss_function = getattr(model, "loss_function", None)
    given = tuple(sorted((n, _kind(n, v)) for n, v in arguments.items() if v is not None))
    modules = tuple((_Same(m), type(m), m.training) for m in tail.modules)
    settings = (_settings(model), _settings(config), _settings(loss_function))
    return _Same(loss_function), _Same(F.cross_entropy), modules, settings, given


def template_of(decoder: nn.Module, decoded: Any) -> tuple[nn.Module, Any] | None:
    """What such a decoder gives, for proofs of later calls: one token of it, without its graph."""
    hidden = hidden_of(decoded)
    if hidden is None:
        return None
    one = with_hidden(decoded, hidden[:1, :1].clone())
    one = tree_map_only(torch.Tensor, torch.Tensor.detach, one)
    return decoder, one


def made_up_like(tail: Tail, decoded: Any) -> torch.Tensor:
    """Hidden states as in `decoded`, in the dtype that the head has by now."""
    hidden, weight = hidden_of(decoded), getattr(tail.head, "weight", None)
    assert hidden is not None
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        return hidden
    return hidden.to(weight.device, weight.dtype)


class _Same:
    """Equal to another of the same object, which lives as long as this."""

    def __init__(self, value: Any) -> None:
        # A bound method is made anew at every look; what it is bound to and its function are not.
        self._values = (getattr(value, "__self__", None), getattr(value, "__func__", value))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same):
            return NotImplemented
        return all(a is b for a, b in zip(self._values, other._values, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(map(id, self._values)))


def _settings(value: Any, depth: int = 2) -> tuple[Any, ...]:
    """Numbers, strings and switches among an object's attributes, and one level below."""
    found: list[Any] = []
    for name, attribute in getattr(value, "__dict__", {}).items():
        if isinstance(attribute, bool | int | float | str | None):
            found.append((name, attribute))
        elif depth > 1 and hasattr(attribute, "to_dict"):
            found.append((name, _settings(attribute, depth - 1)))
    return tuple(found)


def _kind(name: str, value: Any) -> str:
    """What matters of an argument, as text that sorts."""
    if isinstance(value, torch.Tensor):
        shape = () if name in _USUAL else tuple(value.shape)
        return f"{value.dtype} {value.dim()} {shape}"
    if name not in _FREE and isinstance(value, bool | int | float | str):
        return repr(value)
    return type(value).__name__


def find_way(
    tail: Tail, arguments: dict[str, Any], decoded: Any, hidden: torch.Tensor
) -> Way | LossIsWhole:
    """How such a call's tiles add up. hidden: the kind of hidden states that the head gets."""
    trial = _Trial(tail, arguments, decoded, hidden)
    surroundings = Ambient.current(hidden.device.type).restored(grad=True)
    with _no_dropout(tail), preserved_rng(generators_of(hidden.device)), surroundings:
        try:
            whole = trial.whole()
        except torch.OutOfMemoryError:
            raise  # tells nothing of the loss
        except _NOT_RUNNABLE as error:
            return LossIsWhole(f"the head does not run on a few tokens ({error})")
        except LossIsWhole as found:
            return LossIsWhole(*found.args)
        reasons = []
        for way in WAYS:
            why = trial.why_not(way, whole)
            if why is None:
                return way
            reasons.append(why)
    # The first way is the one of today's models, so its reason says most.
    return LossIsWhole(reasons[0])


class _Trial:
    """A call like the user's on a few hidden states."""

    def __init__(
        self, tail: Tail, arguments: dict[str, Any], decoded: Any, hidden: torch.Tensor
    ) -> None:
        keep = arguments.get("logits_to_keep")
        skipped = _NOT_KEPT if isinstance(keep, torch.Tensor) or keep else 0
        shape = (_NUM_SEQUENCES, skipped + _NUM_TOKENS, hidden.shape[2])
        numbers = torch.arange(math.prod(shape), device=hidden.device)
        # Draws from no generator, and no two numbers are alike.
        made_up = (numbers.double() ** 1.5).sin().to(hidden.dtype)
        self._tail, self._decoded, self._skipped = tail, decoded, skipped
        self._hidden = made_up.view(shape)
        self._tolerances = _TOLERANCES.get(_dtype_of(hidden), _EXACT)
        self._arguments = arguments | self._labels(arguments)
        if isinstance(keep, torch.Tensor):
            kept = torch.arange(skipped, skipped + _NUM_TOKENS, device=keep.device)
            self._arguments["logits_to_keep"] = kept
        elif keep:
            self._arguments["logits_to_keep"] = _NUM_TOKENS

    def _labels(self, arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Other tokens for each position; some are left out, not as many in every sequence."""
        weight = getattr(self._tail.head, "weight", None)
        vocab_size = weight.shape[0] if isinstance(weight, torch.Tensor) else _NUM_TOKENS
        ignored = arguments.get("ignore_index")
        places = torch.arange(_NUM_SEQUENCES * _NUM_TOKENS, device=self._hidden.device)
        labels = (places.view(_NUM_SEQUENCES, -1) * 7 + 1) % vocab_size
        labels[0, 3:5] = labels[1, 1:7] = IGNORE_INDEX if ignored is None else ignored
        names = ("labels", "shift_labels")
        return {name: labels for name in names if arguments.get(name) is not None}

    def whole(self) -> tuple[float, torch.Tensor]:
        """The loss and its gradient by the hidden states. Raises: LossIsWhole."""
        leaf = self._hidden.clone().requires_grad_()
        output = self._tail.run(with_hidden(self._decoded, leaf), dict(self._arguments))
        loss = loss_of(output)
        if loss is None:
            raise LossIsWhole("")  # then there is nothing to tile
        if loss.dim():
            raise LossIsWhole(f"its loss is not one number but {list(loss.shape)}")
        (gradient,) = torch.autograd.grad(loss * _SCALE, leaf)
        return float(loss.detach()), gradient[:, self._skipped :]

    def why_not(self, way: Way, whole: tuple[float, torch.Tensor]) -> str | None:
        """Why tiles do not add up to the whole this way, or None if they do."""
        try:
            call = LossCall(arguments=dict(self._arguments), tokens=_NUM_TOKENS, way=way)
            loss_pass = LossPass(self._tail, call, self._decoded, _TILE_TOKENS, ignore)
            hidden = self._hidden[:, self._skipped :]
            scale = hidden.new_tensor(_SCALE, dtype=torch.float32)
            loss, (gradient,) = loss_pass.value_and_gradients(hidden, parameters=(), scale=scale)
        except torch.OutOfMemoryError:
            raise
        except (LossIsWhole, *_NOT_RUNNABLE) as error:
            return f"it does not run on a part of the tokens ({error})"
        assert gradient is not None
        of_loss, of_gradient = self._tolerances
        by_tiles, (value, exact) = float(loss), whole
        # `not <=` and not `>`: NaN must not pass.
        if not abs(by_tiles - value) <= of_loss * abs(value):
            return f"by tiles it is {by_tiles:.6g}, whole {value:.6g}"
        difference = float((gradient.double() - exact.double()).norm() / exact.double().norm())
        if not difference <= of_gradient:
            return f"its gradients by tiles and whole differ by {difference:.2g}"
        return None


def _dtype_of(hidden: torch.Tensor) -> torch.dtype:
    """The dtype in which a head computes on such hidden states."""
    return Ambient.current(hidden.device.type).attention_dtype(hidden.dtype)


@contextmanager
def _no_dropout(tail: Tail) -> Iterator[None]:
    """Nothing else of training mode is changed: a loss may depend on it."""
    modules = [m for m in tail.modules if isinstance(m, nn.modules.dropout._DropoutNd)]
    before = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training
