"""Machines that a step can be planned for, with the source of every figure."""

from memo_planner.hardware._machine import FIGURES, PAPER, Efficiency, Hardware
from memo_planner.hardware._named import NAMED, machine
from memo_planner.hardware._nvml import this_machine

__all__ = [
    "FIGURES",
    "NAMED",
    "PAPER",
    "Efficiency",
    "Hardware",
    "machine",
    "this_machine",
]
