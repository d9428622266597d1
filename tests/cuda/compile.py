"""Compiles the C++ of these tests, with the simulated runtime in CUDA's place."""

import hashlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pybind11

from cuda_build import SHARED_SOURCES, CudaToolkit

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
SANITIZERS = {"plain": ["-O1"], "asan": ["-fsanitize=address"], "tsan": ["-fsanitize=thread"]}


@dataclass(frozen=True)
class Compiler:
    """Results are kept in `cache` for as long as no source, header or flag changes."""

    toolkit: CudaToolkit
    cache: Path

    def checks(self, sanitizer: str) -> Path:
        """The program of main.cc."""
        return self._build(HERE.glob("*.cc"), SANITIZERS[sanitizer])

    def allocator_checks(self, sanitizer: str) -> Path:
        """The program of allocator/main.cc."""
        runs = [HERE / "run.cc", HERE / "step.cc"]
        return self._build([*runs, *HERE.glob("allocator/*.cc")], SANITIZERS[sanitizer])

    def extension(self) -> Path:
        """memo_train._cuda, linked to the simulated runtime and with the functions of bridge/."""
        version = '-DMEMO_CUDA_VERSION="simulated"'
        includes = (sysconfig.get_path("include"), pybind11.get_include())
        flags = ["-shared", "-fPIC", "-fvisibility=hidden", version]
        flags += [f"-isystem{include}" for include in includes]
        return self._build([CSRC / "bindings" / "cuda.cc", *HERE.glob("bridge/*.cc")], flags)

    def _build(self, sources: Iterable[Path], flags: list[str]) -> Path:
        patterns = (*SHARED_SOURCES, "cuda/*.cc", "torch/cuda_allocator_entry.cc")
        found = [path for pattern in patterns for path in CSRC.glob(pattern)]
        found += [*HERE.glob("sim/*.cc"), *sources]
        command = [
            shutil.which("c++") or shutil.which("g++") or "c++",
            *("-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread", *flags),
            *(f"-I{CSRC}", f"-I{HERE}", f"-isystem{self.toolkit.include_dir}"),
        ]
        digest = hashlib.sha256(f"{command} {self.toolkit.version}".encode())
        for path in sorted([*found, *CSRC.rglob("*.h"), *HERE.rglob("*.h")]):
            digest.update(path.read_bytes())
        target = self.cache / digest.hexdigest()[:16]
        if not target.exists():
            # One translation unit: standard headers are read once instead of 20 times.
            unit = "".join(f'#include "{path}"\n' for path in sorted(found))
            built = target.with_suffix(f".{os.getpid()}")
            run = [*command, "-x", "c++", "-", "-o", str(built)]
            subprocess.run(run, input=unit, text=True, check=True)
            built.replace(target)
        return target
