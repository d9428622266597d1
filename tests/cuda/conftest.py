"""Fixtures of the CUDA device's tests; they are skipped where there is no toolkit's header."""

from collections.abc import Callable, Iterator

import pytest

from cuda_build import CudaToolkit, ToolkitMissing, find_toolkit
from tests.cuda.compile import Compiler
from tests.cuda.run_check import run_check
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
        return run_check(compiler.checks(sanitizer), name, *seeds)

    return run


@pytest.fixture(scope="session")
def simulation(compiler: Compiler) -> Simulation:
    return Simulation(compiler.extension())


def use_simulation(monkeypatch: pytest.MonkeyPatch, simulation: Simulation) -> None:
    """Let memo_train.device take the simulation's module for its own."""
    for user in ("_cuda", "_cuda_memory"):
        monkeypatch.setattr(f"memo_train.device.{user}.load_cuda", lambda: simulation.module)


@pytest.fixture
def on_simulation(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulation]:
    """The simulation, started, with memo_train.device._cuda running on it."""
    use_simulation(monkeypatch, simulation)
    simulation.start(0, num_devices=2)
    yield simulation
    assert simulation.finish() == ""
