"""C++ parts of benchmarks, compiled where they are run."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory


def compiled(source: Path) -> ctypes.CDLL:
    """The shared library of one C++ file, loaded."""
    compiler = shutil.which("c++") or shutil.which("g++") or "c++"
    with TemporaryDirectory() as folder:
        target = Path(folder, source.stem + ".so")
        command = [compiler, "-std=c++17", "-O2", "-fPIC", "-shared", str(source), "-o"]
        subprocess.run([*command, str(target)], check=True)
        return ctypes.CDLL(str(target))
