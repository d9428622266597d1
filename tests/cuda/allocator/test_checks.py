"""The CUDA allocator of csrc/cuda on a simulated CUDA runtime; the checks are C++ (main.cc).

Numerics level 1: nobody writes what somebody else still reads.
"""

import pytest

from tests.cuda.compile import Compiler
from tests.cuda.run_check import run_check

ALONE = ("ranges", "growth", "virtual", "failures", "threads", "entry")


@pytest.fixture(scope="module")
def check(compiler: Compiler):
    """`check(name, first, count, sanitizer=...)`: runs one check of main.cc."""

    def run(name: str, *seeds: int, sanitizer: str = "plain") -> None:
        run_check(compiler.allocator_checks(sanitizer), name, *seeds)

    return run


@pytest.mark.parametrize("name", ALONE)
def test_check(check, name: str) -> None:
    check(name)


def test_no_address_is_handed_out_too_early_under_any_seed(check) -> None:
    check("traffic", 0, 150)


def test_a_use_without_a_record_is_caught_under_every_seed(check) -> None:
    check("bugs", 0, 30)


def test_planned_steps_go_as_planned_under_any_seed(check) -> None:
    check("planned", 0, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_no_leak_and_no_stray_access(check, name: str) -> None:
    check(name, sanitizer="asan")


@pytest.mark.slow
def test_no_leak_and_no_stray_access_under_seeds(check) -> None:
    check("traffic", 0, 60, sanitizer="asan")


@pytest.mark.slow
def test_no_race(check) -> None:
    check("threads", sanitizer="tsan")
    check("traffic", 0, 20, sanitizer="tsan")
