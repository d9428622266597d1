"""Token-wise operations in one pass over memory, and copies of token tiles between layouts.

    from memo_train import kernels
    print(kernels.use(model))  # then memo_train.wrap(model)

On a GPU these are kernels. On the CPU the same element code runs on the calling thread: a reference
for tests, not fast. On a GPU they have not run.
"""

from memo_train.kernels.activation import gelu
from memo_train.kernels.gated import swiglu
from memo_train.kernels.norm import rms_norm
from memo_train.kernels.rotary import rope
from memo_train.kernels.switch import UsedKernels, use
from memo_train.kernels.tile_copy import copy_tile

__all__ = ["UsedKernels", "copy_tile", "gelu", "rms_norm", "rope", "swiglu", "use"]
