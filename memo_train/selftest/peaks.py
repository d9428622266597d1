"""The planned peak of device memory beside what a step really used.

Numerics level 2: counts. The step has AdamW's moments, as the plan does.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

import memo_train
from memo_train.selftest.memory import MemoryWatch, used_bytes
from memo_train.selftest.modes import MODES, SMALL, check_mode, llama_step, wrapped
from memo_train.selftest.place import Place
from memo_train.selftest.scenario import Figures, Scenario, ScenarioFailed
from memo_train.testing import run_step

_LIMIT_OVER_PLANNED = 1.15
"""Room for holes: the first step of a shape has no layout yet."""


def planned_peak(place: Place) -> Figures:
    """Each mode's planned peak, and the measured ones under a limit a little above it.

    Raises: ScenarioFailed if the limit was not kept.
    """
    modes = {}
    for mode in MODES:
        gc.collect()
        with place.here():
            modes[mode] = _peaks(place, mode)
    figures: Figures = {"tokens": SMALL.tokens, "modes": modes}
    for mode, peaks in modes.items():
        if peaks["device_peak_bytes"] > peaks["limit_bytes"]:
            raise ScenarioFailed(
                f"{mode}: {peaks['device_peak_bytes']:,} bytes were used, "
                f"the limit was {peaks['limit_bytes']:,}",
                figures,
            )
    return figures


def _peaks(place: Place, mode: str) -> dict[str, Any]:
    """Bytes of the second step, without what others have in use."""
    empty = used_bytes(place)
    model, batch = llama_step(place)
    with wrapped(model, mode):
        planned_bytes = memo_train.plan(model).prediction.device_peak_bytes
    limit_bytes = int(_LIMIT_OVER_PLANNED * planned_bytes)
    with wrapped(model, mode, device_bytes=limit_bytes + (empty["device"] or 0)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        run_step(model, **batch)
        optimizer.step()
        model.zero_grad(set_to_none=True)
        memo_train.memory_report(model)  # waits for the layout
        others = _others(used_bytes(place), empty, _own_bytes(model, optimizer))
        memo_train.reset_stats()
        with MemoryWatch(place) as watch:
            model(**batch).loss.backward()
        check_mode(mode)
    peaks = {
        f"{who}_peak_bytes": None if peak is None else peak - others[who]
        for who, peak in watch.peaks.items()
    }
    return {"planned_peak_bytes": planned_bytes, "limit_bytes": limit_bytes, **peaks}


def _others(
    used: dict[str, int | None], empty: dict[str, int | None], own_bytes: int
) -> dict[str, int]:
    """Bytes that are not the step's: of other models, and work spaces that libraries keep.

    Of the driver's figure only what was in use before the model was made: it counts chunks.
    """
    others = {who: (used_now or 0) - own_bytes for who, used_now in used.items()}
    return others | {"driver": empty["driver"] or 0}


def _own_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    moments = (value for state in optimizer.state.values() for value in state.values())
    return _sum_bytes([*model.parameters(), *model.buffers(), *moments])


def _sum_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


PEAK_SCENARIO = Scenario("planned peak", planned_peak)
