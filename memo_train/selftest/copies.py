"""Copies of a device while compute or other copies are late: no byte may be another.

Compute is late behind a kernel that spins; copies are late behind large copies of both directions.
In turn a round copies a whole tensor or a tile of it, on the current stream or on a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from memo_train.selftest.pieces import Round
from memo_train.selftest.place import Place
from memo_train.selftest.scenario import Figures, NotSupported, Scenario, ScenarioFailed

_NUM_ROUNDS = 20
_NUM_PREFETCHED = 3

Delay = Callable[[], object]


def swap(rnd: Round, delay: Delay) -> bool:
    """To the host and back; compute overwrites the source as soon as it may.

    Whether the copy to the host was late.
    """
    delay()
    source, target = rnd.numbered(), rnd.filled(0)
    expected = source.part.clone()
    host, sent = rnd.send(source)
    late = not sent.done()
    sent.wait()
    source.whole.fill_(-1)
    rnd.fetch(target, host).wait()
    rnd.free(host)
    rnd.check(target, expected)
    return late


def prefetch(rnd: Round, delay: Delay) -> bool:
    """Several come back ahead of their use, the first into memory that compute has just left.

    Whether the copies to the device were late.
    """
    sources = [rnd.numbered(number) for number in range(_NUM_PREFETCHED)]
    expected = [source.part.clone() for source in sources]
    hosts = [rnd.send(source) for source in sources]
    rnd.place.finish()
    delay()
    left = rnd.numbered(_NUM_PREFETCHED)
    left.whole.mul_(-3)
    del left
    targets = [rnd.empty() for _ in sources]
    backs = [rnd.fetch(t, host) for t, (host, _) in zip(targets, hosts, strict=True)]
    late = not backs[-1].done()
    for number, (target, back) in enumerate(zip(targets, backs, strict=True)):
        sources[number].whole.mul_(2)
        back.wait()
        rnd.check(target, expected[number], f", tensor {number}")
        rnd.free(hosts[number][0])
    return late


def release(rnd: Round, delay: Delay) -> bool:
    """Device and host memory go to the next tensor as soon as compute has been told to wait.

    Whether the copy to the host was late.
    """
    target = rnd.filled(0)
    delay()
    source = rnd.numbered()
    expected = source.part.clone()
    host, sent = rnd.send(source)
    late = not sent.done()
    sent.wait()
    del source
    other = rnd.filled(-2)
    rnd.fetch(target, host).wait()
    rnd.free(host)
    _, next_sent = rnd.send(other)
    rnd.check(target, expected)
    next_sent.wait()
    return late


def _rounds(way: Callable[[Round, Delay], bool], place: Place, late: str) -> Figures:
    if late == "compute" and not place.on_gpu:
        raise NotSupported("the CPU computes on the calling thread, which cannot be late")
    num_late = 0
    with place.backlog() as backlog:
        delays: dict[str, Delay] = {
            "compute": place.delay_compute,
            "copies": lambda: (backlog.to_host(), backlog.to_device()),
        }
        for index in range(_NUM_ROUNDS):
            with place.here(own_stream=index % 4 > 1), Round(place, index) as rnd:
                num_late += way(rnd, delays[late])
    figures = {"rounds": _NUM_ROUNDS, "late_rounds": num_late}
    if num_late == 0:
        raise ScenarioFailed(f"{late} was never late, so nothing is shown", figures)
    return figures


COPY_SCENARIOS = tuple(
    Scenario(f"{way.__name__} behind late {late}", partial(_rounds, way, late=late))
    for way in (swap, prefetch, release)
    for late in ("compute", "copies")
)
