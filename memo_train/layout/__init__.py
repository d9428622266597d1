"""The layout of a step carried out: recorded, solved, and from then on every address as planned."""

from memo_train.layout.report import ShapeReport
from memo_train.layout.step_layouts import StepLayouts

__all__ = ["ShapeReport", "StepLayouts"]
