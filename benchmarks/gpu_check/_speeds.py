"""What the machine itself does: facts, matrix products, attention by backend, copies, pinning."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check._parts import available_bytes
from memo_train.device import get_cpu_device, get_cuda_device
from memo_train.trace import CopyBuffers

_REPEATS = 3
_MIB = 2**20
_HEADS, _KV_HEADS, _HEAD_DIM = 32, 8, 128
_HIDDEN, _FFN = 4096, 14336
_TINY = 8
"""By so much heads and widths are smaller on the CPU."""


def machine(on_gpu: bool) -> dict[str, Any]:
    """What there is: versions, the card, memory."""
    import transformers

    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processors": os.cpu_count(),
        "nvcc": shutil.which("nvcc") or "none",
    }
    for path in ("enabled", "defrag"):
        file = Path(f"/sys/kernel/mm/transparent_hugepage/{path}")
        facts[f"huge_pages_{path}"] = file.read_text().strip() if file.exists() else "none"
    figures = {"host_bytes": float(available_bytes())}
    if on_gpu:
        found = torch.cuda.get_device_properties(0)
        facts |= {"gpu": found.name, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
        free, total = torch.cuda.mem_get_info()
        figures |= {"gpu_bytes": float(total), "gpu_free_bytes": float(free)}
    text = ", ".join(f"{name} {value}" for name, value in facts.items())
    return {**facts, "text": text, "figures": figures}


def products(on_gpu: bool, tokens: list[int]) -> dict[str, Any]:
    """FLOP/s of a block's largest matrix product by the tokens of a tile."""
    where, hidden, ffn = _where(on_gpu), _width(_HIDDEN, on_gpu), _width(_FFN, on_gpu)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    weight = torch.randn(ffn, hidden, device=where, dtype=dtype)
    figures: dict[str, float] = {}
    for count in tokens:
        x = torch.randn(count, hidden, device=where, dtype=dtype)
        seconds = _least_s(on_gpu, partial(torch.nn.functional.linear, x, weight))
        figures[f"at_{count}_flops_per_s"] = 2.0 * count * hidden * ffn / seconds
    return {"figures": figures}


def attention(on_gpu: bool, backend: str, tokens: list[int]) -> dict[str, Any]:
    """FLOP/s of causal attention, forward and backward, by length; backward counts 2.5 forwards."""
    scale = 1 if on_gpu else _TINY
    dtype = torch.bfloat16 if on_gpu else torch.float32
    figures: dict[str, float] = {}
    for length in tokens:
        shapes = [(1, heads // scale or 1, length, _HEAD_DIM) for heads in (_HEADS, _KV_HEADS)]
        q, k, v = (
            torch.randn(shape, device=_where(on_gpu), dtype=dtype, requires_grad=True)
            for shape in (shapes[0], shapes[1], shapes[1])
        )

        def forward(q: Any = q, k: Any = k, v: Any = v) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=True
            )

        try:
            with _only(backend):
                forward_s = _least_s(on_gpu, forward)
                backward_s = _least_s(on_gpu, partial(_backward, forward()))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # torch's way to say that this kernel does not take the call
            return {"outcome": f"refused: {str(error).splitlines()[0]}", "figures": figures}
        flops = 2.0 * float(length) ** 2 * shapes[0][1] * _HEAD_DIM
        figures[f"forward_at_{length}_flops_per_s"] = flops / forward_s
        figures[f"backward_at_{length}_flops_per_s"] = 2.5 * flops / backward_s
    return {"figures": figures}


def link(on_gpu: bool, sizes_mib: list[int]) -> dict[str, Any]:
    """Bytes per second of copies by size, each way alone and both together."""
    device = get_cuda_device() if on_gpu else get_cpu_device()
    figures: dict[str, float] = {}
    for mib in sizes_mib:
        with CopyBuffers(device, mib * _MIB) as buffers:
            ways = {"d2h": [buffers.to_host], "h2d": [buffers.to_device]}
            ways["both"] = [*ways["d2h"], *ways["h2d"]]
            for name, copies in ways.items():
                copies = copies * max(2, min(16, 1024 // mib))
                moved = len(copies) * mib * _MIB
                figures[f"{name}_{mib}_mib_bytes_per_s"] = moved / _copied_s(device, copies)
    return {"figures": figures}


def _copied_s(device: Any, copies: list[Callable[[], Any]]) -> float:
    start_s = time.perf_counter()
    for copy in copies:
        copy()
    device.synchronize()
    return time.perf_counter() - start_s


def pinning(on_gpu: bool, mib: int) -> dict[str, Any]:
    """Bytes per second at which host memory is pinned, first and from what was given back."""
    device = get_cuda_device() if on_gpu else get_cpu_device()
    num_bytes, figures = mib * _MIB // 4, {}
    for name in ("first", "again"):
        start_s = time.perf_counter()
        ranges = [device.host_alloc(num_bytes) for _ in range(4)]
        taken_s = max(time.perf_counter() - start_s, 1e-9)
        for address in ranges:
            device.host_free(address)
        figures[f"{name}_bytes_per_s"] = 4 * num_bytes / taken_s
    return {"figures": figures}


SPEEDS: dict[str, Callable[..., dict[str, Any]]] = {
    "machine": machine,
    "products": products,
    "attention": attention,
    "link": link,
    "pinning": pinning,
}
"""By the kind of job; the first argument says whether there is a GPU."""


def _where(on_gpu: bool) -> torch.device:
    return torch.device("cuda" if on_gpu else "cpu")


def _backward(o: torch.Tensor) -> None:
    torch.autograd.backward(o, torch.ones_like(o), retain_graph=True)


def _width(width: int, on_gpu: bool) -> int:
    return width if on_gpu else width // _TINY


def _least_s(on_gpu: bool, run: Callable[[], Any]) -> float:
    """The best of three, after one that loads the kernels; on a GPU by events."""
    run()
    least_s = float("inf")
    for _ in range(_REPEATS):
        if not on_gpu:
            start_s = time.perf_counter()
            run()
            least_s = min(least_s, time.perf_counter() - start_s)
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        run()
        end.record()
        end.synchronize()
        least_s = min(least_s, begin.elapsed_time(end) / 1e3)
    return max(least_s, 1e-9)


def _only(backend: str) -> Any:
    """torch's attention by that kernel alone; it raises where it has none for the call."""
    if backend == "default":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    return sdpa_kernel([names[backend]])
