"""A rank's part of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh

from memo_train.errors import InvalidInput
from memo_train.parallel._group import join

IGNORE_INDEX = -100
_PADDING = {"labels": IGNORE_INDEX, "shift_labels": IGNORE_INDEX}
_BY_TOKEN = ("input_ids", "inputs_embeds", "labels", "shift_labels", "token_type_ids")


def shard_batch(batch: Mapping[str, Any], mesh: DeviceMesh) -> dict[str, Any]:
    """This rank's part of `batch`, for a model that was wrapped with the same mesh.

    batch: what the model would be called with in one process, the same on every rank of a group:
        `input_ids` [batch, tokens] int64 or `inputs_embeds` [batch, tokens, hidden]; `labels`
        [batch, tokens] int64, aligned with input_ids; `position_ids` [batch or 1, tokens];
        `attention_mask` [batch, tokens]. Other tensors are handed on if no dimension of theirs
        counts tokens.

    Every rank gets the same number of tokens: rank r of n the r-th range of ceil(tokens / n).
    Sequences that n does not divide are padded at their end, behind all tokens that attend, with
    labels of -100. Labels are shifted by one position before they are cut, so that a rank's last
    token predicts the next rank's first; the model takes them as `shift_labels`. `position_ids`
    count in the whole sequence, and are made if there are none; where they restart, a new document
    begins, as everywhere in Transformers. A learned table of positions needs room for the padding.
    `attention_mask` stays whole, and is left out where nothing is padded.

    Raises: InvalidInput, on every rank.
    """
    group = join(mesh)
    tokens = _num_tokens(batch)
    num_sequences = next(batch[n] for n in ("input_ids", "inputs_embeds") if n in batch).shape[0]
    if tokens < group.size:
        raise InvalidInput(
            f"{group.size} ranks cannot share sequences of {tokens:,} tokens; use a mesh of at "
            f"most {tokens:,} ranks"
        )
    share = -(-tokens // group.size)
    start, padding = group.rank * share, share * group.size - tokens
    whole = dict(batch)
    mask = whole.pop("attention_mask", None)
    whole["position_ids"] = _positions(whole, num_sequences, tokens, padding)
    if whole.get("labels") is not None and whole.get("shift_labels") is None:
        whole["shift_labels"] = F.pad(whole["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    part = {name: value for name, value in whole.items() if value is not None}
    for name in part:
        if name in _BY_TOKEN:
            part[name] = _padded(name, part[name], tokens, padding)
        elif name != "position_ids":
            _check_not_by_token(name, part[name], tokens)
            continue
        part[name] = part[name][:, start : start + share].contiguous()
    if mask is not None and not bool(mask.all()):
        part["attention_mask"] = F.pad(_padded("attention_mask", mask, tokens, 0), (0, padding))
    return part


def _num_tokens(batch: Mapping[str, Any]) -> int:
    given = [batch.get(name) for name in ("input_ids", "inputs_embeds")]
    first = next((t for t in given if isinstance(t, torch.Tensor) and t.dim() >= 2), None)
    if first is None:
        raise InvalidInput("a batch needs input_ids [batch, tokens], or inputs_embeds")
    return first.shape[1]


def _positions(
    batch: Mapping[str, Any], num_sequences: int, tokens: int, padding: int
) -> torch.Tensor:
    """Of all tokens, [batch, tokens + padding]; padding counts on, which begins no document."""
    given = batch.get("position_ids")
    if given is None:
        where = next(batch[n] for n in ("input_ids", "inputs_embeds") if n in batch).device
        return torch.arange(tokens + padding, device=where).expand(num_sequences, -1)
    if given.dim() != 2 or given.shape[1] != tokens or given.shape[0] not in (1, num_sequences):
        raise InvalidInput(
            f"position_ids must be [{num_sequences}, {tokens}], got {tuple(given.shape)}"
        )
    counted_on = given[:, -1:] + torch.arange(1, padding + 1, device=given.device)
    return torch.cat((given, counted_on), dim=1).expand(num_sequences, -1)


def _padded(name: str, tensor: Any, tokens: int, padding: int) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor) or tensor.dim() < 2 or tensor.shape[1] != tokens:
        shape = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise InvalidInput(f"{name} must be [batch, {tokens}] like the tokens, got {shape}")
    behind = [0, 0] * (tensor.dim() - 2) + [0, padding]
    return F.pad(tensor, behind, value=_PADDING.get(name, 0))


def _check_not_by_token(name: str, value: Any, tokens: int) -> None:
    if isinstance(value, torch.Tensor) and tokens in value.shape[1:]:
        raise InvalidInput(
            f"{name} {tuple(value.shape)} seems to have an entry for each of {tokens:,} tokens; "
            f"what can be shared is {', '.join(_BY_TOKEN)}, position_ids and attention_mask"
        )
