"""The language-model head and its loss, one token tile at a time: logits never exist whole.

The model's own forward runs unchanged on every tile, so scaling, soft caps and the loss function
are the model's own. That its losses of tiles add up to its loss of all tokens is proved on a few
made-up hidden states, and again whenever something that it may rest on has changed. A loss that
is not such a sum, or is looked at by a hook, is computed whole, with a warning. This file decides
which of both; `_loss_pass.py` runs the tiles.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import unserializable_hook

from memo_train.device import Device
from memo_train.errors import UnsupportedModel
from memo_train.runtime._ambient import Ambient, preserved_rng
from memo_train.runtime._loss_call import (
    WAYS,
    LossCall,
    LossIsWhole,
    Way,
    asks_for_loss,
    kept,
    without_labels,
)
from memo_train.runtime._loss_output import Logits, with_loss
from memo_train.runtime._loss_pass import LossPass, computes_in_float16
from memo_train.runtime._loss_proof import find_way, made_up_like, template_of, what_it_rests_on
from memo_train.runtime._loss_tail import Tail, hidden_of, run_decoder
from memo_train.runtime._module_state import kept_model
from memo_train.runtime._observe import Observer, ignore
from memo_train.runtime._parts import ModelParts, Signature
from memo_train.runtime._probe_calls import evaluating, probe_ids
from memo_train.runtime._ranks import SharedStep
from memo_train.runtime._sharded import whole

# Proofs hold the loss functions they are of: a new one each step must not pile up.
_MOST_PROOFS = 64
_PROBE_TOKENS = 8
"""The decoder's output is all that is wanted; a head of 128K tokens is slow to try on more."""


