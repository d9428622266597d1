"""Blocks of code and command lines in a page, and the remarks that say what becomes of them.

A comment before a fence of the kind `python` or `console` is a remark:

    <!-- not run: REASON -->                     it is compiled, and not run
    <!-- not run: REASON; tests run NL CODE -->  it is compiled, and CODE is run in its place
    <!-- tests run first NL CODE -->             CODE is run, then it
    <!-- no output: REASON -->                   the tests run its commands, the site does not

NL is the end of the line. The site shows no remarks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_FENCE = re.compile(
    r"(?:^<!-- (?P<remark>(?:not run|no output|tests run first)(?:(?!-->).)*)-->\n)?"
    r"^(?P<indent> *)```(?P<kind>python|console)\n(?P<text>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
_REMARK = re.compile(r"(?P<what>not run|no output): (?P<why>[^\n]+?)(?:; tests run\n|\s*\Z)")
_FIRST = "tests run first\n"


@dataclass(frozen=True, kw_only=True)
class Fence:
    """One block.

    line: of its first line in the page, from 1 on. why: the reason in its remark, or nothing.
    given: code that the tests run before it, or in its place where it is not run.
    """

    kind: str
    text: str
    line: int
    is_run: bool
    is_shown_with_output: bool
    why: str
    given: str


def fences(page: str) -> Iterator[Fence]:
    """The blocks of a page, from the top on. Raises: ValueError: a remark without a reason."""
    for found in _FENCE.finditer(page):
        yield _fence(found)


def replaced(page: str, told: Callable[[Fence], str]) -> str:
    """The page without remarks, and with `told` of each block for its text."""

    def written(found: re.Match[str]) -> str:
        body = "".join(found["indent"] + line for line in told(_fence(found)).splitlines(True))
        return f"{found['indent']}```{found['kind']}\n{body}{found['indent']}```"

    return _FENCE.sub(written, page)


def _fence(found: re.Match[str]) -> Fence:
    remark, what, why, given = found["remark"] or "", "", "", ""
    if remark.startswith(_FIRST):
        given = remark.removeprefix(_FIRST)
    elif remark:
        read = _REMARK.match(remark)
        if read is None:
            raise ValueError(f"a block is left out without a reason: {remark!r}")
        what, why, given = read["what"], read["why"].strip(), remark[read.end() :]
    return Fence(
        kind=found["kind"],
        text=re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
        line=found.string.count("\n", 0, found.start("text")) + 1,
        is_run=what != "not run",
        is_shown_with_output=not what,
        why=why,
        given=given,
    )
