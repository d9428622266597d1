"""One call that asks for a loss, cut into tiles of tokens.

Which labels belong to which hidden states, what the model is called with for each tile, and how
the losses of tiles add up to the loss of all tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from memo_train.runtime._tile import tile_of

IGNORE_INDEX = -100
_LABELS = ("labels", "shift_labels")


class LossIsWhole(Exception):
    """A loss that is not taken by tiles, and why; without a reason there is nothing to say."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a model's losses of tiles become its loss of all tokens.

    shifts: labels are moved by one position first, and the model takes them as `shift_labels`.
    by_count: the loss is a mean over the labels that count, so tiles are weighted by how many they
        have. Else it is divided by `num_items_in_batch`, the same for every tile.
    """

    shifts: bool
    by_count: bool


WAYS = tuple(Way(shifts=s, by_count=c) for s in (True, False) for c in (False, True))
"""Transformers' causal LMs of today first; BART and its kin take unshifted labels and a mean."""


def asks_for_loss(arguments: dict[str, Any]) -> bool:
    """Whether a call of the model has labels."""
    return any(arguments.get(name) is not None for name in _LABELS)


def kept(hidden: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
    """The hidden states for which `logits_to_keep` asks. Raises: LossIsWhole."""
    keep = arguments.get("logits_to_keep")
    if isinstance(keep, torch.Tensor) and keep.dim() == 1:
        return hidden[:, keep]
    if isinstance(keep, int):
        return hidden[:, -keep:] if keep else hidden
    if keep is not None:
        raise LossIsWhole("logits_to_keep chooses other positions in every sequence")
    return hidden


@dataclass(frozen=True, kw_only=True)
class LossCall:
    """A call of the model, `arguments` by name, whose logits are for `tokens` positions.

    num_items: the labels that count, where other ranks have some of them.
    """

    arguments: dict[str, Any]
    tokens: int
    way: Way
    num_items: int | None = None

    def __post_init__(self) -> None:
        labels = self._labels
        if labels is None or labels.dim() != 2 or labels.shape[1] != self.tokens:
            shape = None if labels is None else list(labels.shape)
            raise LossIsWhole(f"labels {shape} for logits of {self.tokens:,} positions")

    @cached_property
    def _labels(self) -> torch.Tensor | None:
        """[batch, tokens]: what each position must predict, if the way shifts; or as given."""
        labels, shifted = (self.arguments.get(name) for name in _LABELS)
        if not self.way.shifts:
            return labels if shifted is None else None
        if shifted is None and labels is not None:
            # As Transformers' own loss shifts them.
            shifted = F.pad(labels, (0, 1), value=self._ignore_index)[..., 1:]
        return shifted

    @property
    def _ignore_index(self) -> int:
        given = self.arguments.get("ignore_index")
        return IGNORE_INDEX if given is None else given

    def spans(self, tile_tokens: int) -> tuple[range, ...]:
        """Tiles of at most `tile_tokens`, all equally long but for one token.

        A short last one would be computed by the less exact kernels of one-row products.
        """
        num_tiles = -(-self.tokens // tile_tokens)
        ends = [self.tokens * index // num_tiles for index in range(num_tiles + 1)]
        return tuple(range(*pair) for pair in itertools.pairwise(ends))

    def of_tile(self, span: range) -> dict[str, Any]:
        """The arguments of the model's call for one tile."""
        assert self._labels is not None
        # A loss function may view its labels flat.
        labels = tile_of(self._labels, span).contiguous()
        if self.is_empty:
            labels = torch.zeros_like(labels)
        arguments = self.arguments | {"labels": labels}
        arguments.pop("logits_to_keep", None)
        # Both: models look at `labels` to see whether a loss is wanted at all.
        if self.way.shifts:
            arguments["shift_labels"] = labels
        if not self.way.by_count and arguments.get("num_items_in_batch") is None:
            # Else each tile would give a mean over its own labels.
            arguments["num_items_in_batch"] = self._num_items
        return arguments

    @cached_property
    def is_empty(self) -> bool:
        """Whether other ranks have all the labels of a mean that count.

        Then tiles run on made-up labels with weight 0: a mean over no labels is not a number, and
        on every rank parameters must get a gradient.
        """
        if self.num_items is None or not self.way.by_count:
            return False
        assert self._labels is not None
        return self.num_items > 0 and not bool(self._labels.ne(self._ignore_index).any())

    @cached_property
    def _num_items(self) -> torch.Tensor:
        assert self._labels is not None
        if self.num_items is not None:
            return torch.tensor(self.num_items, device=self._labels.device)
        return self._labels.ne(self._ignore_index).sum()

    def weights(self, spans: tuple[range, ...]) -> Iterator[float]:
        """What each tile's loss is multiplied by; 0: it is not to be asked for."""
        if not self.way.by_count:
            yield from (1.0,) * len(spans)
            return
        assert self._labels is not None
        # One copy to the host for all tiles.
        counted = self._labels.ne(self._ignore_index).sum(0).tolist()
        total = sum(counted) if self.num_items is None else self.num_items
        for span in spans:
            count = sum(counted[span.start : span.stop])
            # As a mean over no labels is.
            yield count / total if total else float("nan")


def without_labels(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call that asks for the same logits and no loss."""
    asked = {*_LABELS, "num_items_in_batch", "ignore_index"}
    return {name: value for name, value in arguments.items() if name not in asked}