class TiledLoss:
    """A causal LM's forward that computes the loss by tiles when labels are given.

    `model` calls `decoder`, or what it holds, once, then the head.
    Attributes set for each step: tile_tokens, positions per tile; most_tiles, as in `StepPolicy`;
    observer. assumed: how tiles add
    up where nothing can be proved, for lack of values. why_whole: of the last call with labels and
    gradients; None if its loss was tiled. quiet: give no warnings. in_backward: whether the last
    call's logits are made in backward; held_bytes: of hidden states that its output holds.
    will_be_whole: what `prepare` found out about the call that comes.
    """

    def __init__(
        self,
        model: nn.Module,
        decoder: nn.Module,
        head: nn.Module,
        forward: Callable[..., Any] | None = None,
    ) -> None:
        self.tile_tokens = 1
        self.most_tiles: int | None = None
        self.observer: Observer = ignore
        self.assumed: Way | None = None
        self.why_whole: str | None = None
        self.quiet = False
        self.in_backward = False
        self.held_bytes = 0
        self.will_be_whole = False
        self._model, self._decoder, self._head = model, decoder, head
        self._forward: Callable[..., Any] = forward or model.forward
        self._template: tuple[nn.Module, Any] | None = None
        self._proofs: dict[Any, Way | LossIsWhole] = {}
        self._said: set[str] = set()

    def forward(self, **arguments: Any) -> Any:
        """The model's output; given labels and gradients, `.loss` is tiled.

        Its logits are then made when they are first looked at. Raises: what the model raises.
        """
        return self._run(arguments, None)

    def forward_shared(self, step: SharedStep) -> Any:
        """As `forward`, of a step of several ranks: `.loss` is that of all, gradients or not.

        Its gradient is scaled as the ranks say. Raises: UnsupportedModel, if it cannot be tiled.
        """
        return self._run(step.arguments, step)

    def _run(self, arguments: dict[str, Any], shared: SharedStep | None) -> Any:
        self.in_backward, self.held_bytes = False, 0
        if not asks_for_loss(arguments) or not (torch.is_grad_enabled() or shared):
            return self._forward(**arguments)
        self.why_whole = None
        decoder, decoded = run_decoder(
            self._model, self._decoder, lambda: self._forward(**arguments)
        )
        if decoder is None:
            self._say("it does not call its decoder as a module")
            return decoded
        tail = Tail(self._model, decoder, self._head_now(), self._forward)
        if self._template is None and self.assumed is None:
            self._template = template_of(decoder, decoded)
        try:
            return self._tiled(tail, arguments, decoded, shared)
        except LossIsWhole as found:
            if shared is not None and shared.num_items is not None:
                raise UnsupportedModel(
                    f"the loss cannot be shared by ranks, for it is not tiled: {found}; call the "
                    "model without labels, or wrap it without mesh"
                ) from found
            self._say(str(found))
        return tail.run(decoded, arguments)

    def run_decoder(self, arguments: dict[str, Any]) -> tuple[nn.Module | None, Any]:
        """Run up to the end of the decoder, for `learn_decoder`."""
        return run_decoder(self._model, self._decoder, lambda: self._forward(**arguments))

    def learn_decoder(self, decoder: nn.Module | None, decoded: Any) -> None:
        """Learn what the decoder gives; `why_whole` says what is not as it must be."""
        self._template = None if decoder is None else template_of(decoder, decoded)
        if decoder is None:
            self.why_whole = "it does not call its decoder as a module"
        elif self._template is None:
            self.why_whole = "its decoder gives no hidden states [batch, tokens, hidden]"

    def prepare(self, arguments: dict[str, Any]) -> None:
        """Prove what such a call needs: before its step, whose memory is planned, begins."""
        self.will_be_whole = False
        wanted = asks_for_loss(arguments) and torch.is_grad_enabled() and self.assumed is None
        if not wanted or self._template is None:
            return
        decoder, decoded = self._template
        tail = Tail(self._model, decoder, self._head_now(), self._forward)
        if tail.why_hooked() is not None:
            self.will_be_whole = True
        elif not tail.is_hooked:  # else what the head needs is there only while it is called
            try:
                self._way(tail, arguments, decoded, made_up_like(tail, decoded))
            except LossIsWhole as found:
                self.will_be_whole, self.why_whole = True, str(found)

    def _tiled(
        self,
        tail: Tail,
        arguments: dict[str, Any],
        decoded: Any,
        shared: SharedStep | None,
    ) -> Any:
        hooked, hidden = tail.why_hooked(), hidden_of(decoded)
        if hooked is not None:
            raise LossIsWhole(hooked)
        if hidden is None:
            raise LossIsWhole("its decoder gives no hidden states [batch, tokens, hidden]")
        hidden = kept(hidden, arguments)
        passes: list[LossPass] = []

        def run(hidden: torch.Tensor) -> torch.Tensor:
            way = self._way(tail, arguments, decoded, hidden)
            num_items = None if shared is None else shared.num_items
            call = LossCall(
                arguments=arguments, tokens=hidden.shape[1], way=way, num_items=num_items
            )
            self.in_backward = computes_in_float16(tail, hidden)
            loss_pass = LossPass(tail, call, decoded, self.tile_tokens, self.observer)
            if self.most_tiles is not None:
                loss_pass.leave_out_all_but(self.most_tiles)
            passes.append(loss_pass)
            return loss_pass.apply(hidden) if torch.is_grad_enabled() else loss_pass.value(hidden)

        loss = tail.in_one_call(hidden, run)
        if shared is not None:
            loss = shared.loss(loss)
        logits = Logits(_maker_of_logits(tail, arguments, decoded, hidden.device.type))
        self.held_bytes = hidden.nbytes
        if loss.requires_grad:
            # When backward begins, memory is planned without the hidden states.
            loss.register_hook(_closer(logits))  # type: ignore[no-untyped-call]
        return with_loss(passes[0].output, loss, logits)

    def _way(
        self, tail: Tail, arguments: dict[str, Any], decoded: Any, hidden: torch.Tensor
    ) -> Way:
        """How this call's tiles add up, as proved. Raises: LossIsWhole."""
        if self.assumed is not None:
            return self.assumed
        key = what_it_rests_on(tail, arguments)
        found = self._proofs.get(key)
        if found is None:
            if len(self._proofs) == _MOST_PROOFS:
                self._proofs.clear()
            found = self._proofs[key] = find_way(tail, arguments, decoded, hidden)
        if isinstance(found, LossIsWhole):
            raise LossIsWhole(*found.args)
        return found

    def _head_now(self) -> nn.Module:
        """Adapters and resized embeddings put another head in place after `wrap`."""
        get_head = getattr(self._model, "get_output_embeddings", None)
        head = None if get_head is None else get_head()
        return head if isinstance(head, nn.Module) else self._head

    def _say(self, why: str) -> None:
        self.why_whole = why
        if why and not self.quiet and why not in self._said:
            self._said.add(why)
            warnings.warn(
                f"{type(self._model).__name__}: the loss of this call is not tiled: {why}",
                stacklevel=4,
            )


