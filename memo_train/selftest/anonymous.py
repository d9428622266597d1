"""Takes machine, user and places of files out of texts that others will read."""

from __future__ import annotations

import getpass
import re
import socket

_DIRECTORIES = re.compile(r"(?<![\w.])~?/(?:[^\s/:;,'\"()<>]+/)+")
"""Of a path that starts at the root or at a home: everything but its last name."""
_SHORTEST_NAME = 3
"""Shorter names would be found inside of ordinary words."""


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
