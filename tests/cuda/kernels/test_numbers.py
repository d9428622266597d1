"""What the kernels compute: their element code on the host, and where there is a GPU, kernels.

Numerics: level 1 for copies, level 4 for the rest (error against float64 at most twice torch's).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from memo_train.kernels import copy_tile, gelu, rms_norm, rope, swiglu
from memo_train.kernels._peers import EPSILON, OPERATIONS, Peers, Sizes
from memo_train.kernels.benchmark import make_inputs
from memo_train.testing import TOLERANCES

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (
    Sizes(tokens=1, hidden=8, ffn=3, heads=1, head_dim=16),
    Sizes(tokens=33, hidden=136, ffn=77, heads=3, head_dim=48),
    Sizes(tokens=300, hidden=520, ffn=1024, heads=2, head_dim=64),
)
ERROR_OVER_PLAIN = TOLERANCES[torch.float32].error_over_plain
CPU = torch.device("cpu")
DEVICES = [CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])]

pytestmark = pytest.mark.usefixtures("toolkit")


def with_gradients(way: Callable[..., Tensor], inputs: list[Tensor], num: int) -> list[Tensor]:
    """The result, and the gradients of the first `num` inputs for a loss of uneven weights."""
    leaves = [x.detach().clone().requires_grad_(i < num) for i, x in enumerate(inputs)]
    y = way(*leaves)
    dy = torch.linspace(-1, 2, y.numel(), device=y.device).reshape(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves[:num], dy)]


def random_inputs(
    peers: Peers, dtype: torch.dtype, sizes: Sizes, device: torch.device = CPU
) -> list[Tensor]:
    return [2 * x.detach() for x in make_inputs(peers, dtype, sizes, device)]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: str(sizes.tokens))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_results_and_gradients_are_as_exact_as_torchs(
    operation: str, dtype: torch.dtype, sizes: Sizes, device: torch.device
) -> None:
    peers = OPERATIONS[operation]
    inputs, num = random_inputs(peers, dtype, sizes, device), peers.num_differentiated
    exact = with_gradients(peers.torchs[0], [x.double() for x in inputs], num)
    plain = with_gradients(peers.torchs[0], inputs, num)
    ours = with_gradients(peers.kernel, inputs, num)
    for value, torchs, right in zip(ours, plain, exact, strict=True):
        assert value.dtype is dtype
        assert value.shape == right.shape
        error, limit = ((t.double() - right).norm() for t in (value, torchs))
        rounding = torch.finfo(dtype).eps * right.norm()  # a handful of numbers may be exact
        assert error <= ERROR_OVER_PLAIN * max(limit, rounding / 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_results_are_rounded_once(operation: str, dtype: torch.dtype) -> None:
    peers = OPERATIONS[operation]
    inputs = random_inputs(peers, dtype, SIZES[1])
    exact = peers.torchs[0](*(x.double() for x in inputs))
    ours = peers.kernel(*inputs)
    off = (ours.double() - exact).abs()
    smallest = torch.finfo(dtype).smallest_normal
    assert (off <= 0.501 * torch.finfo(dtype).eps * exact.abs() + smallest).all()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_are_those_of_small_differences(operation: str) -> None:
    """Along a random direction; the results are summed in float64 with uneven weights."""
    peers = OPERATIONS[operation]
    inputs, num = random_inputs(peers, torch.float32, SIZES[1]), peers.num_differentiated
    _, *gradients = with_gradients(peers.kernel, inputs, num)
    generator = torch.Generator().manual_seed(7)
    steps = [torch.randn(x.shape, generator=generator) * (i < num) for i, x in enumerate(inputs)]

    def loss(share: float) -> float:
        y = peers.kernel(*(x + share * step for x, step in zip(inputs, steps, strict=True)))
        return float((y.double() * torch.linspace(-1, 2, y.numel()).reshape(y.shape)).sum())

    along = sum(float((g.double() * s).sum()) for g, s in zip(gradients, steps, strict=False))
    size = sum(float((g.double() * s).abs().sum()) for g, s in zip(gradients, steps, strict=False))
    assert abs((loss(1e-3) - loss(-1e-3)) / 2e-3 - along) <= 1e-3 * size


@pytest.mark.parametrize("value", [-1e4, -100.0, 0.0, 100.0, 1e4])
@pytest.mark.parametrize("operation", ["swiglu", "gelu", "gelu_tanh"])
def test_extreme_numbers(operation: str, value: float) -> None:
    peers = OPERATIONS[operation]
    num = peers.num_differentiated
    inputs = [torch.full((9,), value), torch.ones(9)][:num]
    ours = with_gradients(peers.kernel, inputs, num)
    plain = with_gradients(peers.torchs[0], inputs, num)
    for mine, torchs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-6, atol=1e-30)


def test_norm_of_zeros_and_of_great_rows() -> None:
    weight = torch.ones(8)
    assert torch.equal(rms_norm(torch.zeros(2, 8), weight, EPSILON), torch.zeros(2, 8))
    great = rms_norm(torch.full((2, 8), 1e18), weight, EPSILON)
    torch.testing.assert_close(great, torch.ones(2, 8))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_is_a_proper_operator(operation: str) -> None:
    peers = OPERATIONS[operation]
    inputs = make_inputs(peers, torch.float32, SIZES[1], CPU)
    x, *rest = inputs
    calls = {
        "rms_norm": (rms_norm, (*inputs, EPSILON)),
        "swiglu": (swiglu, inputs),
        "gelu": (gelu, inputs),
        "gelu_tanh": (gelu, (*inputs, "tanh")),
        "rope": (rope, (x.transpose(1, 2).detach().requires_grad_(), *rest)),
    }
    operator, args = calls[operation]
    torch.library.opcheck(operator, args)


def test_backward_is_made_of_proper_operators() -> None:
    x, dy, weight = torch.randn(3, 6, 8), torch.randn(3, 6, 8), torch.randn(8)
    heads, table = torch.randn(2, 5, 3, 16).transpose(1, 2), torch.randn(5, 16)
    ops = torch.ops.memo_train
    scales = ops.rms_norm_backward(dy, x, weight, EPSILON)[1]
    for operator, args in (
        (ops.rms_norm_backward, (dy, x, weight, EPSILON)),
        (ops.rms_norm_weight_gradient, (dy, x, scales, weight)),
        (ops.swiglu_backward, (dy, x, x)),
        (ops.gelu_backward, (dy.transpose(0, 1), x.transpose(0, 1), "tanh")),
        (ops.rope_backward, (heads, table, table)),
    ):
        torch.library.opcheck(operator, args)


def test_operator_keeps_the_layout_that_its_fake_says() -> None:
    x = torch.randn(2, 5, 3, 16).transpose(1, 2).requires_grad_()
    fused = torch.randn(2, 5, 3, 48)[..., :16].transpose(1, 2)
    for heads in (x, fused):
        torch.library.opcheck(rope, (heads, torch.randn(5, 16), torch.randn(5, 16)))
    torch.library.opcheck(rms_norm, (torch.randn(8, 6).t(), torch.randn(8), EPSILON))
    tile = torch.zeros(2, 3, 8)
    torch.library.opcheck(torch.ops.memo_train.copy_tile, (tile, torch.randn(2, 9, 8)[:, 2:5]))


def test_views_that_are_not_aligned_or_not_contiguous() -> None:
    x, other = torch.randn(6, 8), torch.randn(6, 8)
    assert torch.equal(swiglu(x.t()[1:], other.t()[1:]), swiglu(x, other).t()[1:])
    flat, rest = x.view(-1)[1:], other.view(-1)[1:]
    assert torch.equal(swiglu(flat, rest), swiglu(x, other).view(-1)[1:])
    assert torch.equal(gelu(x.t()[1:]), gelu(x).t()[1:])
    weight = torch.randn(9)[1:]
    assert torch.equal(rms_norm(x.t().contiguous().t(), weight, 1e-6), rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("batch_of_tables", [0, 1, 2])
def test_heads_in_any_layout(batch_of_tables: int) -> None:
    shape = (5, 16) if batch_of_tables == 0 else (batch_of_tables, 5, 16)
    cos, sin = torch.randn(shape), torch.randn(shape)
    wide = torch.randn(2, 5, 3, 40)
    layouts = [
        wide[..., :16].transpose(1, 2),
        wide[..., 2:18].transpose(1, 2),  # not aligned
        wide[..., :32:2].transpose(1, 2),  # every second number
        wide[:1, ..., :16].expand(2, 5, 3, 16).transpose(1, 2),
    ]
    for x in layouts:
        wide_cos, wide_sin = (t if batch_of_tables == 0 else t[:, None] for t in (cos, sin))
        right = OPERATIONS["rope"].torchs[0](x.transpose(1, 2), wide_cos, wide_sin)
        torch.testing.assert_close(rope(x, cos, sin), right)


def test_rotating_back_gives_the_heads_again() -> None:
    angles = torch.randn(7, 16).repeat(1, 2)
    x = torch.randn(2, 3, 7, 32, requires_grad=True)
    y = rope(x, angles.cos(), angles.sin())
    (back,) = torch.autograd.grad(y, x, y.detach())
    torch.testing.assert_close(back, x.detach())


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_weight_gradient_does_not_depend_on_the_run(device: torch.device) -> None:
    inputs = random_inputs(OPERATIONS["rms_norm"], torch.float32, SIZES[2], device)
    first, second = (with_gradients(OPERATIONS["rms_norm"].kernel, inputs, 2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nothing_of_nothing() -> None:
    weight = torch.ones(8, requires_grad=True)
    rms_norm(torch.zeros(0, 8), weight, EPSILON).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.zeros(8))
    assert swiglu(torch.zeros(0), torch.zeros(0)).shape == (0,)
    assert rope(torch.zeros(1, 2, 0, 8), torch.zeros(0, 8), torch.zeros(0, 8)).numel() == 0


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tile_is_gathered_and_scattered(dtype: torch.dtype, device: torch.device) -> None:
    whole = torch.randn(3, 50, 24).to(device, dtype)
    before, tile = whole.clone(), torch.zeros(3, 10, 24, dtype=dtype, device=device)
    copy_tile(tile, whole[:, 20:30])
    assert torch.equal(tile, whole[:, 20:30])
    copy_tile(whole[:, 5:15], tile)
    assert torch.equal(whole[:, 5:15], before[:, 20:30])
    assert torch.equal(whole[:, :5], before[:, :5])
    assert torch.equal(whole[:, 15:], before[:, 15:])
