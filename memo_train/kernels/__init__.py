"""Token-wise operations in one pass over memory, and copies of token tiles between strides.

    from memo_train import kernels
    print(kernels.use(model))  # then memo_train.wrap(model)

On a GPU these are kernels. On the CPU the same element code runs on the calling thread: a reference
for tests, not fast. On a GPU they have not run.
"""

from memo_train.kernels._activation import gelu
from memo_train.kernels._gated import swiglu
from memo_train.kernels._launch import copy_tile
from memo_train.kernels._norm import rms_norm
from memo_train.kernels._rotary import rope
from memo_train.kernels._switch import UsedKernels, use

__all__ = [
    "UsedKernels",
    "copy_tile",
    "gelu",
    "rms_norm",
    "rope",
    "swiglu",
    "use",
]
