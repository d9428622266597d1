"""Measured profiles kept on disk, so that a model is measured once on a machine.

A profile is found again by all that it depends on: the model's configuration, modules and code,
what is asked for, the machine, and the versions of torch and of this project. It lies in
`$MEMO_TRAIN_CACHE`, else in `memo-train` under `$XDG_CACHE_HOME` or `~/.cache`. An empty
`MEMO_TRAIN_CACHE` keeps nothing. A file that cannot be read or is of something else counts as
missing and is written anew. The links are not kept: they are measured every time.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import nn

from memo_planner.codec import decode, encode, read_document, write_document
from memo_planner.errors import MemoError
from memo_planner.plan import VERSION as PLAN_VERSION
from memo_planner.profile import Link, Profile
from memo_train.device import Device, memory_share_bytes
from memo_train.runtime import WrappedModel
from memo_train.trace._profile import model_hash, state_bytes

FORMAT = "memo-measured-profile"
VERSION = 7
DIRECTORY_VARIABLE = "MEMO_TRAIN_CACHE"


def cache_directory() -> Path | None:
    """Where profiles are kept; None if they are not."""
    chosen = os.environ.get(DIRECTORY_VARIABLE)
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "memo-train"
    try:
        return Path.home() / ".cache" / "memo-train"
    except RuntimeError:  # a user without a home
        return None


@dataclass(frozen=True, kw_only=True)
class KeptProfile:
    """The place of one profile on disk.

    key: all that it depends on, as text. directory: where it lies; None for no place at all.
    """

    key: str
    directory: Path | None

    @classmethod
    def of(cls, model: str, asked: tuple[object, ...]) -> KeptProfile:
        """model: its `model_key`. asked: what else the profile depends on."""
        return cls(key=_digest([model, *map(repr, asked)]), directory=cache_directory())

    def load(self, wrapped: WrappedModel, link: Link) -> Profile | None:
        """The profile with `link`, which is measured anew; None if there is none."""
        path = self._path
        if path is None or not path.is_file():
            return None
        try:
            document = read_document(path)
            head = (document.get("format"), document.get("version"), document.get("key"))
            if head != (FORMAT, VERSION, self.key):
                return None
            profile = decode(Profile, document.get("profile"), "profile")
        except MemoError:
            return None
        # Counted anew: the key says nothing of buffers.
        state = state_bytes(wrapped.parts.causal_lm)
        exchange, ranks = profile.exchange, wrapped.ranks
        if exchange is not None and ranks is not None:
            exchange = replace(exchange, bytes_per_s=ranks.bytes_per_s)
        return replace(profile, link=link, state_bytes=state, exchange=exchange)

    def save(self, profile: Profile) -> None:
        """Keep `profile`, all of it at once; where nothing can be written, nothing is kept."""
        path = self._path
        if path is None:
            return
        document = {"format": FORMAT, "version": VERSION, "key": self.key}
        document |= {"profile": encode(profile)}
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            os.close(handle)
            try:
                write_document(Path(name), document)
                os.replace(name, path)
            except OSError:
                Path(name).unlink(missing_ok=True)

    @property
    def _path(self) -> Path | None:
        return None if self.directory is None else self.directory / f"{self.key}.profile.json"


def model_key(wrapped: WrappedModel) -> str:
    """All that a profile of `wrapped` depends on, as text: versions, machine, model and code."""
    return _digest(
        [
            *_of_versions(),
            *_of_machine(wrapped.device),
            *_of_model(wrapped.parts.causal_lm),
            *(repr((v.how, v.at_cut, v.mixer and v.mixer.path)) for v in wrapped.verdicts),
        ]
    )


def _digest(parts: list[str]) -> str:
    # A configuration may hold text that is not UTF-8 (a lone surrogate).
    return hashlib.sha256("\n".join(parts).encode(errors="backslashreplace")).hexdigest()


def _of_versions() -> Iterator[str]:
    for name in ("torch", "transformers", "memo-train"):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} none"
    yield f"format {VERSION}, plan {PLAN_VERSION}"


def _of_machine(device: Device) -> Iterator[str]:
    where = device.torch_device
    yield repr(where.type)
    if where.type == "cuda":
        yield repr(torch.cuda.get_device_properties(where))
    yield f"{_processor()}, {os.cpu_count()} cores, {memory_share_bytes()} bytes"
    yield f"{torch.get_num_threads()} threads"
    switches = ("flash_sdp_enabled", "mem_efficient_sdp_enabled", "math_sdp_enabled")
    yield repr([getattr(torch.backends.cuda, name)() for name in switches])


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return os.uname().machine


def _of_model(causal_lm: nn.Module) -> Iterator[str]:
    """Parameters, configuration, every module's settings, and the code of their forwards."""
    yield model_hash(causal_lm)
    config = getattr(causal_lm, "config", None)
    if config is not None:
        to_dict = getattr(config, "to_dict", None)
        found = config if to_dict is None else to_dict()
        yield json.dumps(found, sort_keys=True, default=repr)
        yield str(getattr(config, "_attn_implementation", None))
    # A dictionary and no set: the text must be the same in every process.
    classes: dict[type, None] = {}
    for name, module in causal_lm.named_modules():
        plain = {k: v for k, v in vars(module).items() if _is_plain(v)}
        yield f"{name} {type(module).__qualname__} {sorted(plain.items())}"
        yield from _of_functions(vars(module))
        classes[type(module)] = None
    for kind in dict.fromkeys(base for each in classes for base in each.__mro__):
        # Their code goes with the versions of Python and torch.
        if kind is not object and kind is not nn.Module:
            yield kind.__qualname__
            yield from _of_functions(vars(kind))


def _is_plain(value: object) -> bool:
    return isinstance(value, str | bool | int | float | None)


def _of_functions(namespace: Any) -> Iterator[str]:
    for name, value in sorted(namespace.items()):
        own = inspect.unwrap(value) if callable(value) else value  # not what the runtime put there
        code = getattr(own, "__code__", None) if inspect.isroutine(own) else None
        if isinstance(code, CodeType):
            yield f"{name} {_code_text(code)}"


def _code_text(code: CodeType) -> str:
    return f"{code.co_code.hex()} {code.co_names} {[_constant(c) for c in code.co_consts]}"


def _constant(value: object) -> str:
    if isinstance(value, CodeType):
        return _code_text(value)
    # A set's order differs from process to process.
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
