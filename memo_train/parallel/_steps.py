"""A step of a wrapped model that several ranks take together.

Before anything of it, the ranks compare what they were called with. Then each runs its own tokens;
attention meets in `_ulysses`, and the loss here.

**Scale.** The loss that a rank's forward returns is that of all ranks: the mean over all labels of
the group that count (or their sum over `num_items_in_batch`). Its backward multiplies by the number
of ranks, here in `_LossOfAll` and nowhere else. So a *mean* of gradients over the ranks, as DDP,
FSDP2 and ZeRO take it over all ranks alike, is the gradient of that loss.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from memo_planner import Exchange
from memo_train.errors import InvalidInput, UnsupportedModel
from memo_train.parallel._batch import IGNORE_INDEX
from memo_train.parallel._group import Rehearsal, SequenceGroup
from memo_train.parallel._link import link_between
from memo_train.parallel._masks import WholeSequences, mask_makers, whole_masks
from memo_train.parallel._proof import prove_shared
from memo_train.parallel._ring import Ring
from memo_train.parallel._ulysses import SharedTokens, Ulysses, check_heads, divides
from memo_train.runtime import (
    Ranks,
    SharedAttention,
    SharedStep,
    attention_shared_by,
    configs_of,
    deepspeed_ulysses_of,
)

_BY_LENGTH = ("dynamic", "longrope")
"""Kinds of rotary embedding whose frequencies hang on the longest position at hand."""


class SharedSteps(Ranks):
    """The steps of `model`, a causal LM, shared by the ranks of `group`. sp: as in `wrap`.

    deepspeed: the `UlyssesSPAttentionHF` whose exchanges these are in the place of. Then the loss
    is as DeepSpeed has it: the model's own of this rank's labels, which the caller puts together.
    """

    def __init__(
        self, group: SequenceGroup, model: nn.Module, sp: str, deepspeed: Any | None = None
    ) -> None:
        self.group = group
        self._deepspeed = deepspeed
        self._model = model
        self._sp = sp
        self._inside = group.size
        self._makers = mask_makers(model)
        self._rehearsed = _Rehearsed(group=Rehearsal(group), tokens=1)
        self._bytes_per_s: float | None = None

    def check_model(self, num_heads: set[tuple[int, ...]]) -> None:
        """Refuse a model that ranks cannot share. num_heads: of q, k and v at its cuts.

        Raises: UnsupportedModel.
        """
        name = type(self._model).__name__
        self._choose_way(num_heads)
        if "position_ids" not in inspect.signature(self._model.forward).parameters:
            raise UnsupportedModel(
                f"{name}.forward takes no position_ids, so its positions would begin anew on each "
                "rank; give it position_ids [batch, tokens], or wrap it without mesh"
            )
        kinds = {kind for config in configs_of(self._model) for kind in _rotary_kinds(config)}
        by_length = kinds.intersection(_BY_LENGTH)
        if by_length:
            raise UnsupportedModel(
                f"{name} has a rotary embedding of the kind {sorted(by_length)[0]!r}, which "
                "changes with the longest position, and each rank sees another; wrap it without "
                "mesh"
            )
        if _is_transformers(self._model) and not self._makers:
            raise UnsupportedModel(
                f"{name} makes its attention masks without transformers.masking_utils, so they "
                "would be of one rank's tokens; wrap it without mesh"
            )

    def _choose_way(self, num_heads: set[tuple[int, ...]]) -> None:
        """How many ranks exchange tokens for heads, inside a ring of so many places as that needs.

        Raises: UnsupportedModel.
        """
        size, on_gpu = self.group.size, next(self._model.parameters()).device.type != "cpu"
        fitting = [n for n in range(1, size + 1) if size % n == 0 and self._fit(num_heads, n)]
        if self._sp == "ulysses" or (self._sp == "auto" and on_gpu and self.group.inside is None):
            self._inside = size
        elif self._sp == "ring":
            self._inside = 1
        else:
            self._inside = self.group.inside or fitting[-1]
        for heads in sorted(num_heads):
            check_heads(heads, self._inside)
        if on_gpu and self._is_ring:
            raise UnsupportedModel(
                'a ring has a kernel for CPUs only so far; use sp="ulysses", with ranks that '
                "divide the heads"
            )

    @property
    def _is_ring(self) -> bool:
        return self._sp == "ring" or self._inside < self.group.size

    def _fit(self, num_heads: set[tuple[int, ...]], num_ranks: int) -> bool:
        return all(divides(num_ranks, heads) for heads in num_heads)

    def prove(self, forward: Callable[..., Any], ids: torch.Tensor) -> None:
        """See that parts of a sequence give what the whole does, alone; as `prove_shared`.

        Raises: UnsupportedModel.
        """

        def masks(positions: torch.Tensor) -> AbstractContextManager[None]:
            return whole_masks(
                self._makers, WholeSequences(positions=positions, attention_mask=None)
            )

        prove_shared(forward, ids, masks, by_ring=self._is_ring)

    def begin(self, arguments: dict[str, Any]) -> SharedStep | None:
        """As `Ranks.begin`."""
        own = self._deepspeed
        if own is not None and own.disable_in_eval and not self._model.training:
            return None
        self.group.begin_step()
        num_counted = self.group.agree(lambda: self._facts(arguments))
        positions = self._whole_positions(arguments)
        if own is None:
            return self._step(self.group, arguments, positions, sum(num_counted))
        arguments = arguments | {"attention_mask": self._whole_mask(arguments)}
        return self._step(self.group, arguments, positions, None)

    def _facts(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """As `_facts` of the module. Raises: InvalidInput, UnsupportedModel."""
        if deepspeed_ulysses_of(self._model) is not self._deepspeed:
            raise UnsupportedModel(
                "DeepSpeed's UlyssesSPAttentionHF was registered with Transformers after wrap, or "
                "another one than at wrap; call memo_train.unwrap(model), and wrap it without mesh "
                "after register_with_transformers (with Accelerate: after prepare)"
            )
        if self._deepspeed is None:
            return _facts(arguments, self.group.size)
        return _facts_of_own_loss(arguments), 0

    def rehearse(self, arguments: dict[str, Any]) -> SharedStep:
        """As `Ranks.rehearse`: of this rank's own range of a sequence without packed documents."""
        alone, labels = Rehearsal(self.group), arguments["labels"]
        batch, mine = labels.shape
        self._rehearsed = _Rehearsed(group=alone, tokens=mine)
        total = mine * alone.size
        positions = torch.arange(total, device=labels.device).expand(batch, -1)
        own = positions[:, alone.rank * mine :][:, :mine]
        arguments = arguments | {"position_ids": own, "shift_labels": labels}
        if arguments.get("attention_mask") is not None:
            mask = arguments["attention_mask"]
            arguments["attention_mask"] = F.pad(mask, (total - mine, 0), value=1)
        counted = None if self._deepspeed is not None else alone.size * labels.numel()
        return self._step(alone, arguments, positions, counted)

    @property
    def num_ranks(self) -> int:
        """As `Ranks.num_ranks`."""
        return self.group.size

    @property
    def way(self) -> str:
        """As `Ranks.way`."""
        how = "ring" if self._is_ring else "ulysses"
        if self._is_ring and self._inside > 1:
            how = f"ring of {self.num_ring_ranks} x ulysses of {self._inside}"
        return f"{self.group.size} ranks, {how}"

    @property
    def num_ring_ranks(self) -> int:
        """As `Ranks.num_ring_ranks`."""
        return self.group.size // self._inside

    def exchange(self) -> Exchange:
        """As `Ranks.exchange`."""
        seen, tokens = self._rehearsed, self._rehearsed.tokens
        behind = seen.group.sent_bytes - seen.forward_bytes
        return Exchange(
            way=self.way,
            forward_bytes_per_token=seen.forward_bytes / tokens,
            backward_bytes_per_token=behind / tokens,
            bytes_per_s=self.bytes_per_s,
        )

    @property
    def bytes_per_s(self) -> float:
        """As `Ranks.bytes_per_s`."""
        assert self._bytes_per_s is not None, "the link between ranks is measured first"
        return self._bytes_per_s

    def measure_link(self) -> None:
        """As `Ranks.measure_link`."""
        device = next(self._model.parameters()).device
        self._bytes_per_s = link_between(self.group, device)

    def _step(
        self,
        group: SequenceGroup,
        arguments: dict[str, Any],
        positions: torch.Tensor,
        num_items: int | None,
    ) -> SharedStep:
        """A step whose attention and loss are those of `group`."""
        arguments = dict(arguments)
        # The model makes its masks of all tokens, so it needs none of one rank's.
        mask = arguments.pop("attention_mask", None)
        total = positions.shape[1]
        tokens = SharedTokens(mine=total // group.size, total=total, positions=positions)
        whole = WholeSequences(positions=positions, attention_mask=mask)
        return SharedStep(
            arguments=arguments,
            masked=mask is not None or bool((positions.diff(dim=-1) != 1).any()),
            num_items=num_items,
            forward=partial(self._forward, group, tokens, whole),
            loss=_as_it_is if num_items is None else partial(_loss_of_all, group),
            failed=group.note_failure,
        )

    @contextmanager
    def _forward(
        self, group: SequenceGroup, tokens: SharedTokens, whole: WholeSequences
    ) -> Iterator[None]:
        attention: SharedAttention = Ulysses(group, tokens)
        if self._is_ring:
            attention = Ring(group, tokens, self._inside)
        with attention_shared_by(attention), whole_masks(self._makers, whole):
            yield
        if group is self._rehearsed.group:
            self._rehearsed.forward_bytes = self._rehearsed.group.sent_bytes

    def _whole_positions(self, arguments: dict[str, Any]) -> torch.Tensor:
        """The positions of all ranks' tokens, [batch, tokens]. A collective call."""
        tokens = _tokens_of(arguments)
        mine = arguments["position_ids"].expand(tokens.shape[0], -1).contiguous()
        return torch.cat(self.group.gather_tensors(mine), dim=1)

    def _whole_mask(self, arguments: dict[str, Any]) -> torch.Tensor | None:
        """The mask of all ranks' tokens, of each rank's own; None without any padding. Collective.

        Only a mask of tokens: DeepSpeed throws one of pairs away, and all are made anew here.
        """
        mask = arguments.get("attention_mask")
        if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            return None
        whole = torch.cat(self.group.gather_tensors(mask.contiguous()), dim=1)
        return None if bool(whole.all()) else whole


@dataclass(kw_only=True)
class _Rehearsed:
    """The step rehearsed last. tokens: of each sequence. forward_bytes: sent to others in it."""

    group: Rehearsal
    tokens: int
    forward_bytes: int = 0


def _as_it_is(loss: torch.Tensor) -> torch.Tensor:
    return loss


def _loss_of_all(group: SequenceGroup, share: torch.Tensor) -> torch.Tensor:
    """As `SharedStep.loss`. Its gradient by `share` is the number of ranks."""
    loss: torch.Tensor = _LossOfAll.apply(share, group)  # type: ignore[no-untyped-call]
    return loss


class _LossOfAll(torch.autograd.Function):
    """The sum of all ranks' shares; backward multiplies by the number of ranks."""

    @staticmethod
    def forward(ctx: Any, share: torch.Tensor, group: SequenceGroup) -> torch.Tensor:
        ctx.num_ranks = group.size
        # In float64, so that the number of ranks hardly shows in the sum.
        total = share.detach().double()
        group.add(total)
        return total.to(share.dtype)

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor, None]:
        return scale * ctx.num_ranks, None


