"""Several devices in one process: what one of them does, the others do not notice."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from memo_train.device.device import CopyEvent
from memo_train.selftest.pieces import Piece, Round
from memo_train.selftest.place import Place
from memo_train.selftest.scenario import Figures, NotSupported

_ROUNDS_TOGETHER = 10


def side_by_side(places: Sequence[Place]) -> Figures:
    """Swap on all devices at once, compute late where it can be.

    Raises: ScenarioFailed; NotSupported if there is one device only.
    """
    if len(places) == 1:
        raise NotSupported("this process has one device only")
    for index in range(_ROUNDS_TOGETHER):
        _swap_on_all(places, index)
    return {"rounds": _ROUNDS_TOGETHER, "devices": len(places)}


def _swap_on_all(places: Sequence[Place], index: int) -> None:
    with ExitStack() as stack:
        rounds = [stack.enter_context(Round(place, index)) for place in places]
        under_way = [_send(rnd, number) for number, rnd in enumerate(rounds)]
        for rnd, (source, _, target, host, sent) in zip(rounds, under_way, strict=True):
            with rnd.place.here():
                sent.wait()
                source.whole.fill_(-1)
                rnd.fetch(target, host).wait()
        for number, (_, expected, target, _, _) in enumerate(under_way):
            with places[number].here():
                rounds[number].check(target, expected, f", device {number}")


def _send(rnd: Round, number: int) -> tuple[Piece, torch.Tensor, Piece, int, CopyEvent]:
    """Source, its values, room for them, host range, and the copy to it."""
    with rnd.place.here():
        rnd.place.delay_compute()
        source = rnd.numbered(number)
        return source, source.part.clone(), rnd.filled(0), *rnd.send(source)
