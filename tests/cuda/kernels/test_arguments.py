"""What the kernels refuse, and what they say."""

from __future__ import annotations

import sys

import pytest
import torch

from memo_train.device import CudaUnavailable, InvalidDeviceArgument
from memo_train.kernels import copy_tile, gelu, rms_norm, rope, swiglu

pytestmark = pytest.mark.usefixtures("toolkit")

X = torch.zeros(2, 4, 8)
HEADS = torch.zeros(2, 3, 4, 16)
TABLE = torch.zeros(4, 16)


@pytest.mark.parametrize(
    ("target", "source"),
    [
        (X, X[:1]),
        (X, X.half()),
        (X[0], X[0]),
        (X[:, :, 1:], X[:, :, 1:]),
        (X.transpose(1, 2), X.transpose(1, 2)),
    ],
)
def test_tiles_of_other_shapes_and_layouts(target: torch.Tensor, source: torch.Tensor) -> None:
    with pytest.raises(InvalidDeviceArgument):
        copy_tile(target, source)


def test_other_dtypes() -> None:
    for call in (
        lambda: swiglu(X.double(), X.double()),
        lambda: gelu(X.long()),
        lambda: rms_norm(X.double(), torch.ones(8).double(), 1e-6),
        lambda: rope(HEADS.double(), TABLE.double(), TABLE.double()),
    ):
        with pytest.raises(
            InvalidDeviceArgument, match=r"no kernel for .*; use fp32, bf16 or fp16"
        ):
            call()


def test_tensors_that_do_not_go_together() -> None:
    for call, message in (
        (lambda: swiglu(X, X[:1]), "differ in shape"),
        (lambda: rms_norm(X, torch.ones(8).half(), 1e-6), "differ in dtype"),
        (lambda: rms_norm(X, torch.ones(4), 1e-6), r"weight must be \[hidden\].*got \(4,\)"),
        (lambda: rope(HEADS, TABLE[1:], TABLE[1:]), r"must be \[4, 16\] or"),
        (lambda: rope(HEADS, TABLE.half(), TABLE), "differ in dtype"),
        (lambda: rope(HEADS[0], TABLE, TABLE), "batch, heads, tokens, head_dim"),
        (lambda: gelu(X, "exactly"), r"one of \['none', 'tanh'\], got 'exactly'"),
    ):
        with pytest.raises(InvalidDeviceArgument, match=message):
            call()


def test_rows_that_are_no_multiples_of_16_bytes() -> None:
    with pytest.raises(InvalidDeviceArgument, match=r"7 numbers of torch.float32, 28 bytes"):
        rms_norm(torch.zeros(2, 7), torch.ones(7), 1e-6)
    with pytest.raises(InvalidDeviceArgument, match=r"half a head is 4 numbers of torch.bfloat16"):
        rope(HEADS[..., :8].bfloat16(), TABLE[:, :8].bfloat16(), TABLE[:, :8].bfloat16())


def test_tables_that_would_need_gradients() -> None:
    table = torch.zeros(4, 16, requires_grad=True)
    with pytest.raises(InvalidDeviceArgument, match="no gradients of cos and sin"):
        rope(HEADS.clone().requires_grad_(), table, table)


def test_build_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "memo_train._kernels", None)
    monkeypatch.delattr("memo_train._kernels", raising=False)
    with pytest.raises(CudaUnavailable, match="MEMO_BUILD_CUDA=1"):
        copy_tile(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))
