"""The speed of copies: one way, both ways, and on all ranks at once."""

from __future__ import annotations

from dataclasses import asdict

from memo_train.selftest.place import Place
from memo_train.selftest.ranks import Ranks
from memo_train.selftest.scenario import Figures, ScenarioFailed
from memo_train.trace.link import measure_link, measure_link_rates


def link_rates(place: Place | None, ranks: Ranks) -> Figures:
    """`LinkRates` of all ranks. A collective call, also for a rank that has no device (None).

    Raises: ScenarioFailed on every rank if copies do not run on one; what this rank's copies raise.
    """
    error: Exception | None = None
    try:
        if place is not None:
            measure_link(place.device)
    except Exception as raised:
        error = raised
    every = ranks.all(place is not None and error is None)
    if error is not None:
        raise error
    if place is None or not every:
        raise ScenarioFailed("copies do not run on every rank, so none was measured")
    return asdict(measure_link_rates(place.device))
