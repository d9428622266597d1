"""The arena against a model that is too simple to be wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memo_train import _core
from memo_train.device import InvalidDeviceArgument
from memo_train.device.errors import DeviceMemoryExceeded

CAP_BYTES = 8192


class Model:
    """Live blocks as a dict from offset to size; every question is answered by looking at all."""

    def __init__(self) -> None:
        self.live: dict[int, int] = {}
        self.cap = CAP_BYTES
        self.share = CAP_BYTES // 32
        self.large: int | None = None
        self.peak = 0
        self.high_water = 0

    @property
    def top(self) -> int:
        return max((offset + size for offset, size in self.live.items()), default=0)

    @property
    def used(self) -> int:
        return sum(self.live.values())

    def set_cap(self, cap: int) -> None:
        self.cap = cap
        self.share = max(64, (cap // 64 * 64 - self.used) // 32)

    def holes(self) -> list[tuple[int, int]]:
        """(offset, end) of all that is free, low to high."""
        starts = [0, *(offset + size for offset, size in sorted(self.live.items()))]
        ends = [*sorted(self.live), self.cap // 64 * 64]
        return [(start, end) for start, end in zip(starts, ends, strict=True) if end > start]

    def largest_hole(self) -> int:
        return max((end - start for start, end in self.holes()), default=0)

    def place(self, size: int) -> int | None:
        fitting = [(start, end) for start, end in self.holes() if end - start >= size]
        if not fitting:
            return None
        is_large = size >= (self.share if self.large is None else self.large)
        return fitting[-1][1] - size if is_large else fitting[0][0]

    def alloc(self, size: int) -> int | None:
        offset = self.place(size)
        if offset is not None:
            self.live[offset] = size
            self.peak = max(self.peak, self.used)
            self.high_water = max(self.high_water, self.cap // 64 * 64 - self.largest_hole())
        return offset


actions = st.one_of(
    st.tuples(st.just("alloc"), st.integers(1, 2000)),
    st.tuples(st.just("free"), st.integers(0, 100)),
    st.tuples(st.just("cap"), st.integers(64, CAP_BYTES)),
    st.tuples(st.just("large"), st.integers(0, 2000)),
)


def carry_out(arena: _core.Arena, model: Model, base: int, action: tuple[str, int]) -> None:
    kind, value = action
    if kind == "alloc":
        expected = model.alloc(-(-value // 64) * 64)
        if expected is None:
            with pytest.raises(DeviceMemoryExceeded):
                arena.alloc(value)
        else:
            assert arena.alloc(value) - base == expected
    elif kind == "free" and model.live:
        offset = sorted(model.live)[value % len(model.live)]
        del model.live[offset]
        arena.free(base + offset)
    elif kind == "large":
        model.large = value or None
        arena.set_large_bytes(model.large)
    elif kind == "cap" and value >= model.top:
        arena.set_cap(value)
        model.set_cap(value)
    elif kind == "cap":
        with pytest.raises(InvalidDeviceArgument):
            arena.set_cap(value)


@settings(max_examples=300, deadline=None)
@given(script=st.lists(actions, max_size=60), poison=st.booleans())
def test_placements_and_counters_equal_the_model(script, poison: bool) -> None:
    arena, model = _core.Arena(1 << 20), Model()
    base = arena.alloc(1)
    arena.free(base)
    arena.reset_peak()
    arena.set_cap(CAP_BYTES)
    arena.set_poison(poison)
    for action in script:
        carry_out(arena, model, base, action)
        counters = arena.counters()
        assert counters.used_bytes == model.used
        assert counters.live_allocations == len(model.live)
        assert counters.peak_bytes == model.peak
        assert counters.high_water_bytes == model.high_water
        assert counters.largest_hole_bytes == model.largest_hole()
