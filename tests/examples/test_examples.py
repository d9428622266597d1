"""Every example runs, is short, and prints what its docstring says."""

from __future__ import annotations

import ast
import doctest
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.ranks import ROOT

EXAMPLES = ROOT / "examples"
ALONE = ("1_trace", "2_plan", "3_run", "4_train", "lora", "own_model")
MOST_LINES = 60


def expected(path: Path) -> str:
    """The indented block of the docstring."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return "".join(f"{line[4:]}\n" for line in text.splitlines() if line.startswith("    "))


def check(path: Path, command: list[str]) -> None:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = expected(path)
    assert wanted.strip()
    if not doctest.OutputChecker().check_output(wanted, done.stdout, doctest.ELLIPSIS):
        pytest.fail(f"{path.name} says\n{wanted}\nand prints\n{done.stdout}")


@pytest.mark.parametrize("name", [*ALONE, "two_ranks"])
def test_an_example_is_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < MOST_LINES


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_an_example_prints_what_it_says(name: str) -> None:
    path = EXAMPLES / f"{name}.py"
    check(path, [sys.executable, str(path)])


@pytest.mark.slow
@pytest.mark.parametrize("way", [[], ["data"]], ids=["sequence", "data"])
def test_two_ranks_print_what_the_example_says(way: list[str]) -> None:
    path = EXAMPLES / "two_ranks.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    check(path, [*launcher, "--nproc-per-node", "2", str(path), *way])
