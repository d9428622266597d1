"""The whole self-test as one JSON object."""

from __future__ import annotations

from typing import Any

from memo_train.selftest.copies import bytes_come_back, speeds
from memo_train.selftest.gradients import by_runtime, swapped_by_hooks
from memo_train.selftest.machine import describe_machine
from memo_train.selftest.place import Place, cpu_place, cuda_place


def run_selftest() -> dict[str, Any]:
    """Every device's results; `passed` says whether all of them are as they must be."""
    machine = describe_machine()
    devices = {"cpu": run_device(cpu_place())}
    devices["cpu"]["runtime"] = by_runtime(cpu_place())
    if "names" in machine["cuda"]:
        for ordinal in range(machine["cuda"]["gpus"]):
            devices[f"cuda:{ordinal}"] = run_device(cuda_place(ordinal))
    return {
        "format": "memo-selftest",
        "version": 1,
        "passed": all(map(_passed, devices.values())),
        "machine": machine,
        "devices": devices,
    }


def run_device(place: Place) -> dict[str, Any]:
    """One device through the scenarios that both kinds share."""
    return {
        "bytes_come_back": bytes_come_back(place),
        "speeds": speeds(place),
        "hooks": swapped_by_hooks(place),
    }


def _passed(result: dict[str, Any]) -> bool:
    parts = [result["bytes_come_back"], result["hooks"]["bitwise_equal"]]
    if "runtime" in result:
        parts.append(result["runtime"]["bitwise_equal"])
    return all(parts)
