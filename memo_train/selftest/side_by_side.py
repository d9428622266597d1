"""Several devices in one process: what one of them does, the others do not notice."""

from __future__ import annotations

from collections.abc import Sequence

from memo_train.selftest.pieces import check, fetch, numbered, send, zeros
from memo_train.selftest.place import Place
from memo_train.selftest.scenario import Figures, NotSupported

_NUM_ROUNDS = 10
_STEP = 1000
"""Between the numbers of two devices' tensors: more than there are rounds."""


def side_by_side(places: Sequence[Place]) -> Figures:
    """Swap on all devices at once, compute late where it can be.

    Raises: ScenarioFailed; NotSupported if there is one device only.
    """
    if len(places) == 1:
        raise NotSupported("this process has one device only")
    for index in range(_NUM_ROUNDS):
        _round(places, index)
    return {"rounds": _NUM_ROUNDS, "devices": len(places)}


def _round(places: Sequence[Place], index: int) -> None:
    under_way = []
    for number, place in enumerate(places):
        with place.here():
            place.delay_compute()
            source = numbered(place, index + _STEP * number)
            expected, target = source.part.clone(), zeros(place, index)
            under_way.append((source, expected, target, *send(place, source)))
    for place, (source, _, target, host, sent) in zip(places, under_way, strict=True):
        with place.here():
            sent.wait()
            source.whole.fill_(-1)
            fetch(place, target, host).wait()
            place.device.host_free(host)
    for number, (place, (_, expected, target, *_rest)) in enumerate(
        zip(places, under_way, strict=True)
    ):
        with place.here():
            check(target, expected, f"round {index}, device {number}")
