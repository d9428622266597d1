"""The CUDA device of csrc/cuda on a simulated CUDA runtime; the checks are C++ (main.cc).

Numerics level 1: the bytes that come back are the bytes that left.
"""

import re

import pytest

ALONE = ("contract", "order", "failures", "fork", "threads", "simulation")
SEEDS_OF_A_RUN = 250


@pytest.mark.parametrize("name", ALONE)
def test_check(check, name: str) -> None:
    check(name)


@pytest.mark.parametrize("first", range(0, 1000, SEEDS_OF_A_RUN))
def test_steps_are_right_under_every_seed(check, first: int) -> None:
    assert f"{SEEDS_OF_A_RUN} seeds clean" in check("steps", first, SEEDS_OF_A_RUN)


def test_every_planted_bug_is_caught_under_every_seed(check) -> None:
    assert len(re.findall(r"bug \d caught under 10 seeds", check("bugs", 0, 10))) == 9


def test_every_lost_wait_lost_record_and_late_copy_is_caught(check) -> None:
    counts = re.findall(r"(\d+) .*, each caught", check("faults", 0, 4))
    assert len(counts) == 3
    assert min(map(int, counts)) > 80


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_no_leak_and_no_stray_access(check, name: str) -> None:
    check(name, sanitizer="asan")


@pytest.mark.slow
def test_no_leak_and_no_stray_access_in_steps(check) -> None:
    check("steps", 0, 100, sanitizer="asan")
    check("bugs", 0, 5, sanitizer="asan")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contract", "failures", "threads"])
def test_no_race(check, name: str) -> None:
    check(name, sanitizer="tsan")


@pytest.mark.slow
def test_no_race_in_steps(check) -> None:
    check("steps", 0, 50, sanitizer="tsan")


@pytest.mark.slow
def test_a_race_would_be_seen(check) -> None:
    with pytest.raises(AssertionError, match="ThreadSanitizer: data race"):
        check("bugs", 0, 1, sanitizer="tsan")
