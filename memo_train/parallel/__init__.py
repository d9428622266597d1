"""Sequence parallelism: every rank of a group holds a range of each sequence's tokens.

A rank runs its own tokens through the model, tile by tile; only a block's attention call and the
last line of the loss talk to the other ranks. `join` gives the group behind a mesh, `SharedSteps`
what a wrapped model asks of it, and `shard_batch` a rank's part of a batch. `ModelState` says who
looks after parameters, gradients and moments, which `HeldState` counts for the plan.
"""

from memo_train.parallel._batch import shard_batch
from memo_train.parallel._group import SequenceGroup, join
from memo_train.parallel._state import HeldState, ModelState
from memo_train.parallel._steps import SharedSteps
from memo_train.parallel._ulysses import HeadsSeen

__all__ = [
    "HeadsSeen",
    "HeldState",
    "ModelState",
    "SequenceGroup",
    "SharedSteps",
    "join",
    "shard_batch",
]