def _tokens_of(arguments: dict[str, Any]) -> torch.Tensor:
    given = [arguments.get(name) for name in ("input_ids", "inputs_embeds")]
    tokens = next((t for t in given if isinstance(t, torch.Tensor) and t.dim() >= 2), None)
    if tokens is None:
        raise InvalidInput("a model that ranks share needs input_ids [batch, tokens]")
    return tokens


def _facts(arguments: dict[str, Any], num_ranks: int) -> tuple[dict[str, Any], int]:
    """What must be equal on all ranks, and how many labels count on this one."""
    facts = _facts_of_tokens(arguments)
    labels = arguments.get("shift_labels")
    if arguments.get("labels") is not None and labels is None:
        raise InvalidInput(
            "a model that ranks share needs shift_labels beside labels: a rank's last token "
            "predicts the next rank's first; call it with memo_train.shard_batch(batch, mesh)"
        )
    ignored = arguments.get("ignore_index")
    counted = 0 if labels is None else labels.ne(IGNORE_INDEX if ignored is None else ignored).sum()
    items = arguments.get("num_items_in_batch")
    batch, tokens = _tokens_of(arguments).shape[:2]
    facts |= {
        "whether there are labels": labels is not None,
        "num_items_in_batch": None if items is None else float(items),
        "attention_mask": _fact_of_mask(arguments, (batch, tokens * num_ranks)),
    }
    return facts, int(counted)