def _maker_of_logits(
    tail: Tail, arguments: dict[str, Any], decoded: Any, device_type: str
) -> Callable[[], torch.Tensor]:
    ambient = Ambient.current(device_type)

    def make() -> torch.Tensor:
        with ambient.restored():
            output = tail.run(decoded, without_labels(arguments))
        logits: torch.Tensor = output[0] if isinstance(output, tuple) else output.logits
        return logits

    return make


def _closer(logits: Logits) -> Callable[[torch.Tensor], None]:
    """A hook of the loss. It does not hold the logits: who keeps a loss keeps no hidden states."""
    held = weakref.ref(logits)

    def close(_: torch.Tensor) -> None:
        still_held = held()
        if still_held is not None:
            still_held.close()

    unserializable_hook(close)  # type: ignore[no-untyped-call]  # no warning by deepcopy or pickle
    return close


def assumed_loss(parts: ModelParts) -> TiledLoss:
    """The model's loss by tiles, for steps without values, on which nothing can be proved."""
    tiled = TiledLoss(parts.causal_lm, parts.decoder, parts.head)
    # The way of Transformers' causal LMs.
    tiled.assumed = WAYS[0]
    return tiled


def probe_loss(
    parts: ModelParts,
    device: Device,
    forward: Callable[..., Any] | None = None,
    seen: tuple[nn.Module, Any] | None = None,
) -> TiledLoss:
    """The model's loss by tiles, tried once: `why_whole` says why not. The model is as it was.

    forward: the causal LM's own, where another one stands in its place. seen: the model's decoder
    and what it gave in eval mode; None to run it for that.
    """
    tokens = min(parts.probe_tokens(), _PROBE_TOKENS)
    tiled = TiledLoss(parts.causal_lm, parts.decoder, parts.head, forward)
    if not parts.predicts_tokens:
        return tiled  # whatever the loss is, it is not of tokens; one that is asked for runs whole
    tiled.tile_tokens, tiled.quiet = max(tokens // 3, 1), True
    ids = probe_ids(parts, tokens, device)
    options = {"use_cache": False} if "use_cache" in Signature(parts.causal_lm.forward) else {}
    arguments: dict[str, Any] = {"input_ids": ids, "labels": ids, **options}
    kept = kept_model(parts.causal_lm, parts.blocks)
    with kept, preserved_rng(device.generators), torch.enable_grad():
        outside = parts.sharded_outside
        with evaluating(parts.causal_lm), whole(outside):
            tiled.learn_decoder(*(seen or tiled.run_decoder(arguments)))
        with whole(outside):
            tiled.prepare(arguments)  # in the mode that the model is in, as in its first step
    # A `LossIsWhole` without a reason: there was no loss to tile.
    if tiled.why_whole == "":
        tiled.why_whole = "it returns none"
    tiled.quiet = False
    return tiled
