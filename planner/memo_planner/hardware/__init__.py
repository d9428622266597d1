"""Machines that a step can be planned for, with the source of every figure."""

from memo_planner.hardware.efficiency import Efficiency
from memo_planner.hardware.machine import FIGURES, FigureSource, Hardware
from memo_planner.hardware.named import NAMED, machine
from memo_planner.hardware.nvml import this_machine

__all__ = [
    "FIGURES",
    "NAMED",
    "Efficiency",
    "FigureSource",
    "Hardware",
    "machine",
    "this_machine",
]
