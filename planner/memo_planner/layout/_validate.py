"""An independent check of a placement. It shares no code with the packers."""

from __future__ import annotations

from bisect import bisect_left, insort

from memo_planner.layout._problem import Placement

# In one list of a million, an insertion would move half of them.
_BUCKET = 512


def faults(placement: Placement, capacity_bytes: int | None = None, most: int = 10) -> list[str]:
    """What is wrong with a placement, at most `most` reasons; nothing if it is valid.

    Walks through time with the live buffers in order of offset and looks at each new one's
    neighbours: n log n. After the first overlap it stops, since order means nothing then.
    """
    found = _each_alone(placement, capacity_bytes)[:most]
    return found or _first_overlap(placement)


def _each_alone(placement: Placement, capacity_bytes: int | None) -> list[str]:
    problem = placement.problem
    found = []
    columns = placement.offset_bytes.tolist(), problem.size_bytes.tolist()
    for name, offset, size in zip(problem.ids, *columns, strict=True):
        if offset < 0:
            found.append(f"buffer {name!r} has the negative offset {offset:,}")
        elif offset % problem.alignment_bytes:
            found.append(
                f"buffer {name!r} has offset {offset:,}, no multiple of {problem.alignment_bytes:,}"
            )
        elif capacity_bytes is not None and offset + size > capacity_bytes:
            found.append(
                f"buffer {name!r} ends at {offset + size:,}, above the capacity {capacity_bytes:,}"
            )
    return found


def _first_overlap(placement: Placement) -> list[str]:
    problem = placement.problem
    starts = placement.offset_bytes.tolist()
    sizes = problem.size_bytes.tolist()
    # Ends (0) come before beginnings (1) at the same time: lifetimes are half-open.
    events = [(t, 1, i) for i, t in enumerate(problem.lower.tolist())]
    events += [(t, 0, i) for i, t in enumerate(problem.upper.tolist())]
    live = _SortedPairs()
    for _, begins, i in sorted(events):
        pair = (starts[i], i)
        if not begins:
            live.remove(pair)
            continue
        for _, other in live.neighbours(pair):
            if starts[i] < starts[other] + sizes[other] and starts[other] < starts[i] + sizes[i]:
                return [_overlap(placement, i, other)]
        live.add(pair)
    return []


def _overlap(placement: Placement, first: int, second: int) -> str:
    problem = placement.problem
    texts = [
        f"{problem.ids[i]!r} (lifetime [{problem.lower[i]:,}, {problem.upper[i]:,}), bytes "
        f"[{placement.offset_bytes[i]:,}, {placement.offset_bytes[i] + problem.size_bytes[i]:,}))"
        for i in (first, second)
    ]
    return f"buffers {texts[0]} and {texts[1]} overlap"


class _SortedPairs:
    """Sorted (offset, buffer) pairs in short lists, so that each change moves few of them."""

    def __init__(self) -> None:
        self._buckets: list[list[tuple[int, int]]] = [[]]
        self._firsts: list[tuple[int, int]] = [(-1, -1)]

    def _at(self, pair: tuple[int, int]) -> int:
        at = bisect_left(self._firsts, pair)
        return at if at < len(self._firsts) and self._firsts[at] == pair else max(0, at - 1)

    def add(self, pair: tuple[int, int]) -> None:
        at = self._at(pair)
        bucket = self._buckets[at]
        insort(bucket, pair)
        if len(bucket) > 2 * _BUCKET:
            self._buckets[at : at + 1] = [bucket[:_BUCKET], bucket[_BUCKET:]]
            self._firsts.insert(at + 1, bucket[_BUCKET])

    def remove(self, pair: tuple[int, int]) -> None:
        at = self._at(pair)
        bucket = self._buckets[at]
        del bucket[bisect_left(bucket, pair)]
        # The first bucket stays: its key is below every pair.
        if not bucket and at > 0:
            del self._buckets[at], self._firsts[at]

    def neighbours(self, pair: tuple[int, int]) -> list[tuple[int, int]]:
        """The pairs just below and just above `pair`."""
        at = self._at(pair)
        bucket = self._buckets[at]
        place = bisect_left(bucket, pair)
        near = bucket[max(0, place - 1) : place + 1]
        if place == 0 and at > 0:
            near += self._buckets[at - 1][-1:]
        if place == len(bucket) and at + 1 < len(self._buckets):
            near += self._buckets[at + 1][:1]
        return near
