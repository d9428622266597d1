"""Copies of a device while compute or other copies are late: no byte may be another.

Compute is late behind a kernel that spins; copies are late behind large copies of both directions.
In turn a round copies a whole tensor or a tile of it, on the current stream or on a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from memo_train.selftest.pieces import SHAPE, check, fetch, numbered, piece_of, send, zeros
from memo_train.selftest.place import Place
from memo_train.selftest.scenario import Figures, NotSupported, Scenario, ScenarioFailed

_NUM_ROUNDS = 20
_NUM_PREFETCHED = 3

Delay = Callable[[], object]


def swap(place: Place, index: int, delay: Delay) -> bool:
    """To the host and back; compute overwrites the source as soon as it may.

    Whether the copy to the host was late.
    """
    delay()
    source, target = numbered(place, index), zeros(place, index)
    expected = source.part.clone()
    host, sent = send(place, source)
    late = not sent.done()
    sent.wait()
    source.whole.fill_(-1)
    fetch(place, target, host).wait()
    place.device.host_free(host)
    check(target, expected, f"round {index}")
    return late


def prefetch(place: Place, index: int, delay: Delay) -> bool:
    """Several come back ahead of their use, the first into memory that compute has just left.

    Whether the copies to the device were late.
    """
    sources = [numbered(place, index + 2 * number) for number in range(_NUM_PREFETCHED)]
    expected = [source.part.clone() for source in sources]
    hosts = [send(place, source) for source in sources]
    place.finish()
    delay()
    left = numbered(place, index)
    left.whole.mul_(-3)
    del left
    targets = [piece_of(torch.empty_like(source.whole), index) for source in sources]
    backs = [fetch(place, t, host) for t, (host, _) in zip(targets, hosts, strict=True)]
    late = not backs[-1].done()
    for number, (target, back) in enumerate(zip(targets, backs, strict=True)):
        sources[number].whole.mul_(2)
        back.wait()
        check(target, expected[number], f"round {index}, tensor {number}")
        place.device.host_free(hosts[number][0])
    return late


def release(place: Place, index: int, delay: Delay) -> bool:
    """Device and host memory go to the next tensor as soon as compute has been told to wait.

    Whether the copy to the host was late.
    """
    target = zeros(place, index)
    delay()
    source = numbered(place, index)
    expected = source.part.clone()
    host, sent = send(place, source)
    late = not sent.done()
    sent.wait()
    del source
    other = piece_of(torch.full(SHAPE, -2, device=place.torch_device), index)
    back = fetch(place, target, host)
    back.wait()
    place.device.host_free(host)
    next_host, next_sent = send(place, other)
    check(target, expected, f"round {index}")
    next_sent.wait()
    place.finish()
    place.device.host_free(next_host)
    return late


def _rounds(way: Callable[[Place, int, Delay], bool], place: Place, late: str) -> Figures:
    if late == "compute" and not place.on_gpu:
        raise NotSupported("the CPU computes on the calling thread, which cannot be late")
    num_late = 0
    with place.backlog() as backlog:
        delays: dict[str, Delay] = {
            "compute": place.delay_compute,
            "copies": lambda: (backlog.to_host(), backlog.to_device()),
        }
        for index in range(_NUM_ROUNDS):
            with place.here(own_stream=index % 4 > 1):
                num_late += way(place, index, delays[late])
    figures = {"rounds": _NUM_ROUNDS, "late_rounds": num_late}
    if num_late == 0:
        raise ScenarioFailed(f"{late} was never late, so nothing is shown", figures)
    return figures


COPY_SCENARIOS = tuple(
    Scenario(f"{way.__name__} behind late {late}", partial(_rounds, way, late=late))
    for way in (swap, prefetch, release)
    for late in ("compute", "copies")
)
