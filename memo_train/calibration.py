"""Measures the machine that this process runs on, for the planner: `memo-plan hardware --measure`.

Matrix products by tile, attention by length and backend, the link each way alone and together, what
an operation and a tile cost besides their work, and how much memory tensors may use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from memo_planner.hardware import (
    CHOSEN,
    NAMED,
    AttentionRate,
    Hardware,
    MachineFile,
    ProductRate,
)
from memo_planner.profile import BlockTimes
from memo_planner.trace import LinkRates
from memo_train.device import Device, get_cpu_device, get_cuda_device, memory_share_bytes
from memo_train.model import Llama, LlamaConfig
from memo_train.runtime import WrappedModel, find_parts, probe_model
from memo_train.trace import measure_link_rates, measure_profile

BACKENDS = {
    CHOSEN: None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""Of torch's attention, by the names in a machine's file."""

_REPEATS = 3
_LAUNCHES = 1000
_BACKWARD = 2.5
_HEADROOM = 1.02
"""A peak that was measured lies above the best product: no share of it is more than 1."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Widths of a block and the lengths that are measured."""

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    product_tokens: tuple[int, ...]
    attention_tokens: tuple[int, ...]
    profiled_tokens: int

    @property
    def head_dim(self) -> int:
        """Numbers of a head."""
        return self.hidden // self.heads


GPU_SIZES = Sizes(
    hidden=4096,
    ffn=14336,
    heads=32,
    kv_heads=8,
    product_tokens=(256, 1024, 4096, 16384),
    attention_tokens=(4096, 16384, 65536),
    profiled_tokens=65536,
)
"""Of a block of Llama 3 8B."""

CPU_SIZES = Sizes(
    hidden=256,
    ffn=704,
    heads=4,
    kv_heads=2,
    product_tokens=(64, 512),
    attention_tokens=(256, 1024),
    profiled_tokens=1024,
)


def measure_machine() -> MachineFile:
    """The machine of this process: its current GPU where torch sees one, else the CPU device.

    Takes seconds. What one process cannot measure (links between devices and nodes) is the closest
    named machine's, and says so. Raises: torch.OutOfMemoryError, HostMemoryExceeded, DeviceError.
    """
    on_gpu = torch.cuda.is_available()
    device: Device = get_cuda_device() if on_gpu else get_cpu_device()
    sizes = GPU_SIZES if on_gpu else CPU_SIZES
    hardware = _memory_of(device)
    products = measure_products(device, sizes)
    attention = tuple(
        rate
        for backend in (BACKENDS if on_gpu else (CHOSEN,))
        for rate in measure_attention(device, sizes, backend)
    )
    times, link = _block_times(device, sizes), measure_link_rates(device)
    best = max([r.flops_per_s for r in products] + [r.flops_per_s for r in attention])
    if best > hardware.peak_flops:
        source = f"measured: {_HEADROOM} times the fastest product or attention"
        hardware = hardware.with_figures(source, peak_flops=_HEADROOM * best)
    return MachineFile.of(
        software=f"torch {torch.__version__}",
        hardware=_with_link(hardware, link),
        rates=(products, attention, link),
        launch_s=_launch_s(device),
        tile_s=(times.tile_overhead_s, times.tile_issue_s),
    )


def measure_products(device: Device, sizes: Sizes) -> tuple[ProductRate, ...]:
    """A block's largest matrix product, in the dtype that trains, by the tokens of a tile."""
    options: Any = {"device": device.torch_device, "dtype": _dtype(device)}
    weight = torch.randn(sizes.ffn, sizes.hidden, **options)
    rates = []
    for tokens in sizes.product_tokens:
        x = torch.randn(tokens, sizes.hidden, **options)
        seconds = _least_s(device, partial(F.linear, x, weight))
        flops = 2.0 * tokens * sizes.hidden * sizes.ffn
        rates.append(ProductRate(tokens=tokens, flops_per_s=flops / seconds))
    return tuple(rates)


def measure_attention(device: Device, sizes: Sizes, backend: str) -> tuple[AttentionRate, ...]:
    """Causal attention of one sequence by `backend`, by length; none where it takes no such call.

    Raises: torch.OutOfMemoryError.
    """
    rates = []
    for tokens in sizes.attention_tokens:
        try:
            with _only(backend):
                seconds = _attention_s(device, sizes, tokens)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # torch's way to say that the backend has no kernel for the call
            break
        flops = 2.0 * float(tokens) ** 2 * sizes.hidden
        rates.append(
            AttentionRate(
                backend=backend,
                tokens=tokens,
                forward_flops_per_s=flops / seconds[0],
                backward_flops_per_s=_BACKWARD * flops / seconds[1],
            )
        )
    return tuple(rates)


