"""The whole self-test as one JSON object (docs/formats.md): the machine, and what came of it."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from memo_train import _core
from memo_train.device import DeviceError, load_cuda
from memo_train.device._cuda_memory import allocator_installed
from memo_train.selftest._copies import COPY_SCENARIOS, side_by_side
from memo_train.selftest._gradients import GRADIENT_SCENARIOS
from memo_train.selftest._peaks import PEAK_SCENARIO
from memo_train.selftest._place import Place, cpu_place, cuda_place
from memo_train.selftest._ranks import Ranks, link_rates
from memo_train.selftest._scenario import (
    FAILED,
    KINDS,
    Figures,
    Scenario,
    anonymous,
    kind_of,
    outcome_of,
)
from memo_train.selftest._step_times import STEP_SCENARIO

PROOFS = (*COPY_SCENARIOS, *GRADIENT_SCENARIOS, PEAK_SCENARIO)
SCENARIOS = (*PROOFS, STEP_SCENARIO)


def describe_machine() -> dict[str, Any]:
    """Facts for a report; nothing that names the machine or its user."""
    return {
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processors": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "lockable_bytes": _limit(resource.RLIMIT_MEMLOCK),
        "core_compiler": _core.COMPILER,
        "cuda": describe_cuda(),
    }


def describe_cuda() -> dict[str, Any]:
    """The CUDA device's build facts and GPUs, or why there are none."""
    try:
        module = load_cuda()
        count = module.device_count()
    except DeviceError as error:
        return {"built": None, "gpus": 0, "why": anonymous(str(error))}
    built = {"cuda": module.CUDA_VERSION, "compiler": module.COMPILER}
    facts = {"built": built, "gpus": count, "torch_has_cuda": torch.cuda.is_available()}
    if count == 0:
        facts["why"] = "this process sees no GPU"
    elif not torch.cuda.is_available():
        facts["why"] = "this build of torch does not use the GPUs that are there"
    else:
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        facts["torch_cuda"] = torch.version.cuda
        facts["names"] = [gpu.name for gpu in gpus]
        facts["memory_bytes"] = [gpu.total_memory for gpu in gpus]
        facts["allocator"] = "memo-train" if allocator_installed() else "torch"
        facts["capabilities"] = [f"{gpu.major}.{gpu.minor}" for gpu in gpus]
    return facts


def _limit(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


FORMAT, VERSION = "memo-selftest", 3

Started = Callable[[str, float], None]
"""Called with what begins, and the share of the whole that is over."""


def run_selftest(
    ranks: Ranks | None = None,
    started: Started | None = None,
    *,
    quick: bool = False,
    gpus_only: bool = False,
) -> dict[str, Any]:
    """Results of every rank and device; `passed` says that nothing failed. A collective call.

    quick: only what proves something; nothing is timed. gpus_only: nothing on the CPU device.
    """
    start_s = time.monotonic()
    ranks = Ranks() if ranks is None else ranks
    started = started or (lambda _what, _share: None)
    every = ranks.gather(_run_rank(ranks, started, quick=quick, gpus_only=gpus_only))
    counts = Counter(kind_of(outcome) for *_, outcome in outcomes(every))
    return {
        "format": FORMAT,
        "version": VERSION,
        "memo_train": version("memo-train"),
        "passed": counts[FAILED] == 0,
        "quick": quick,
        "counts": {kind: counts[kind] for kind in KINDS},
        "seconds": time.monotonic() - start_s,
        "ranks": every,
    }


def outcomes(ranks: list[dict[str, Any]]) -> list[tuple[int, str, str, str]]:
    """Rank, device, scenario and outcome of all that was run."""
    return [
        (rank["rank"], device, scenario, figures["outcome"])
        for rank in ranks
        for device, scenarios in rank["devices"].items()
        for scenario, figures in scenarios.items()
    ]


def _run_rank(ranks: Ranks, started: Started, *, quick: bool, gpus_only: bool) -> dict[str, Any]:
    machine = describe_machine()
    places: dict[str, Place] = {}
    results: dict[str, dict[str, Figures]] = {}
    for name, make in _makers(ranks, machine).items():
        if gpus_only and name == "cpu":
            continue
        results[name] = {"open": outcome_of(partial(_open, places, name, make))}
    runs = _runs(ranks, places, list(results), quick)
    for index, (where, scenario, run) in enumerate(runs):
        started(f"{where}: {scenario}", index / len(runs))
        results[where][scenario] = outcome_of(run)
    return {"rank": ranks.rank, "machine": machine, "devices": results}


def _makers(ranks: Ranks, machine: dict[str, Any]) -> dict[str, Callable[[], Place]]:
    """This rank's devices by name: all that there are if it is alone, one of them if not."""
    gpus = [f"cuda:{ordinal}" for ordinal in range(len(machine["cuda"].get("names", ())))]
    if ranks.num_ranks > 1 and gpus:
        return {f"cuda:{ranks.local_rank}": partial(cuda_place, ranks.local_rank)}
    return {"cpu": cpu_place} | {
        name: partial(cuda_place, ordinal) for ordinal, name in enumerate(gpus)
    }


def _open(places: dict[str, Place], name: str, make: Callable[[], Place]) -> Figures:
    places[name] = make()
    return {}


def _runs(
    ranks: Ranks, places: dict[str, Place], names: list[str], quick: bool
) -> list[tuple[str, str, Callable[[], Figures]]]:
    """What is run, in order: device, scenario, and how. Ranks measure the link together."""
    runs: list[tuple[str, str, Callable[[], Figures]]] = []
    for name in names:
        if not quick:
            runs.append((name, "link", partial(link_rates, places.get(name), ranks)))
        if name in places:
            scenarios = PROOFS if quick else SCENARIOS
            runs += [(name, each.name, partial(_on, places[name], each)) for each in scenarios]
    if places:
        together = partial(side_by_side, list(places.values()))
        runs.append((next(iter(places)), "side by side", together))
    return runs


def _on(place: Place, scenario: Scenario) -> Figures:
    figures = scenario.run(place)
    place.finish()
    return figures
