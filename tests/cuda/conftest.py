"""Fixtures of the CUDA device's tests; they are skipped where there is no toolkit's header."""

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from cuda_build import CudaToolkit, ToolkitMissing, find_toolkit
from tests.cuda.compile import Compiler
from tests.cuda.simulated import Simulation

Check = Callable[..., str]


@pytest.fixture(scope="session")
def toolkit() -> CudaToolkit:
    try:
        return find_toolkit()
    except ToolkitMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def compiler(toolkit: CudaToolkit, pytestconfig: pytest.Config) -> Compiler:
    assert pytestconfig.cache is not None
    return Compiler(toolkit, pytestconfig.cache.mkdir("cuda-checks"))


@pytest.fixture(scope="session")
def check(compiler: Compiler) -> Check:
    """`check(name, first, count, sanitizer=...)`: runs one check of main.cc, gives its output."""

    def run(name: str, *seeds: int, sanitizer: str = "plain") -> str:
        command = [str(compiler.checks(sanitizer)), name, *map(str, seeds)]
        # A thread sanitizer gives up after a fork unless told otherwise.
        env = {**os.environ, "TSAN_OPTIONS": "die_after_fork=0"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-3000:]}"
        assert f"{name} holds" in done.stdout
        return done.stdout

    return run


@pytest.fixture(scope="session")
def simulation(compiler: Compiler) -> Simulation:
    return Simulation(compiler.extension())


@pytest.fixture
def on_simulation(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulation]:
    """The simulation, started, with memo_train.device.cuda running on it."""
    monkeypatch.setattr("memo_train.device.cuda.load_cuda", lambda: simulation.module)
    simulation.start(0, num_devices=2)
    yield simulation
    assert simulation.finish() == ""
