"""Finds out whether a model's loss may be computed by tiles: both ways are tried and compared."""

from __future__ import annotations

import torch

from memo_train.device.device import Device
from memo_train.runtime.loss import IGNORE_INDEX, TiledLoss
from memo_train.runtime.parts import ModelParts
from memo_train.runtime.probe import NOT_RUNNABLE
from memo_train.runtime.probe_calls import evaluating, probe_ids
from memo_train.runtime.rng import preserved_rng

_LOSS_TOLERANCE = 1e-3


def why_loss_is_whole(parts: ModelParts, device: Device) -> str | None:
    """Why the loss cannot be computed by tiles, or None if it can. The model is left as it was."""
    tokens = parts.probe_tokens()
    tiled = TiledLoss(parts.causal_lm, parts.decoder, parts.head)
    tiled.tile_tokens = max(tokens // 3, 1)
    ids = probe_ids(parts, tokens, device)
    labels = ids.clone()
    labels[:, 3:6] = IGNORE_INDEX
    with evaluating(parts.causal_lm), preserved_rng(device.generators):
        with torch.no_grad():
            whole = float(parts.run(ids, labels).loss)
        try:
            with torch.enable_grad():
                loss: torch.Tensor = tiled.forward(input_ids=ids, labels=labels).loss
        except NOT_RUNNABLE as error:
            return f"the head does not run on a part of the tokens ({error})"
    by_tiles = float(loss.detach())
    if abs(by_tiles - whole) <= _LOSS_TOLERANCE * abs(whole):
        return None
    return f"its loss by tiles is {by_tiles:.6g}, whole {whole:.6g}"
