"""What nvcc makes of the kernels: registers, spills, and 16-byte accesses. Nothing runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.kernel_resources import (
    DTYPES,
    Kernel,
    Resources,
    accesses,
    compile_kernels,
    find_cuobjdump,
    table,
)
from cuda_build import CudaToolkit, architectures

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "cuda.md"
DOCUMENTED_CUDA = "13.0"
WITH_DTYPES = {
    "Swiglu",
    "SwigluBackward",
    "Gelu<NormalByErf>",
    "GeluBackward<NormalByErf>",
    "Gelu<NormalByTanh>",
    "GeluBackward<NormalByTanh>",
    "RmsNorm",
    "RmsNormBackward",
    "RmsNormWeightSums",
    "RmsNormWeightGradient",
    "Rope",
}
LOADED_NARROWLY = {
    "RmsNormWeightSums": {4},  # a row's scale
}
STORED_NARROWLY = {
    "RmsNormBackward": {4},  # a row's scale
    "RmsNormWeightGradient": {8},  # four columns, once
}
ELEMENTWISE = {name for name in WITH_DTYPES if name.startswith(("Swiglu", "Gelu"))}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects")


@pytest.fixture(scope="module")
def resources(toolkit: CudaToolkit, objects: Path) -> dict[Kernel, Resources]:
    if toolkit.nvcc is None:
        pytest.skip("no nvcc")
    return compile_kernels(toolkit, objects)


@pytest.fixture(scope="module")
def counts(
    toolkit: CudaToolkit, resources: dict[Kernel, Resources], objects: Path
) -> dict[Kernel, Counter[tuple[str, int]]]:
    cuobjdump = find_cuobjdump(toolkit)
    if cuobjdump is None:
        pytest.skip("no cuobjdump with nvdisasm beside it")
    return accesses(cuobjdump, objects)


def test_every_kernel_is_there(toolkit: CudaToolkit, resources: dict[Kernel, Resources]) -> None:
    kinds = {(name, dtype) for name in WITH_DTYPES for dtype in DTYPES.values()}
    kinds.add(("CopyRows", "any"))
    archs = architectures(toolkit)
    wanted = {Kernel(name=name, dtype=dtype, arch=arch) for name, dtype in kinds for arch in archs}
    assert set(resources) == wanted


def test_no_kernel_spills(resources: dict[Kernel, Resources]) -> None:
    assert {k: r for k, r in resources.items() if r.spilled_bytes or not r.registers} == {}


def test_kernels_move_16_bytes_at_a_time(
    resources: dict[Kernel, Resources], counts: dict[Kernel, Counter[tuple[str, int]]]
) -> None:
    assert set(counts) == set(resources)
    for kernel, widths in counts.items():
        assert widths[("LDG", 16)] >= 1, kernel
        assert widths[("STG", 16)] >= 1 or kernel.name in STORED_NARROWLY, kernel
        assert not any(operation in ("LDL", "STL") for operation, _ in widths), kernel
        number = {4 if kernel.dtype == "fp32" else 2} if kernel.name in ELEMENTWISE else set()
        for operation, narrow in (("LDG", LOADED_NARROWLY), ("STG", STORED_NARROWLY)):
            found = {width for used, width in widths if used == operation} - {16}
            assert found <= number | narrow.get(kernel.name, set()), kernel


def test_copies_are_one_load_and_one_store(
    counts: dict[Kernel, Counter[tuple[str, int]]],
) -> None:
    copies = [widths for kernel, widths in counts.items() if kernel.name == "CopyRows"]
    assert copies
    assert all(widths == {("LDG", 16): 1, ("STG", 16): 1} for widths in copies)


def test_elementwise_kernels_read_and_write_each_number_once(
    counts: dict[Kernel, Counter[tuple[str, int]]],
) -> None:
    arrays = {"Swiglu": (2, 1), "SwigluBackward": (3, 2), "Gelu": (1, 1), "GeluBackward": (2, 1)}
    for kernel, widths in counts.items():
        if kernel.name in ELEMENTWISE:
            found = (widths[("LDG", 16)], widths[("STG", 16)])
            assert found == arrays[kernel.name.partition("<")[0]], kernel


def test_the_documented_table_is_what_the_compiler_says(
    toolkit: CudaToolkit,
    resources: dict[Kernel, Resources],
    counts: dict[Kernel, Counter[tuple[str, int]]],
) -> None:
    if toolkit.version != DOCUMENTED_CUDA:
        pytest.skip(f"the table is of CUDA {DOCUMENTED_CUDA}")
    assert "\n".join(table(resources, counts)) in DOCUMENT.read_text()
