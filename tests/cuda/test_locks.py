"""No lock of the core is held while Python runs, where anything may be collected and freed."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cuda.compile import Compiler
from tests.cuda.run_check import run_script

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
NUM_LOOKUPS = 7  # two copies, two waits, now, start_recording, begin_step
CALLS_BACK = re.compile(r"pybind11/functional|py::function|gil_scoped_acquire|PyObject_Call")


def test_garbage_is_collected_wherever_the_stream_is_looked_up(compiler: Compiler) -> None:
    said = run_script(HERE / "garbage_in_lookups.py", str(compiler.extension()))
    assert said.split() == [str(NUM_LOOKUPS)]


def test_the_core_cannot_call_back_into_python() -> None:
    """Whoever adds a callback must say where no lock is held, and test it as above."""
    sources = [path for path in CSRC.rglob("*") if path.suffix in {".h", ".cc"}]
    assert len(sources) > 40
    calling = {str(path) for path in sources if CALLS_BACK.search(path.read_text())}
    assert calling == set()
