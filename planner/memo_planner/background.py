"""Calls of the planner's functions that nothing waits for, in a process behind all that computes.

A thread of this process would take its interpreter's lock from whoever launches kernels, and at
the very last priority might never get to let it go. The other process imports the planner alone,
makes one call after another where nobody else wants the core, and ends when it was idle for a
while, when this process ends, or when it is killed. What a call raises is raised by `result`.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Generic, TypeVar

from memo_planner.errors import SolverError

Result = TypeVar("Result")

_IDLE_S = 60.0
"""After so long without a call the process ends: its memory is worth more than its start."""

_URGENT_S = 0.1
"""How often somebody who waits sees to it that the call runs like any other program."""

_PROGRAM = """
import json, os, sys
if hasattr(os, "nice"):
    os.nice(19)  # its imports, too, are behind everything
sys.path[:] = json.loads(sys.argv[2])
from memo_planner.background import serve
serve(int(sys.argv[1]))
"""


class BackgroundCall(Generic[Result]):
    """`function(*args, **kwargs)` in the background; all of it must pickle, the result too.

    function: of a module of the planner. Calls are made in order. A fork's child makes its own.
    """

    def __init__(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> None:
        self._call = (function, args, kwargs)
        self._start()

    def done(self) -> bool:
        """Whether `result` returns at once."""
        if self._pid != os.getpid():  # threads do not survive a fork
            self._start()
        return not self._thread.is_alive()

    def result(self) -> Result:
        """What the function returned; who waits for it takes its share of the cores.

        Raises: whatever the function raised; SolverError if its process could not run it.
        """
        while not self.done():
            _hurry()
            self._thread.join(_URGENT_S)
        if self._error is not None:
            raise self._error
        return self._found[0]

    def _start(self) -> None:
        self._pid = os.getpid()
        self._found: list[Result] = []
        self._error: BaseException | None = None
        # Else a process could not end before all its calls are made.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            returned, value = _ask(self._call)
        except Exception as error:  # raised to whoever asks for the result
            self._error = error
            return
        if returned:
            self._found.append(value)
        else:
            self._error = value


class _Process:
    """The other process, from this one's side."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        command = [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), json.dumps(sys.path)]
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            self.process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt from the terminal is not for it
                env=os.environ | one_thread,
            )
        except BaseException:
            self.connection.close()
            raise
        finally:
            theirs.close()

    def ask(self, call: Any) -> Any:
        """Raises: EOFError, OSError if it has ended."""
        self.connection.send(call)
        return self.connection.recv()

    def end(self) -> int:
        """Its exit code."""
        self.connection.close()
        self.process.kill()
        return self.process.wait()


_turn = threading.Lock()
_process: _Process | None = None
_is_over = False
"""Whether this process's interpreter ends."""


def _ask(call: Any) -> Any:
    """(whether it returned, what it returned or raised), after all calls before it."""
    with _turn:
        was_running = _process is not None
        try:
            return _ask_once(call)
        except _Ended:
            if not was_running or _is_over:
                raise
        # It may have ended because it was idle.
        return _ask_once(call)


class _Ended(SolverError):
    """The other process has ended."""


def _ask_once(call: Any) -> Any:
    """Raises: _Ended, and the next call starts a process anew."""
    global _process
    try:
        if _process is None:
            _process = _Process()
        return _process.ask(call)
    except (EOFError, OSError) as error:
        code = None if _process is None else _process.end()
        _process = None
        raise _Ended(
            f"the planner's background process ended (exit code {code}, {type(error).__name__}) "
            f"while it ran {call[0].__name__}; what it was to improve stays as it is"
        ) from error


def _hurry() -> None:
    """Let the other process take its share of the cores until its next call."""
    found = _process
    if found is None or not hasattr(os, "sched_setscheduler"):
        return
    with suppress(OSError, ValueError):  # it may have ended
        for thread in Path(f"/proc/{found.process.pid}/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))


def _step_back() -> None:
    """Let this process run where nobody else wants the core."""
    if hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            return
    with suppress(OSError):
        os.nice(19)


def serve(file_number: int) -> None:
    """The other process: answer calls that come through the pipe, until there are no more."""
    connection = Connection(file_number)
    with suppress(EOFError, OSError):  # whoever asked has ended
        while connection.poll(_IDLE_S):
            function, args, kwargs = connection.recv()
            _step_back()
            try:
                answer = (True, function(*args, **kwargs))
            except Exception as error:  # handed to whoever asked
                answer = (False, error)
            connection.send(answer)


def _end() -> None:
    """At the end of the interpreter nobody waits for what is left."""
    global _process, _is_over
    _is_over, found, _process = True, _process, None
    if found is not None:
        found.end()


def _forget() -> None:
    """A fork's child has no threads, and may not talk to its parent's process."""
    global _process, _turn
    found, _process, _turn = _process, None, threading.Lock()
    if found is not None:
        found.connection.close()
        found.process.returncode = 0  # not this process's child: nothing to wait for


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
