"""The kernels' element code on the host, and what nvcc makes of the kernels.

Numerics: level 1 for copies, level 4 for SwiGLU (error against float64 at most twice torch's).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import silu

from cuda_build import CudaToolkit, architectures, nvcc_command
from memo_train.device.errors import CudaUnavailable, InvalidDeviceArgument
from memo_train.kernels import copy_tile, swiglu
from memo_train.testing import TOLERANCES

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path("csrc/kernels/run.cu")
NUM_KERNELS = 7
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ERROR_OVER_PLAIN = TOLERANCES[torch.float32].error_over_plain

pytestmark = pytest.mark.usefixtures("toolkit")


def tensors(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [(3 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(3)]


def with_gradients(function, gate, up, dy) -> list[torch.Tensor]:
    gate, up = gate.clone().requires_grad_(), up.clone().requires_grad_()
    y = function(gate, up)
    y.backward(dy)
    return [y.detach(), gate.grad, up.grad]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3,), (4, 7), (5, 33, 64)])
def test_swiglu_is_as_exact_as_torch(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    inputs = tensors(shape, dtype)
    exact = with_gradients(lambda g, u: silu(g) * u, *(t.double() for t in inputs))
    plain = with_gradients(lambda g, u: silu(g) * u, *inputs)
    ours = with_gradients(swiglu, *inputs)
    for value, torchs, right in zip(ours, plain, exact, strict=True):
        assert value.dtype is dtype
        error, limit = ((t.double() - right).norm() for t in (value, torchs))
        rounding = torch.finfo(dtype).eps * right.norm()  # a handful of numbers may be exact
        assert error <= ERROR_OVER_PLAIN * max(limit, rounding / 4)


@pytest.mark.parametrize("value", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_swiglu_of_extreme_gates(value: float) -> None:
    gate, up, dy = torch.full((9,), value), torch.ones(9), torch.ones(9)
    ours = with_gradients(swiglu, gate, up, dy)
    plain = with_gradients(lambda g, u: silu(g) * u, gate, up, dy)
    for mine, torchs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-6, atol=1e-30)


def test_swiglu_is_a_proper_operator() -> None:
    gate, up, _ = tensors((4, 10), torch.float32)
    inputs = (gate.requires_grad_(), up.requires_grad_())
    torch.library.opcheck(swiglu, inputs)


def test_swiglu_of_views_that_are_not_aligned() -> None:
    gate, up, _ = tensors((6, 8), torch.float32)
    assert torch.equal(swiglu(gate.t()[1:], up.t()[1:]), swiglu(gate, up).t()[1:])
    assert torch.equal(swiglu(gate.view(-1)[1:], up.view(-1)[1:]), swiglu(gate, up).view(-1)[1:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_tile_is_gathered_and_scattered(dtype: torch.dtype) -> None:
    whole = tensors((3, 50, 24), dtype)[0]
    before, tile = whole.clone(), torch.zeros(3, 10, 24, dtype=dtype)
    copy_tile(tile, whole[:, 20:30])
    assert torch.equal(tile, whole[:, 20:30])
    copy_tile(whole[:, 5:15], tile)
    assert torch.equal(whole[:, 5:15], before[:, 20:30])
    assert torch.equal(whole[:, :5], before[:, :5])
    assert torch.equal(whole[:, 15:], before[:, 15:])


def test_wrong_arguments_are_refused() -> None:
    x = torch.zeros(2, 4, 8)
    for target, source in (
        (x, x[:1]),
        (x, x.half()),
        (x[0], x[0]),
        (x[:, :, 1:], x[:, :, 1:]),
        (x.transpose(1, 2), x.transpose(1, 2)),
    ):
        with pytest.raises(InvalidDeviceArgument):
            copy_tile(target, source)
    with pytest.raises(InvalidDeviceArgument, match="float64"):
        swiglu(x.double(), x.double())


def test_build_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "memo_train._kernels", None)
    monkeypatch.delattr("memo_train._kernels", raising=False)
    with pytest.raises(CudaUnavailable, match="MEMO_BUILD_CUDA=1"):
        copy_tile(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))


def test_no_kernel_spills(toolkit: CudaToolkit, tmp_path: Path) -> None:
    command = nvcc_command(toolkit, SOURCE, tmp_path / "run.o")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert spills == [("0", "0")] * (NUM_KERNELS * len(architectures(toolkit)))


def test_kernels_move_16_bytes_at_a_time(toolkit: CudaToolkit, tmp_path: Path) -> None:
    ptx = tmp_path / "run.ptx"
    command = [str(toolkit.nvcc), "-std=c++17", "-O3", "-Icsrc", "-ptx", "-arch=compute_80"]
    subprocess.run([*command, str(SOURCE), "-o", str(ptx)], cwd=ROOT, check=True)
    kernels = ptx.read_text().split(".entry ")[1:]
    assert len(kernels) == NUM_KERNELS
    for kernel in kernels:
        assert re.search(r"ld\.global(\.nc)?\.v4\.", kernel)
        assert re.search(r"st\.global\.v4\.", kernel)
