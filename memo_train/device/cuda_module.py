"""The extension module of the CUDA device, if memo-train was built with it."""

from __future__ import annotations

from types import ModuleType

from memo_train.device.errors import CudaUnavailable


def load_cuda() -> ModuleType:
    """The extension module. Raises: CudaUnavailable if memo-train was built without it."""
    try:
        from memo_train import _cuda
    except ImportError as error:
        raise CudaUnavailable(
            "memo-train was built without its CUDA device; build it where a CUDA toolkit is "
            "installed, with MEMO_BUILD_CUDA=1"
        ) from error
    return _cuda
