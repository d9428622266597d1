"""Hugging Face checkpointing whose block inputs wait in host memory: the strongest simple peer.

It uses the same device, host pool and asynchronous copies as memo_train. A block's input leaves
while the block computes and comes back while the block after it runs its backward. At most one
copy to the host is in flight, so at most one input waits on the device for its copy; the last
block's input stays, since its backward comes first.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from memo_train.device import CopyEvent, Device

_INPUT_DIMS = 3
"""[batch, tokens, hidden]"""


class HostInput:
    """One block input on its way to the host and back."""

    def __init__(self, device: Device, source: Tensor) -> None:
        self._device = device
        self._source: Tensor | None = source.detach()
        self._returned: Tensor | None = None
        self._shape, self._dtype, self._num_bytes = source.shape, source.dtype, source.nbytes
        self._host = device.host_alloc(self._num_bytes)
        self._copy: CopyEvent = device.copy_to_host(self._host, source.data_ptr(), self._num_bytes)

    def leave(self) -> None:
        """Wait for the copy to the host and give the device's memory back."""
        if self._source is not None:
            self._copy.wait()
            self._source = None

    def prefetch(self) -> None:
        """Start the copy back, once."""
        if self._returned is None:
            self.leave()
            self._returned = torch.empty(
                self._shape, dtype=self._dtype, device=self._device.torch_device
            )
            address = self._returned.data_ptr()
            self._copy = self._device.copy_to_device(address, self._host, self._num_bytes)

    def take(self) -> Tensor:
        """The input on the device; the host's memory is given back."""
        self.prefetch()
        self._copy.wait()
        self._free_host()
        assert self._returned is not None
        return self._returned

    def drop(self) -> None:
        """Give up both memories; for a step that failed."""
        self._copy.wait()
        self._free_host()
        self._source = self._returned = None

    def _free_host(self) -> None:
        if self._host:
            self._device.host_free(self._host)
            self._host = 0


class OffloadedCheckpoints:
    """Checkpoints every block of a model and keeps all inputs but the last block's on the host."""

    def __init__(self, device: Device, blocks: nn.ModuleList) -> None:
        self._device = device
        self._inputs: dict[int, HostInput] = {}
        self._kept: Tensor | None = None
        self._last = len(blocks) - 1
        for index, block in enumerate(blocks):
            block._gradient_checkpointing_func = self._checkpoint_of(index)

    def reset(self) -> None:
        """Forget what a failed step left behind."""
        for held in self._inputs.values():
            held.drop()
        self._inputs.clear()
        self._kept = None

    def _checkpoint_of(self, index: int) -> Any:
        def run(function: Any, x: Tensor) -> Any:
            if not torch.is_grad_enabled():
                return function(x)
            with saved_tensors_hooks(lambda saved: self._pack(index, saved), self._unpack):
                return checkpoint(function, x, use_reentrant=False)

        return run

    def _pack(self, index: int, saved: Tensor) -> int | Tensor:
        """Start the copy of block index's input; the one before must have left by now.

        What checkpointing saves besides (an empty stand-in, say) stays as it is.
        """
        if saved.dim() != _INPUT_DIMS:
            return saved
        if index > 0:
            self._inputs[index - 1].leave()
        if index == self._last:
            self._kept = saved.detach()
        else:
            self._inputs[index] = HostInput(self._device, saved)
        return index

    def _unpack(self, index: int | Tensor) -> Tensor:
        """Block index's input, asked for as its backward begins; starts the next one's way back."""
        if isinstance(index, Tensor):
            return index
        if index == self._last:
            returned, self._kept = self._kept, None
        else:
            returned = self._inputs.pop(index).take()
        if index > 0:
            self._inputs[index - 1].prefetch()
        assert returned is not None, f"input of block {index} asked for twice"
        return returned
