"""Build of the extensions (``_core``, ``_cuda`` and ``_kernels`` of ``memo_train``, ``_packer`` of
``memo_planner``) and the two packages.

Everything declarative is in pyproject.toml; here is only what needs code: the C++ sources, the
second package root (``planner/``) and the allocator hooks' sources, which are shipped as data
because they are compiled on the user's machine against the user's torch.

The environment variable MEMO_BUILD_CUDA says whether ``_cuda`` and ``_kernels`` are built: ``auto``
(where there is a CUDA toolkit, the default), ``0`` or ``1``.
"""

import os
import shutil
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# Build backends run this file without its directory on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))
from cuda_build import (
    SHARED_SOURCES,
    CudaToolkit,
    architectures,
    nvcc_command,
    requested_toolkit,
)

KERNELS_NAME = "memo_train._kernels"
HOOK_SOURCES = tuple(sorted(Path("csrc/torch").glob("*_hook.cc")))


class BuildPyWithHookSources(build_py):
    """Copy the hooks' sources into the wheel beside the module that compiles them."""

    def run(self) -> None:
        """Build the packages, then add the files."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "memo_train" / "device"
            target.mkdir(parents=True, exist_ok=True)
            for source in HOOK_SOURCES:
                shutil.copy2(source, target / source.name)


class BuildExtWithKernels(build_ext):
    """Compile csrc/kernels with nvcc and link the objects into their extension."""

    def build_extension(self, ext: Extension) -> None:
        """Build the extension, its kernels first."""
        if ext.name == KERNELS_NAME:
            ext.extra_objects = [*self.kernel_objects(), *ext.extra_objects]
        super().build_extension(ext)

    def kernel_objects(self) -> list[str]:
        """The compiled kernels, in the build directory."""
        assert TOOLKIT is not None
        directory = Path(self.build_temp) / "kernels"
        directory.mkdir(parents=True, exist_ok=True)
        objects = []
        for source in sorted(Path("csrc/kernels").glob("*.cu")):
            target = directory / f"{source.stem}.o"
            self.spawn(nvcc_command(TOOLKIT, source, target))
            objects.append(str(target))
        return objects


def cuda_extensions(toolkit: CudaToolkit) -> list[Extension]:
    """The CUDA device, and the kernels."""
    device = sources(
        "bindings/cuda.cc", "cuda/*.cc", *SHARED_SOURCES, "torch/cuda_allocator_entry.cc"
    )
    built = [
        extension("memo_train._cuda", device),
        extension(KERNELS_NAME, sources("bindings/kernels.cc", "cuda/cuda_calls.cc")),
    ]
    for each in built:
        link_runtime(each, toolkit)
    return built


def link_runtime(ext: Extension, toolkit: CudaToolkit) -> None:
    """Give an extension a CUDA runtime of its own that nobody else sees."""
    ext.depends += ["cuda_build.py", *map(str, Path("csrc/kernels").glob("*.cu"))]
    ext.define_macros = [
        ("MEMO_CUDA_VERSION", f'"{toolkit.version}"'),
        ("MEMO_CUDA_ARCHS", f'"{" ".join(architectures(toolkit))}"'),
    ]
    ext.extra_compile_args.append(f"-isystem{toolkit.include_dir}")
    ext.extra_objects = [str(toolkit.static_runtime)]
    ext.extra_link_args += ["-ldl", "-lrt", "-Wl,--exclude-libs,ALL"]


def core_extension() -> Extension:
    """The torch-free C++ core: device, host pool and copies."""
    return extension("memo_train._core", sources("bindings/core.cc", "cpu/*.cc", *SHARED_SOURCES))


def packer_extension() -> Extension:
    """The planner's native packer, which needs nothing of the core."""
    return extension("memo_planner._packer", sources("bindings/packer.cc", "pack/*.cc"))


def sources(*patterns: str) -> list[str]:
    """Paths below csrc."""
    return [str(path) for each in patterns for path in sorted(Path("csrc").glob(each))]


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


TOOLKIT = requested_toolkit(os.environ.get("MEMO_BUILD_CUDA", "auto"))

setup(
    packages=[
        *find_namespace_packages(".", include=["memo_train", "memo_train.*"]),
        *find_namespace_packages("planner", include=["memo_planner", "memo_planner.*"]),
    ],
    package_dir={"memo_planner": "planner/memo_planner"},
    package_data={"memo_train": ["*.pyi", "py.typed"], "memo_planner": ["*.pyi", "py.typed"]},
    ext_modules=[
        core_extension(),
        packer_extension(),
        *([] if TOOLKIT is None else cuda_extensions(TOOLKIT)),
    ],
    cmdclass={"build_py": BuildPyWithHookSources, "build_ext": BuildExtWithKernels},
)