def _attention_s(device: Device, sizes: Sizes, tokens: int) -> tuple[float, float]:
    """Forward and backward."""
    q, k, v = (
        torch.randn(
            (1, heads, tokens, sizes.head_dim),
            device=device.torch_device,
            dtype=_dtype(device),
            requires_grad=True,
        )
        for heads in (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    )
    run = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True)
    o = run()
    back = partial(torch.autograd.grad, o, (q, k, v), torch.ones_like(o), retain_graph=True)
    return _least_s(device, run), _least_s(device, back)


def _dtype(device: Device) -> torch.dtype:
    return torch.bfloat16 if device.torch_device.type == "cuda" else torch.float32


def _only(backend: str) -> AbstractContextManager[Any]:
    kernel = BACKENDS[backend]
    return nullcontext() if kernel is None else sdpa_kernel([kernel])


def _least_s(device: Device, run: Callable[[], Any]) -> float:
    """The best of three, after one that loads the kernels; `device.now` waits for a GPU."""
    run()
    least_s = float("inf")
    for _ in range(_REPEATS):
        start_s = device.now()
        run()
        least_s = min(least_s, device.now() - start_s)
    return max(least_s, 1e-9)


def _launch_s(device: Device) -> float:
    """In which the thread asks for one small operation; on the CPU it is done then, too."""
    x = torch.zeros(1, device=device.torch_device)
    device.now()
    start_s = time.perf_counter()
    for _ in range(_LAUNCHES):
        x.add_(1.0)
    seconds = time.perf_counter() - start_s
    device.now()
    return seconds / _LAUNCHES


def _block_times(device: Device, sizes: Sizes) -> BlockTimes:
    """Of a block of those widths, as `memo_train.wrap` profiles a model's."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=sizes.hidden,
        ffn_size=sizes.ffn,
        num_blocks=1,
        num_heads=sizes.heads,
        num_kv_heads=sizes.kv_heads,
    )
    model = Llama(config).to(device=device.torch_device, dtype=_dtype(device))
    parts = find_parts(model)
    verdicts, loss = probe_model(parts, device)
    wrapped = WrappedModel(parts, verdicts, device, loss=None if loss.why_whole else loss)
    wrapped.install(_unplanned)
    try:
        return measure_profile(wrapped, 1, sizes.profiled_tokens).times
    finally:
        wrapped.restore()


def _unplanned(batch: int, tokens: int) -> NoReturn:
    raise AssertionError(f"a profile chose no policy for {batch} x {tokens} tokens")


def _memory_of(device: Device) -> Hardware:
    """The closest named machine with this one's name, devices and memory."""
    host_bytes = memory_share_bytes()
    if device.torch_device.type != "cuda":
        here = _named("cpu", f"this CPU, {torch.get_num_threads()} threads")
        device_bytes, reserve_bytes, devices = device.default_limit_bytes, 0, 1
        source = "the CPU device's default limit"
    else:
        name = torch.cuda.get_device_name(device.torch_device)
        devices = torch.cuda.device_count()
        here = _named(_closest(name), f"{name} x{devices}")
        torch.zeros(1, device=device.torch_device)
        free, device_bytes = torch.cuda.mem_get_info(device.torch_device)
        reserve_bytes = device_bytes - free
        source = "measured: memory of the device, and what was taken of it with CUDA loaded"
    here = here.with_figures(
        source, device_bytes=device_bytes, reserve_bytes=reserve_bytes, gpus_per_node=devices
    )
    source = "the operating system: memory that this machine's processes may have"
    return here.with_figures(source, host_nominal_bytes=host_bytes, host_usable_bytes=host_bytes)


def _named(closest: str, name: str) -> Hardware:
    machine = NAMED[closest]
    told = {**machine.__dict__, "name": name}
    here = Hardware(**told)
    for each in machine.sources:
        figure = {each.figure: getattr(machine, each.figure)}
        here = here.with_figures(f"as {closest}: {each.source}", **figure)
    return here


def _closest(device_name: str) -> str:
    """The named machine with that device, else the H100's."""
    known: Sequence[str] = [key for key in NAMED if key.split("-")[0] in device_name.lower()]
    return known[0] if known else "h100-80g-x8"


def _with_link(hardware: Hardware, rates: LinkRates) -> Hardware:
    here = hardware.with_figures(
        "measured: one rank, one direction at a time",
        d2h_alone_bytes_per_s=rates.d2h_alone_bytes_per_s,
        h2d_alone_bytes_per_s=rates.h2d_alone_bytes_per_s,
    )
    return here.with_figures(
        f"measured: both directions at once, {rates.num_ranks} rank"
        + ("s" if rates.num_ranks > 1 else "; assumption where more copy at once"),
        d2h_loaded_bytes_per_s=rates.d2h_all_ranks_bytes_per_s,
        h2d_loaded_bytes_per_s=rates.h2d_all_ranks_bytes_per_s,
    )
