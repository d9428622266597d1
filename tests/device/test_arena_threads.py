"""The arena under native threads: no block is handed out twice, nothing is lost."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from memo_train import _core

SOURCE = Path(__file__).with_name("arena_hammer.cc")


@pytest.fixture(scope="module")
def hammer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """`hammer(arena, alloc, free, num_threads, rounds)`: how many blocks were corrupted."""
    library = tmp_path_factory.mktemp("hammer") / "hammer.so"
    compiler = shutil.which("c++") or shutil.which("g++") or "c++"
    command = [compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-pthread"]
    subprocess.run([*command, str(SOURCE), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).hammer
    function.argtypes = [ctypes.c_size_t] * 3 + [ctypes.c_int] * 2
    function.restype = ctypes.c_int64
    return function


@pytest.mark.parametrize("poison", [False, True])
def test_threads_never_share_a_block(hammer: Callable[..., int], poison: bool) -> None:
    arena = _core.Arena(1 << 30)
    arena.set_poison(poison)
    assert hammer(*arena.hook_entry(), 4, 100_000) == 0
    counters = arena.counters()
    assert (counters.used_bytes, counters.live_allocations) == (0, 0)
    assert counters.largest_hole_bytes == counters.reserved_bytes
    assert counters.peak_bytes <= 4 * 21 * 320


def test_refusal_reaches_a_native_caller(hammer: Callable[..., int]) -> None:
    arena = _core.Arena(1 << 30)
    arena.set_cap(64)
    assert hammer(*arena.hook_entry(), 1, 100) == 1
