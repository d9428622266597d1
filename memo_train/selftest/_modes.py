"""The small Llama of the self-test and the ways in which `wrap` runs its steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import memo_train
from memo_train.device import CudaUnavailable
from memo_train.errors import UnsupportedModel
from memo_train.model import Llama, LlamaConfig
from memo_train.selftest._place import Place
from memo_train.selftest._scenario import NotSupported, ScenarioFailed

MODES: dict[str, float | None] = {"keep": None, "swap": 1.0, "recompute": 0.0}
"""`wrap`'s alpha of each; without one the planner chooses, and keeps what there is room for."""

_VOCAB_SIZE = 256
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """A step of one sequence of `tokens`, and the Llama that makes it.

    tile_tokens: None leaves them to the planner. dtype: a torch dtype's name.
    """

    tokens: int
    hidden_size: int
    num_blocks: int
    num_heads: int
    tile_tokens: int | None = None
    dtype: str = "float32"


SMALL = StepSize(tokens=512, tile_tokens=128, hidden_size=64, num_blocks=2, num_heads=4)


def llama_step(place: Place, size: StepSize = SMALL) -> tuple[nn.Module, dict[str, Any]]:
    """The same model and batch each time, on the place."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCAB_SIZE,
        hidden_size=size.hidden_size,
        # Near Llama's 8/3, and whole for each size here.
        ffn_size=5 * size.hidden_size // 2,
        num_blocks=size.num_blocks,
        num_heads=size.num_heads,
        num_kv_heads=size.num_heads // 2,
    )
    model = Llama(config).to(place.torch_device, getattr(torch, size.dtype))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, _VOCAB_SIZE, (1, size.tokens), generator=generator)
    ids = ids.to(place.torch_device)
    return model, {"input_ids": ids, "labels": ids}


@contextmanager
def wrapped(
    model: nn.Module, mode: str, size: StepSize = SMALL, *, device_bytes: int | None = None
) -> Iterator[nn.Module]:
    """`model` under `wrap` in one of `MODES`, with a limit if one is given.

    Raises: NotSupported if `wrap` refuses the model here.
    """
    try:
        memo_train.wrap(
            model,
            seq_len=size.tokens,
            device_gib=None if device_bytes is None else device_bytes / _GIB,
            alpha=MODES[mode],
            tile_tokens=size.tile_tokens,
        )
    except (UnsupportedModel, CudaUnavailable) as error:
        raise NotSupported(f"wrap refuses the model here: {error}") from error
    try:
        yield model
    finally:
        memo_train.unwrap(model)


def check_mode(mode: str) -> dict[str, int]:
    """Tiles by policy and copied bytes since `reset_stats`.

    Raises: ScenarioFailed if they are not what the mode asks for.
    """
    stats = memo_train.stats()
    figures = {
        "keep_tiles": stats.keep_tiles,
        "swap_tiles": stats.swap_tiles,
        "recompute_tiles": stats.recompute_tiles,
        "d2h_bytes": stats.d2h_bytes,
        "h2d_bytes": stats.h2d_bytes,
    }
    if not figures[f"{mode}_tiles"]:
        raise ScenarioFailed(f"no tile was run as {mode}", figures)
    if mode == "swap" and not (stats.d2h_bytes and stats.h2d_bytes):
        raise ScenarioFailed("swapped tiles made no copies", figures)
    return figures
