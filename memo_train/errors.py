"""The exception tree of memo-train: what a user can do wrong, and the way out.

Everything derives from `MemoError`, which the planner owns. Broken invariants assert instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memo_planner.errors import InvalidInput, MemoError, PlanInfeasible

if TYPE_CHECKING:
    from memo_train.verify import Verification

__all__ = [
    "BackwardTwice",
    "CachedGeneration",
    "DoubleBackward",
    "InPlaceModified",
    "InvalidInput",
    "LostGradient",
    "MemoError",
    "NotTokenWise",
    "PlanInfeasible",
    "RanksDiffer",
    "UnsupportedModel",
    "VerificationFailed",
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


class VerificationFailed(MemoError):
    """A wrapped step gave another loss or other gradients than the plain one; see its table."""

    def __init__(self, verification: Verification) -> None:
        super().__init__(f"the wrapped step differs from the plain one\n{verification}")
        self.verification = verification


class RanksDiffer(MemoError):
    """Ranks that share a sequence found unlike things, or one of them failed; it is named."""


class DoubleBackward(MemoError):
    """Gradients of a wrapped model were to be differentiated themselves."""
