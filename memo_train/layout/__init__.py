"""The layout of a step carried out: recorded, solved, and from then on every address as planned."""

from memo_train.layout.report import ShapeReport
from memo_train.layout.shape import Shape
from memo_train.layout.step_layouts import StepLayouts

__all__ = ["Shape", "ShapeReport", "StepLayouts"]
