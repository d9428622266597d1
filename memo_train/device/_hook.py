"""Hooks into torch: one C++ file each, compiled against the torch that is installed here.

They stand against torch's own headers, whose binary interface changes between releases. So they are
compiled on first use (about two seconds) into a per-user cache and loaded from there ever after.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from memo_train.device.errors import HookUnavailable

_COMPILERS = ("c++", "g++", "clang++")


def build_hook(name: str) -> Path:
    """Compile csrc/torch/`name`.cc unless the cache has it; the path of the shared library.

    Safe against other processes that do the same at the same time.

    Raises:
        HookUnavailable: no compiler, it failed, or the cache cannot be written.
    """
    compiler = _find_compiler()
    source = _find_source(f"{name}.cc")
    flags = _flags()
    target = _cache_dir() / f"{name}-{_key(compiler, source, flags)}.so"
    if not target.exists():
        _compile([*compiler, *flags], source, target)
    return target


def _find_compiler() -> list[str]:
    """The compiler as a command, the environment variable CXX first: it may have arguments."""
    wanted = os.environ.get("CXX", "").split()
    commands = [wanted] if wanted else [[name] for name in _COMPILERS]
    for command in commands:
        if shutil.which(command[0]) is not None:
            return command
    names = ", ".join(command[0] for command in commands)
    raise HookUnavailable(
        f"no C++ compiler found (looked for {names}); one is needed once per torch version: "
        "install g++ or clang++, or name yours in the environment variable CXX"
    )


def _find_source(name: str) -> Path:
    here = Path(__file__).resolve().parent
    # Beside this file in an installed wheel, in csrc/ in a checkout.
    candidates = (here / name, here.parents[1] / "csrc" / "torch" / name)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise HookUnavailable(f"the installation is incomplete: {candidates[0]} is missing")


def _flags() -> list[str]:
    root = Path(torch.__file__).resolve().parent
    return [
        "-std=c++17",
        "-O2",
        "-fPIC",
        "-shared",
        # torch's std::string must be ours, or the hook does not link.
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        f"-isystem{root / 'include'}",
        f"-L{root / 'lib'}",
    ]


def _key(compiler: list[str], source: Path, flags: list[str]) -> str:
    # An update in place keeps a compiler's name and changes what it builds.
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout
    digest = hashlib.sha256(version + source.read_bytes())
    for part in (torch.__version__, *compiler, *flags):
        # A zero behind each, so that parts do not run together.
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def _cache_dir() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(root) / "memo-train"
    try:
        # What lies here is loaded into the process: nobody else may write it.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HookUnavailable(
            f"the cache directory {path} cannot be made ({error.strerror}); "
            "name a writable one in the environment variable XDG_CACHE_HOME"
        ) from error
    return path


def _compile(command: list[str], source: Path, target: Path) -> None:
    try:
        # Beside the target: a rename does not cross file systems.
        scratch = tempfile.TemporaryDirectory(dir=target.parent)
    except OSError as error:
        raise HookUnavailable(
            f"the cache directory {target.parent} cannot be written ({error.strerror}); "
            "name a writable one in the environment variable XDG_CACHE_HOME"
        ) from error
    with scratch as directory:
        built = Path(directory) / target.name
        run = [*command, str(source), "-o", str(built), "-lc10"]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise HookUnavailable(
                f"{' '.join(run)} failed with exit code {done.returncode}:\n{done.stderr.strip()}"
            )
        # One rename: another process sees the whole library or none.
        built.replace(target)
