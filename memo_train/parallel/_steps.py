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
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from memo_train.errors import InvalidInput, UnsupportedModel
from memo_train.parallel._batch import IGNORE_INDEX
from memo_train.parallel._group import SequenceGroup
from memo_train.parallel._masks import WholeSequences, mask_makers, whole_masks
from memo_train.parallel._proof import prove_shared
from memo_train.parallel._ring import Ring
from memo_train.parallel._ulysses import SharedTokens, Ulysses, check_heads, divides
from memo_train.runtime import Ranks, SharedStep, attention_shared_by, configs_of

_BY_LENGTH = ("dynamic", "longrope")
"""Kinds of rotary embedding whose frequencies hang on the longest position at hand."""


class SharedSteps(Ranks):
    """The steps of `model`, a causal LM, shared by the ranks of `group`. sp: as in `wrap`."""

    def __init__(self, group: SequenceGroup, model: nn.Module, sp: str) -> None:
        self.group = group
        self._model = model
        self._sp = sp
        self._makers = mask_makers(model)
        self._tokens: SharedTokens | None = None
        self._attention_mask: torch.Tensor | None = None

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
        if self._sp == "auto":
            fit = all(divides(self.group.size, heads) for heads in num_heads)
            on_gpu = next(self._model.parameters()).device.type != "cpu"
            self._sp = "ulysses" if fit or on_gpu else "ring"
        if self._sp == "ulysses":
            for heads in sorted(num_heads):
                check_heads(heads, self.group.size)
        elif next(self._model.parameters()).device.type != "cpu":
            raise UnsupportedModel(
                'sp="ring" has a kernel for CPUs only so far; use sp="ulysses", with ranks that '
                "divide the heads"
            )

    def prove(self, forward: Callable[..., Any], ids: torch.Tensor) -> None:
        """See that parts of a sequence give what the whole does, alone; as `prove_shared`.

        Raises: UnsupportedModel.
        """

        def masks(positions: torch.Tensor) -> AbstractContextManager[None]:
            return whole_masks(
                self._makers, WholeSequences(positions=positions, attention_mask=None)
            )

        prove_shared(forward, ids, masks, by_ring=self._sp == "ring")

    def begin(self, arguments: dict[str, Any]) -> SharedStep:
        """As `Ranks.begin`."""
        num_counted = self.group.agree(lambda: _facts(arguments, self.group.size))
        positions = self._whole_positions(arguments)
        arguments = dict(arguments)
        # The model makes its masks of all tokens, so it needs none of one rank's.
        mask = arguments.pop("attention_mask", None)
        total = positions.shape[1]
        self._tokens = SharedTokens(mine=total // self.group.size, total=total, positions=positions)
        self._attention_mask = mask
        masked = mask is not None or bool((positions.diff(dim=-1) != 1).any())
        return SharedStep(arguments=arguments, masked=masked, num_items=sum(num_counted))

    @contextmanager
    def forward(self) -> Iterator[None]:
        """As `Ranks.forward`."""
        tokens, self._tokens = self._tokens, None
        assert tokens is not None
        whole = WholeSequences(positions=tokens.positions, attention_mask=self._attention_mask)
        attention = (Ring if self._sp == "ring" else Ulysses)(self.group, tokens)
        with attention_shared_by(attention), whole_masks(self._makers, whole):
            yield

    def loss(self, share: torch.Tensor) -> torch.Tensor:
        """As `Ranks.loss`. Its gradient by `share` is the number of ranks."""
        loss: torch.Tensor = _LossOfAll.apply(share, self.group)  # type: ignore[no-untyped-call]
        return loss

    def _whole_positions(self, arguments: dict[str, Any]) -> torch.Tensor:
        """The positions of all ranks' tokens, [batch, tokens]. A collective call."""
        tokens = _tokens_of(arguments)
        mine = arguments["position_ids"].expand(tokens.shape[0], -1).contiguous()
        every = [torch.empty_like(mine) for _ in range(self.group.size)]
        dist.all_gather(every, mine, group=self.group.group)
        return torch.cat(every, dim=1)


class _LossOfAll(torch.autograd.Function):
    """The sum of all ranks' shares; backward multiplies by the number of ranks."""

    @staticmethod
    def forward(ctx: Any, share: torch.Tensor, group: SequenceGroup) -> torch.Tensor:
        ctx.num_ranks = group.size
        # In float64, so that the number of ranks hardly shows in the sum.
        total = share.detach().double()
        dist.all_reduce(total, group=group.group)
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
    batch, tokens = _tokens_of(arguments).shape[:2]
    positions, labels = arguments.get("position_ids"), arguments.get("shift_labels")
    if not isinstance(positions, torch.Tensor) or positions.shape not in {
        (batch, tokens),
        (1, tokens),
    }:
        shape = tuple(positions.shape) if isinstance(positions, torch.Tensor) else "none"
        raise InvalidInput(
            f"a model that ranks share needs position_ids [{batch}, {tokens}], counted in the "
            f"whole sequence, got {shape}; call it with memo_train.shard_batch(batch, mesh)"
        )
    if arguments.get("labels") is not None and labels is None:
        raise InvalidInput(
            "a model that ranks share needs shift_labels beside labels: a rank's last token "
            "predicts the next rank's first; call it with memo_train.shard_batch(batch, mesh)"
        )
    keep = arguments.get("logits_to_keep")
    if isinstance(keep, torch.Tensor) or keep:
        raise InvalidInput("logits_to_keep chooses among the tokens of one rank; leave it out")
    ignored = arguments.get("ignore_index")
    counted = 0 if labels is None else labels.ne(IGNORE_INDEX if ignored is None else ignored).sum()
    items = arguments.get("num_items_in_batch")
    facts = {
        "the number of sequences": batch,
        "the number of tokens of each rank": tokens,
        "whether there are labels": labels is not None,
        "whether gradients are wanted": torch.is_grad_enabled(),
        "num_items_in_batch": None if items is None else float(items),
        "attention_mask": _fact_of_mask(arguments, (batch, tokens * num_ranks)),
    }
    return facts, int(counted)


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
    """The kinds of rotary embedding that a configuration names, for all layers or for each kind."""
    for attribute in ("rope_parameters", "rope_scaling"):
        found = getattr(config, attribute, None)
        settings = found if isinstance(found, dict) else {}
        for each in (settings, *(v for v in settings.values() if isinstance(v, dict))):
            kinds = (each.get(key) for key in ("rope_type", "type"))
            yield from (kind for kind in kinds if isinstance(kind, str))


def _is_transformers(model: nn.Module) -> bool:
    modeling: Any = sys.modules.get("transformers.modeling_utils")
    return modeling is not None and isinstance(model, modeling.PreTrainedModel)
