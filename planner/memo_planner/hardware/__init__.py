"""Machines that a step can be planned for, with the source of every figure."""

from memo_planner.hardware._machine import (
    FIGURES,
    PAPER,
    AttentionShare,
    Efficiency,
    Hardware,
)
from memo_planner.hardware._measured import (
    CHOSEN,
    AttentionRate,
    MachineFile,
    ProductRate,
)
from memo_planner.hardware._named import NAMED, efficiency_on, machine
from memo_planner.hardware._nvml import this_machine

__all__ = [
    "CHOSEN",
    "FIGURES",
    "NAMED",
    "PAPER",
    "AttentionRate",
    "AttentionShare",
    "Efficiency",
    "Hardware",
    "MachineFile",
    "ProductRate",
    "efficiency_on",
    "machine",
    "this_machine",
]
