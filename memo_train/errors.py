"""The exception tree of memo-train: what a user can do wrong, and the way out.

Everything derives from `MemoError`, which the planner owns. Broken invariants assert instead.
"""

from memo_planner.errors import InvalidInput, MemoError, PlanInfeasible

__all__ = [
    "BackwardTwice",
    "CachedGeneration",
    "InPlaceModified",
    "InvalidInput",
    "LostGradient",
    "MemoError",
    "NotTokenWise",
    "PlanInfeasible",
    "UnsupportedModel",
]


class UnsupportedModel(MemoError):
    """The model cannot be wrapped: not a causal LM, no blocks, cross-attention, ..."""


class NotTokenWise(MemoError):
    """A block does more than one attention call, or mixes tokens outside of it."""


class CachedGeneration(MemoError):
    """A wrapped model was asked for a key-value cache."""


class InPlaceModified(MemoError):
    """A tensor saved for backward was written to while its copy was under way."""


class LostGradient(MemoError):
    """A block uses a parameter in a way that would leave it without a gradient."""


class BackwardTwice(MemoError):
    """Backward ran a second time through a step whose saved tensors are already released."""
