"""Compiles the C++ checks of the CUDA device, with the simulated runtime in CUDA's place."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cuda_build import CudaToolkit, ToolkitMissing, find_toolkit

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
DEVICE_SOURCES = ("copy_spec", "cuda_*", "host_pool", "link", "transfer")
SANITIZERS = {"plain": ["-O1"], "asan": ["-fsanitize=address"], "tsan": ["-fsanitize=thread"]}

Check = Callable[..., str]


@pytest.fixture(scope="session")
def toolkit() -> CudaToolkit:
    try:
        return find_toolkit()
    except ToolkitMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def build(toolkit: CudaToolkit, pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """`build(sanitizer)`: the compiled checks; kept between runs for as long as nothing changes."""
    assert pytestconfig.cache is not None
    cache = pytestconfig.cache.mkdir("cuda-checks")

    def of(sanitizer: str) -> Path:
        return compile_checks(toolkit, SANITIZERS[sanitizer], cache)

    return of


def compile_checks(toolkit: CudaToolkit, flags: list[str], cache: Path) -> Path:
    sources = [path for name in DEVICE_SOURCES for path in (CSRC / "device").glob(f"{name}.cc")]
    sources += [*HERE.glob("sim/*.cc"), *HERE.glob("*.cc")]
    command = [
        shutil.which("c++") or shutil.which("g++") or "c++",
        *("-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread", *flags),
        *(f"-I{CSRC}", f"-I{HERE}", f"-isystem{toolkit.include_dir}"),
    ]
    headers = [*CSRC.rglob("*.h"), *HERE.rglob("*.h")]
    digest = hashlib.sha256(f"{command} {toolkit.version}".encode())
    for path in sorted([*sources, *headers]):
        digest.update(path.read_bytes())
    target = cache / digest.hexdigest()[:16]
    if not target.exists():
        # One translation unit: standard headers are read once instead of 20 times.
        unit = "".join(f'#include "{path}"\n' for path in sorted(sources))
        built = target.with_suffix(f".{os.getpid()}")
        run = [*command, "-x", "c++", "-", "-o", str(built)]
        subprocess.run(run, input=unit, text=True, check=True)
        built.replace(target)
    return target


@pytest.fixture(scope="session")
def check(build: Callable[[str], Path]) -> Check:
    """`check(name, first, count, sanitizer=...)`: runs one check of main.cc, gives its output."""

    def run(name: str, *seeds: int, sanitizer: str = "plain") -> str:
        command = [str(build(sanitizer)), name, *map(str, seeds)]
        # A thread sanitizer gives up after a fork unless told otherwise.
        env = {**os.environ, "TSAN_OPTIONS": "die_after_fork=0"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-3000:]}"
        assert f"{name} holds" in done.stdout
        return done.stdout

    return run