def _facts_of_own_loss(arguments: dict[str, Any]) -> dict[str, Any]:
    """What must be equal on all ranks where each has a loss of its own."""
    mask = arguments.get("attention_mask")
    shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else None
    return _facts_of_tokens(arguments) | {"the shape of attention_mask": shape}


def _facts_of_tokens(arguments: dict[str, Any]) -> dict[str, Any]:
    batch, tokens = _tokens_of(arguments).shape[:2]
    positions = arguments.get("position_ids")
    if not isinstance(positions, torch.Tensor) or positions.shape not in {
        (batch, tokens),
        (1, tokens),
    }:
        shape = tuple(positions.shape) if isinstance(positions, torch.Tensor) else "none"
        raise InvalidInput(
            f"a model that ranks share needs position_ids [{batch}, {tokens}], counted in the "
            f"whole sequence, got {shape}; call it with memo_train.shard_batch(batch, mesh)"
        )
    keep = arguments.get("logits_to_keep")
    if isinstance(keep, torch.Tensor) or keep:
        raise InvalidInput("logits_to_keep chooses among the tokens of one rank; leave it out")
    return {
        "the number of sequences": batch,
        "the number of tokens of each rank": tokens,
        "whether gradients are wanted": torch.is_grad_enabled(),
    }


def _fact_of_mask(arguments: dict[str, Any], shape: tuple[int, int]) -> str | None:
    mask = arguments.get("attention_mask")
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.shape != shape:
        given = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise InvalidInput(
            f"attention_mask must be of the tokens of all ranks, {shape}, got {given}; call the "
            "model with memo_train.shard_batch(batch, mesh)"
        )
    return f"{int(mask.sum()):,} of {mask.numel():,} tokens"


def _rotary_kinds(config: Any) -> Iterator[str]:
    """The kinds of rotary embedding that a configuration names, for all blocks or for each kind."""
    for attribute in ("rope_parameters", "rope_scaling"):
        found = getattr(config, attribute, None)
        settings = found if isinstance(found, dict) else {}
        for each in (settings, *(v for v in settings.values() if isinstance(v, dict))):
            kinds = (each.get(key) for key in ("rope_type", "type"))
            yield from (kind for kind in kinds if isinstance(kind, str))


def _is_transformers(model: nn.Module) -> bool:
    modeling: Any = sys.modules.get("transformers.modeling_utils")
    return modeling is not None and isinstance(model, modeling.PreTrainedModel)
