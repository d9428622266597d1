"""Fixtures of the device tests: small devices of their own, and raw memory as numpy arrays."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from memo_train import _core
from memo_train.device import CpuDevice

ARENA_BYTES = 1 << 26

View = Callable[[int, int], np.ndarray]


@pytest.fixture
def arena() -> _core.Arena:
    return _core.Arena(ARENA_BYTES)


@pytest.fixture
def pool() -> _core.HostPool:
    return _core.HostPool()


@pytest.fixture
def device() -> CpuDevice:
    """A device that torch does not know of."""
    return CpuDevice(reserve_bytes=1 << 30)


@pytest.fixture
def view() -> View:
    """`view(address, nbytes)`: the bytes there as a writable uint8 array, not a copy."""

    def of(address: int, nbytes: int) -> np.ndarray:
        return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype=np.uint8)

    return of


@pytest.fixture(scope="session")
def warm_interpreter() -> Iterator[subprocess.Popen[str]]:
    server = subprocess.Popen(
        [sys.executable, "-W", "error", str(Path(__file__).parent / "warm_python.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    yield server
    os.killpg(server.pid, signal.SIGKILL)
    server.communicate()


@pytest.fixture
def run_python(warm_interpreter: subprocess.Popen[str], tmp_path: Path) -> Callable[[str], str]:
    """`run_python(code)`: runs it in a process of its own, gives its output."""

    def run(code: str) -> str:
        path = tmp_path / "output"
        path.unlink(missing_ok=True)
        assert warm_interpreter.stdin is not None
        assert warm_interpreter.stdout is not None
        print(
            json.dumps({"code": code, "output": str(path)}), file=warm_interpreter.stdin, flush=True
        )
        exit_code = int(warm_interpreter.stdout.readline())
        output = path.read_text()
        assert exit_code == 0, f"exit code {exit_code}\n{output}"
        assert "Exception ignored" not in output, output
        return output

    return run
