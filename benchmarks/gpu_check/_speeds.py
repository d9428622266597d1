"""What the machine itself does: facts, matrix products, attention by backend, copies, pinning."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check._parts import available_bytes
from memo_train.calibration import (
    CPU_SIZES,
    GPU_SIZES,
    Sizes,
    measure_attention,
    measure_machine,
    measure_products,
)
from memo_train.device import get_cpu_device, get_cuda_device
from memo_train.trace import CopyBuffers

_MIB = 2**20


def machine(on_gpu: bool) -> dict[str, Any]:
    """What there is: versions, the GPU, memory."""
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


def products(on_gpu: bool) -> dict[str, Any]:
    """FLOP/s of a block's largest matrix product by the tokens of a tile."""
    rates = measure_products(_device(on_gpu), _sizes(on_gpu))
    return {"figures": {f"at_{rate.tokens}_flops_per_s": rate.flops_per_s for rate in rates}}


def attention(on_gpu: bool, backend: str) -> dict[str, Any]:
    """FLOP/s of causal attention each way, by length."""
    rates = measure_attention(_device(on_gpu), _sizes(on_gpu), backend)
    if not rates:
        return {"outcome": "refused: torch has no such kernel for grouped queries of this dtype"}
    figures = {}
    for rate in rates:
        figures[f"forward_at_{rate.tokens}_flops_per_s"] = rate.forward_flops_per_s
        figures[f"backward_at_{rate.tokens}_flops_per_s"] = rate.backward_flops_per_s
    return {"figures": figures}


def calibration(on_gpu: bool, out: str) -> dict[str, Any]:
    """What `memo-plan hardware --measure` finds, written to `out`, for `--hardware`."""
    measured = measure_machine()
    measured.save(out)
    shares = measured.efficiency
    figures = {
        "linear_share": shares.linear,
        "attention_share": shares.attention,
        "tile_overhead_s": shares.tile_overhead_s,
        "tile_issue_s": shares.tile_issue_s,
        "launch_s": measured.launch_s,
    }
    return {"figures": figures}


def link(on_gpu: bool, sizes_mib: list[int]) -> dict[str, Any]:
    """Bytes per second of copies by size, each way alone and both together."""
    device = _device(on_gpu)
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
    device = _device(on_gpu)
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
    "calibration": calibration,
    "link": link,
    "pinning": pinning,
}
"""By the kind of job; the first argument says whether there is a GPU."""


def _device(on_gpu: bool) -> Any:
    return get_cuda_device() if on_gpu else get_cpu_device()


def _sizes(on_gpu: bool) -> Sizes:
    return GPU_SIZES if on_gpu else CPU_SIZES
