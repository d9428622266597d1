"""Who looks after device memory while a step runs; the layout in `memo_train.layout` does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable


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
