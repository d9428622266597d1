"""The extensions and packages on a machine that has neither: carried, or built in place.

.gpu/wheels holds wheels of what the machine lacks, .gpu/built extensions for its Python, both made
by `make gpu-check-bundle` and ignored by git.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

from benchmarks.gpu_check._process import Ended, run

ROOT = Path(__file__).resolve().parents[2]
CARRIED = ROOT / ".gpu"
EXTENSIONS = {
    "memo_train/_core": "memo_train._core",
    "memo_train/_cuda": "memo_train._cuda",
    "memo_train/_kernels": "memo_train._kernels",
    "planner/memo_planner/_packer": "memo_planner._packer",
}
_STAMP = "sources.sha256"
_IMPORT_S = 60


def sources_digest() -> str:
    """sha256 of what the extensions are built from, and of the Python they are built for."""
    digest = hashlib.sha256(_suffix().encode())
    for path in sorted([*ROOT.glob("csrc/**/*"), ROOT / "setup.py", ROOT / "cuda_build.py"]):
        if path.is_file():
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def install_wheels(site: Path, log: Path) -> Ended:
    """Put the carried wheels into `site`, which must be on the path; nothing where there are none.

    Nothing is fetched, and nothing outside of `site` is touched.
    """
    # What is carried for a GPU machine's Python may lie here beside another one.
    here, carried = set(sys_tags()), sorted(CARRIED.glob("wheels/*.whl"))
    wheels = [str(path) for path in carried if parse_wheel_filename(path.name)[3] & here]
    if not wheels:
        return Ended(code=0, text="")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade"]
    return run([*pip, "--disable-pip-version-check", "--target", str(site), *wheels], 120, log=log)


def build(seconds: float, log: Path, *, with_cuda: bool) -> str:
    """How the extensions came to be here: "ok: ...", or "failed: ..."."""
    _register(log)
    if _imports(log, with_cuda=with_cuda):
        return "ok: built before"
    stamp = CARRIED / "built" / _STAMP
    stale = "none carried"
    if stamp.is_file():
        stale = "carried ones are of other sources or for another Python"
        if stamp.read_text().strip() == sources_digest():
            _copy_carried()
            if _imports(log, with_cuda=with_cuda):
                return "ok: carried"
            stale = "carried ones do not import"
    env = {"MEMO_BUILD_CUDA": "1" if with_cuda else "auto"}
    jobs = str(min(os.cpu_count() or 1, 8))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--parallel", jobs]
    done = run(command, seconds, log=log, env=env)
    if done.code or not _imports(log, with_cuda=with_cuda):
        return f"failed: {stale}; built here: {done.why or 'they do not import'}"
    return f"ok: built here; {stale}"


def bundle(built: Path) -> None:
    """Put this checkout's extensions for this Python into `built`, to be carried, and their stamp.

    Raises: FileNotFoundError, naming one that is not built.
    """
    built.mkdir(parents=True, exist_ok=True)
    for place in EXTENSIONS:
        shutil.copy2(ROOT / (place + _suffix()), built)
    (built / _STAMP).write_text(sources_digest() + "\n")


def _copy_carried() -> None:
    for place in EXTENSIONS:
        carried = CARRIED / "built" / (Path(place).name + _suffix())
        if carried.is_file():
            shutil.copy2(carried, ROOT / (place + _suffix()))


def _imports(log: Path, *, with_cuda: bool) -> bool:
    optional = () if with_cuda else ("memo_train._cuda", "memo_train._kernels")
    wanted = [module for module in EXTENSIONS.values() if module not in optional]
    code = f"import torch, {', '.join(wanted)}"
    return run([sys.executable, "-c", code], _IMPORT_S, log=log).code == 0


def _register(log: Path) -> None:
    """The self-test tells memo-train's version, which a checkout has once setup.py has run."""
    if not list(ROOT.glob("*.egg-info")):
        run([sys.executable, "setup.py", "-q", "egg_info"], _IMPORT_S, log=log)


def _suffix() -> str:
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


if __name__ == "__main__":
    bundle(CARRIED / "built")
