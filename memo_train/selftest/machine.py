"""What the machine has: versions, processors, memory, GPUs, and what this build supports."""

from __future__ import annotations

import os
import platform
import resource
from typing import Any

import torch

from memo_train import _core
from memo_train.device.cuda import load_cuda
from memo_train.device.errors import DeviceError
from memo_train.selftest.anonymous import anonymous


def describe_machine() -> dict[str, Any]:
    """Facts for a report; nothing that names the machine or its user."""
    return {
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processors": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "lockable_bytes": _limit(resource.RLIMIT_MEMLOCK),
        "core_compiler": _core.COMPILER,
        "cuda": describe_cuda(),
    }


def describe_cuda() -> dict[str, Any]:
    """The CUDA device's build facts and GPUs, or why there are none."""
    try:
        module = load_cuda()
        count = module.device_count()
    except DeviceError as error:
        return {"built": None, "gpus": 0, "why": anonymous(str(error))}
    built = {"cuda": module.CUDA_VERSION, "compiler": module.COMPILER}
    facts = {"built": built, "gpus": count, "torch_has_cuda": torch.cuda.is_available()}
    if count == 0:
        facts["why"] = "this process sees no GPU"
    elif not torch.cuda.is_available():
        facts["why"] = "this build of torch does not use the GPUs that are there"
    else:
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        facts["torch_cuda"] = torch.version.cuda
        facts["names"] = [gpu.name for gpu in gpus]
        facts["memory_bytes"] = [gpu.total_memory for gpu in gpus]
        facts["capabilities"] = [f"{gpu.major}.{gpu.minor}" for gpu in gpus]
    return facts


def _limit(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft
