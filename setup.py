"""Build of the extensions ``memo_train._core``, ``memo_planner._packer`` and the two packages.

Everything declarative is in pyproject.toml; here is only what needs code: the C++ sources, the
second package root (``planner/``) and the allocator hook's source, which is shipped as data
because it is compiled on the user's machine against the user's torch.
"""

import shutil
from pathlib import Path

import pybind11
from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_py import build_py

HOOK_SOURCE = Path("csrc/torch/cpu_allocator_hook.cc")


class BuildPyWithHookSource(build_py):
    """Copy the hook's source into the wheel beside the module that compiles it."""

    def run(self) -> None:
        """Build the packages, then add the file."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "memo_train" / "device"
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(HOOK_SOURCE, target / HOOK_SOURCE.name)


def core_extension() -> Extension:
    """The torch-free C++ core: device, host pool and copies."""
    sources = sorted(Path("csrc/device").glob("*.cc"))
    needs_no_toolkit = [str(path) for path in sources if not path.name.startswith("cuda_")]
    return extension("memo_train._core", ["csrc/bindings.cc", *needs_no_toolkit])


def packer_extension() -> Extension:
    """The planner's native packer, which needs nothing of the core."""
    return extension("memo_planner._packer", sorted(map(str, Path("csrc/pack").glob("*.cc"))))


def extension(name: str, sources: list[str]) -> Extension:
    """A C++ extension; rebuilt when a source, a header or a flag below changes."""
    headers = sorted(str(path) for path in Path("csrc").rglob("*.h"))
    return Extension(
        name,
        sources=sources,
        depends=[*headers, "setup.py"],
        include_dirs=["csrc"],
        extra_compile_args=[
            "-std=c++17",
            "-O3",
            "-g0",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fvisibility=hidden",
            "-pthread",
            # System headers: warnings inside pybind11 and Python are not ours to fail on.
            f"-isystem{pybind11.get_include()}",
        ],
        extra_link_args=["-pthread"],
        language="c++",
    )


setup(
    packages=[
        *find_namespace_packages(".", include=["memo_train", "memo_train.*"]),
        *find_namespace_packages("planner", include=["memo_planner", "memo_planner.*"]),
    ],
    package_dir={"memo_planner": "planner/memo_planner"},
    package_data={"memo_train": ["*.pyi", "py.typed"], "memo_planner": ["*.pyi", "py.typed"]},
    ext_modules=[core_extension(), packer_extension()],
    cmdclass={"build_py": BuildPyWithHookSource},
)
