"""Finds the CUDA toolkit and says how to compile and link against it. Never looks for a GPU.

Used by setup.py and by the tests; stands alone because setup.py cannot import what it builds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_DEFAULT_ROOT = Path("/usr/local/cuda")
_HEADER = "cuda_runtime_api.h"


class ToolkitMissing(Exception):
    """No usable CUDA toolkit was found; the message says where it was looked for."""


@dataclass(frozen=True, kw_only=True)
class CudaToolkit:
    """What a build needs of a toolkit.

    version: as in `13.0`.
    nvcc: the compiler; None where only headers and libraries are installed.
    static_runtime: libcudart_static.a, or None.
    """

    version: str
    include_dir: Path
    nvcc: Path | None
    static_runtime: Path | None


def find_toolkit() -> CudaToolkit:
    """The toolkit of CUDA_HOME or CUDA_PATH, else of the nvcc on PATH, else the default one.

    Raises:
        ToolkitMissing: none of these places has the runtime's header.
    """
    for root in _roots():
        include_dir = root / "include"
        if (include_dir / _HEADER).is_file():
            return CudaToolkit(
                version=_version(include_dir / _HEADER),
                include_dir=include_dir,
                nvcc=_existing(root / "bin" / "nvcc"),
                static_runtime=_static_runtime(root),
            )
    places = ", ".join(str(root) for root in _roots())
    raise ToolkitMissing(
        f"no CUDA toolkit: {_HEADER} is not below any of {places}; name its root in CUDA_HOME"
    )


def _roots() -> list[Path]:
    named = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if named:
        return [Path(root) for root in named]
    nvcc = shutil.which("nvcc")
    return [*([] if nvcc is None else [_root_of(nvcc)]), _DEFAULT_ROOT]


def _root_of(nvcc: str) -> Path:
    """nvcc on PATH may be a script beside nothing else; it says itself where its toolkit is."""
    command = [nvcc, "--dryrun", "-c", "none.cu"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"^#\$ TOP=(.*)$", said.stderr, re.MULTILINE)
    return Path(found[1]).resolve() if found else Path(nvcc).resolve().parent.parent


def _version(header: Path) -> str:
    found = re.search(r"#define CUDART_VERSION\s+(\d+)", header.read_text())
    if found is None:
        raise ToolkitMissing(f"{header} does not say its version")
    number = int(found[1])
    return f"{number // 1000}.{number % 1000 // 10}"


def _static_runtime(root: Path) -> Path | None:
    for name in ("lib64", "lib"):
        found = _existing(root / name / "libcudart_static.a")
        if found is not None:
            return found
    return None


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


SHARED_SOURCES = ("*.cc", "memory/*.cc", "copies/*.cc")
"""What the CPU device and the CUDA device are both built from, as patterns below csrc."""

_SINCE = {"sm_80": (11, 0), "sm_90": (11, 8), "sm_100": (12, 8)}
"""What kernels are compiled for, and the first toolkit to know it. Source: CUDA release notes."""


def architectures(toolkit: CudaToolkit) -> tuple[str, ...]:
    """What its compiler compiles kernels for; the last one also as PTX, for GPUs to come."""
    major, minor = map(int, toolkit.version.split("."))
    return tuple(arch for arch, since in _SINCE.items() if (major, minor) >= since)


def requested_toolkit(wish: str) -> CudaToolkit | None:
    """The toolkit to build `memo_train._cuda` and `_kernels` with, or None to build without.

    wish: the value of MEMO_BUILD_CUDA. `auto`: if there is a whole toolkit; `0`: never; `1`: or
        fail.

    Raises:
        ToolkitMissing: `1`, and no toolkit or no whole one.
        ValueError: another value.
    """
    if wish not in ("auto", "0", "1"):
        raise ValueError(f"MEMO_BUILD_CUDA must be auto, 0 or 1, got {wish!r}")
    if wish == "0":
        return None
    try:
        toolkit = find_toolkit()
        if toolkit.nvcc is None or toolkit.static_runtime is None:
            raise ToolkitMissing(
                f"the CUDA toolkit of {toolkit.include_dir} has no nvcc or no libcudart_static.a"
            )
        if not architectures(toolkit):
            raise ToolkitMissing(f"CUDA {toolkit.version} is too old; 11.0 is the least")
    except ToolkitMissing:
        if wish == "1":
            raise
        return None
    return toolkit


def nvcc_command(toolkit: CudaToolkit, source: Path, target: Path) -> list[str]:
    """Compiles one file of csrc/kernels for every architecture; warnings are errors.

    ptxas says on standard error what every kernel needs of registers.
    """
    archs = architectures(toolkit)
    gencode = [f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}" for arch in archs]
    last = archs[-1].replace("sm", "compute")
    return [
        str(toolkit.nvcc),
        *("-std=c++17", "-O3", "-Icsrc", "--threads=0"),
        *gencode,
        f"-gencode=arch={last},code={last}",
        *("-Werror=all-warnings", "-Xptxas=-v,-warn-spills"),
        "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror",
        *("-c", str(source), "-o", str(target)),
    ]
