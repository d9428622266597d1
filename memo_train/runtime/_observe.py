"""Who watches a step go by, and who looks after device memory while it runs.

The profiler in `memo_train.trace` learns here what each stage takes; the layout in
`memo_train.layout` looks after the memory. The runtime knows neither.

Stages, in order: "pre", "attention", "post" of a block, "between" blocks, "loss", and in backward
"post_backward", "attention_backward", "pre_backward", again with "between". The token-wise stages
and the loss are told for every tile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable

NOWHERE = -1
"""The block of a stage outside blocks, the tile of a stage that all tiles share."""

Observer = Callable[[str, int, int], None]
"""(stage, block, tile): what begins now, and where; `NOWHERE` is no block or no tile."""


def ignore(stage: str, block: int, tile: int) -> None:
    """The observer of an ordinary step."""


class StepMemory(ABC):
    """Is told when a training step begins and ends, and, as an observer, where it has come to."""

    @property
    @abstractmethod
    def is_recording(self) -> bool:
        """Whether lifetimes of this step will be planned with: no tensor may be freed early."""

    @abstractmethod
    def begin(self, batch: int, tokens: int, how: Hashable) -> None:
        """A training step of that shape begins; one under way is over.

        how: equal for steps of one shape that are carried out in the same way.
        """

    @abstractmethod
    def __call__(self, stage: str, block: int, tile: int) -> None:
        """The step comes to a stage of `runtime.observe`."""

    @abstractmethod
    def end(self) -> None:
        """No step is under way any more."""


class MemoryBySize(StepMemory):
    """Leaves every request to the device."""

    @property
    def is_recording(self) -> bool:
        """Never."""
        return False

    def begin(self, batch: int, tokens: int, how: Hashable) -> None:
        """Nothing to do."""

    def __call__(self, stage: str, block: int, tile: int) -> None:
        """Nothing to do."""

    def end(self) -> None:
        """Nothing to do."""
