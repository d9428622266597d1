"""What a caller of the device can do wrong. C++ raises these by name (`_core` and `_cuda`)."""

from memo_planner.errors import MemoError

__all__ = [
    "CudaError",
    "CudaUnavailable",
    "DeviceError",
    "DeviceMemoryExceeded",
    "ForkedProcess",
    "HookUnavailable",
    "HostMemoryExceeded",
    "InvalidDeviceArgument",
    "NoPlannedAddresses",
    "UncountedMemory",
    "UnsupportedDevice",
]


class DeviceError(MemoError):
    """Root of the device's errors."""


class InvalidDeviceArgument(DeviceError, ValueError):
    """A size, address, cap or bandwidth that cannot be used; nothing has changed."""


class CudaUnavailable(DeviceError):
    """The CUDA device was asked for, and this build or this machine has none."""


class CudaError(DeviceError):
    """A CUDA call failed; the message names call, device, code and bytes.

    Whether work under way was done is unknown, and so is everything on the device.
    """


class DeviceMemoryExceeded(DeviceError):
    """A request to the arena does not fit under the device cap.

    Tensors that do not fit raise `torch.OutOfMemoryError` with the same message instead.
    """


class HostMemoryExceeded(DeviceError):
    """A request to the host pool does not fit under the host cap."""


class ForkedProcess(DeviceError):
    """A forked child used the copy threads of its parent."""


class HookUnavailable(DeviceError):
    """Torch cannot be made to allocate from the arena: no compiler, or another allocator rules."""


class UnsupportedDevice(DeviceError):
    """Tensors lie where memo-train cannot copy from: on several devices, or on another kind."""


class UncountedMemory(DeviceError):
    """Tensors of a GPU come from an allocator that nobody counts for: no step can be planned."""


class NoPlannedAddresses(DeviceError):
    """A step was to be recorded on a GPU whose memory torch's own allocator serves."""
