"""Random-number states, so that what is computed again draws what it drew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch

Generators: TypeAlias = Sequence[torch.Generator]
"""All that a computation may draw from: on a GPU its own generator and the CPU's."""

RngState: TypeAlias = tuple[torch.Tensor, ...]
"""A state of each generator, uint8 on the CPU; not to be written to."""


class RngStates:
    """Takes the states of `generators`; those between which nothing was drawn are one tensor."""

    def __init__(self, generators: Generators) -> None:
        self._generators = generators
        self._last: RngState = (torch.empty(0, dtype=torch.uint8),) * len(generators)

    def take(self) -> RngState:
        """The states now."""
        states = tuple(generator.get_state() for generator in self._generators)
        self._last = tuple(
            last if torch.equal(state, last) else state
            for state, last in zip(states, self._last, strict=True)
        )
        return self._last


def set_rng(generators: Generators, states: RngState) -> None:
    """Let `generators` go on from `states`, which `RngStates.take` gave."""
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


@contextmanager
def preserved_rng(generators: Generators) -> Iterator[None]:
    """Leave the states of `generators` as they were found."""
    states = tuple(generator.get_state() for generator in generators)
    try:
        yield
    finally:
        set_rng(generators, states)
