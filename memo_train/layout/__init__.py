"""The layout of a step carried out: recorded, solved, and from then on every address as planned."""

from memo_train.layout._file import PlanLayout
from memo_train.layout._shape import Shape, ShapeReport
from memo_train.layout._step_layouts import StepLayouts

__all__ = [
    "PlanLayout",
    "Shape",
    "ShapeReport",
    "StepLayouts",
]
