"""The file of measured times that decides which kernels `use(model, "auto")` takes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from memo_train.errors import InvalidInput
from memo_train.kernels._launch import DTYPES

FORMAT, VERSION = "memo-train kernel timings", 1
Faster = Mapping[str, frozenset[torch.dtype]]
"""By operation: the dtypes in which to use its kernel."""

_TYPES = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Median seconds of forward and backward: the kernel's, and of torch's ways the fastest's."""

    device: str
    operation: str
    dtype: str
    sizes: dict[str, int]
    kernel_s: float
    torch_s: float

    @property
    def wins(self) -> bool:
        """Whether to use the kernel: where it was faster, but never the reference on the CPU."""
        return self.device != "cpu" and self.kernel_s < self.torch_s


def device_name(device: torch.device) -> str:
    """What the file calls a device: a GPU by its product name, else its type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def timings_path() -> Path:
    """The file, in the user's cache; XDG_CACHE_HOME moves it."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "memo-train" / "kernels.json"


def load_timings(path: Path) -> tuple[Timing, ...]:
    """The file's timings; none if there is no file.

    Raises:
        InvalidInput: the file cannot be read, or is of another format or version.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror})") from error
    try:
        return tuple(_timing(each) for each in _entries(json.loads(text)))
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{path} is no file of kernel timings, version {VERSION} ({error}); remove it and run "
            "python -m memo_train.kernels.benchmark"
        ) from error


def save_timings(path: Path, measured: tuple[Timing, ...]) -> None:
    """Write timings; what the file has of other devices stays."""
    devices = {timing.device for timing in measured}
    others = tuple(t for t in load_timings(path) if t.device not in devices)
    entries = [asdict(timing) for timing in (*others, *measured)]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside it and renamed: a reader never sees half a file.
    written = path.with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps({"format": FORMAT, "version": VERSION, "timings": entries}))
    written.replace(path)


def faster_on(device: str, timings: tuple[Timing, ...]) -> Faster:
    """The operations and dtypes whose kernel wins in every timing on the device."""
    here = [timing for timing in timings if timing.device == device]
    lost = {(t.operation, t.dtype) for t in here if not t.wins}
    won = {(t.operation, t.dtype) for t in here} - lost
    return {
        operation: frozenset(_TYPES[dtype] for name, dtype in won if name == operation)
        for operation, _ in won
    }


def _entries(data: Any) -> list[Any]:
    if (data["format"], data["version"]) != (FORMAT, VERSION):
        raise ValueError(f"it says {data['format']!r}, version {data['version']!r}")
    entries: list[Any] = data["timings"]
    return entries


def _timing(entry: dict[str, Any]) -> Timing:
    if set(entry) != {field.name for field in fields(Timing)}:
        raise ValueError(f"a timing has the fields {sorted(entry)}")
    if entry["dtype"] not in _TYPES:
        raise ValueError(f"a timing is of {entry['dtype']!r}")
    return Timing(
        **{**entry, "kernel_s": float(entry["kernel_s"]), "torch_s": float(entry["torch_s"])}
    )
