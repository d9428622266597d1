"""What is run on a device and what came of it, without names of machine, user or directories."""

from __future__ import annotations

import getpass
import re
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memo_train.selftest._place import Place

_DIRECTORIES = re.compile(r"(?<![\w.])~?/(?:[^\s/:;,'\"()<>]+/)+")
"""Of a path that starts at the root or at a home: everything but its last name."""
_SHORTEST_NAME = 3
"""Shorter names would be found inside of ordinary words."""

_PACKAGES = ("memo_train", "memo_planner")


def anonymous(text: str) -> str:
    """`text` without directories of files and without the names of the machine and the user."""
    text = _DIRECTORIES.sub("", text)
    for name, instead in ((_host_name(), "<machine>"), (_user_name(), "<user>")):
        if len(name) >= _SHORTEST_NAME:
            text = re.sub(rf"\b{re.escape(name)}\b", instead, text)
    return text


def _host_name() -> str:
    return socket.gethostname().split(".")[0]


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return ""


PASSED, FAILED, NOT_SUPPORTED = KINDS = ("passed", "failed", "not supported")

Figures = dict[str, Any]


class ScenarioFailed(Exception):
    """What had to hold did not; the text says what and where."""

    def __init__(self, why: str, figures: Mapping[str, Any] | None = None) -> None:
        super().__init__(why)
        self.figures = dict(figures or {})


class NotSupported(Exception):
    """This device or build cannot run the scenario; the text says why."""


@dataclass(frozen=True)
class Scenario:
    """`run` gives figures, or raises if what it shows does not hold."""

    name: str
    run: Callable[[Place], Figures]


def outcome_of(run: Callable[[], Figures]) -> Figures:
    """`outcome`, `seconds`, and the figures that `run` gives; only an interrupt leaves it.

    outcome: "passed", "failed: <why>" or "not supported: <why>". Where something unforeseen was
    raised, `raised_at` names the project's lines that it went through, outermost first.
    """
    start_s = time.monotonic()
    try:
        figures: Figures = {"outcome": PASSED} | run()
    except ScenarioFailed as failed:
        figures = {"outcome": f"{FAILED}: {anonymous(str(failed))}"} | failed.figures
    except NotSupported as why:
        figures = {"outcome": f"{NOT_SUPPORTED}: {anonymous(str(why))}"}
    except Exception as error:
        figures = {
            "outcome": f"{FAILED}: {type(error).__name__}: {anonymous(str(error))}",
            "raised_at": _lines_of(error),
        }
    return figures | {"seconds": time.monotonic() - start_s}


def kind_of(outcome: str) -> str:
    """`passed`, `failed` or `not supported`."""
    return outcome.partition(":")[0]


def _lines_of(error: Exception) -> list[str]:
    """`module:line function` of each frame of this project."""
    frames = traceback.walk_tb(error.__traceback__)
    named = [(f.f_globals.get("__name__", ""), line, f.f_code.co_name) for f, line in frames]
    return [
        f"{module}:{line} {function}"
        for module, line, function in named
        if module.split(".")[0] in _PACKAGES
    ]
