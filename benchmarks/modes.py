"""The four ways to train that are compared, each on the same arena and with the same tiled loss.

    plain               everything autograd saves stays on the device
    checkpoint          Hugging Face checkpointing: block inputs stay, the rest is computed again
    checkpoint_offload  the same with block inputs on the host, copied asynchronously
    memo                memo_train.wrap

Every mode runs in a process of its own (benchmarks/worker.py), so that none inherits another's
memory. The device cap is the model's state (parameters, gradients, AdamW) plus activation_bytes;
gradients stay allocated between steps, so the state is the same size all the time.
"""

import gc
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import memo_train
from benchmarks.job import Job
from benchmarks.llama import build_model, piece_of_text
from benchmarks.offloaded_checkpoints import OffloadedCheckpoints
from benchmarks.posix_allocator import use_posix_allocator
from memo_train.device import get_cpu_device
from memo_train.device.errors import HostMemoryExceeded
from memo_train.errors import PlanInfeasible
from memo_train.runtime._loss import TiledLoss

DEFAULT_LOSS_TILE = 1024
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One whole step: loss, wall time, and peaks (activation: device peak above the state).

    num_groups: of heads, in which attention ran one after the other; 1 in all modes but memo.
    """

    loss: float
    seconds: float
    activation_peak_bytes: int
    host_peak_bytes: int
    d2h_copies: int
    stalls: int
    num_groups: int


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a length did not fit; max_tokens is what the planner says would, None if nobody knows."""

    refusal: str
    max_tokens: int | None


class ModeRun:
    """A model, its optimiser and one mode of training it, under the job's caps."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._device = get_cpu_device()
        self._model = build_model(job)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=1e-3, weight_decay=0.0, fused=True
        )
        self.state_bytes = self._make_state()
        self._offload: OffloadedCheckpoints | None = None
        self._wrapped_tokens: int | None = None
        self._set_cap()
        self._enter_mode()

    def step(self, tokens: int, index: int = 0) -> StepResult:
        """Forward, backward, AdamW step and zero_grad on piece number index of the text."""
        self._prepare(tokens)
        self._device.reset_peak()
        before = self._device.counters()
        started_s = time.perf_counter()
        loss = self._forward_backward(tokens, index)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        seconds = time.perf_counter() - started_s
        if self._wrapped_tokens is not None:
            memo_train.memory_report(self._model)  # the next step does not share the cores
        after = self._device.counters()
        return StepResult(
            loss=loss,
            seconds=seconds,
            activation_peak_bytes=after.device_peak_bytes - self.state_bytes,
            host_peak_bytes=after.host_peak_bytes,
            d2h_copies=after.d2h_copies - before.d2h_copies,
            stalls=after.stalls - before.stalls,
            num_groups=self._num_groups,
        )

    def try_length(self, tokens: int) -> StepResult | Refusal:
        """A whole step and a second forward and backward, or why they do not fit."""
        try:
            result = self.step(tokens)
            self._forward_backward(tokens, 1)
        except (torch.OutOfMemoryError, HostMemoryExceeded, PlanInfeasible) as error:
            refusal = Refusal(
                refusal=str(error).splitlines()[0], max_tokens=getattr(error, "max_tokens", None)
            )
        else:
            self._optimizer.zero_grad(set_to_none=False)
            return result
        self._recover()
        return refusal

    def save_gradients(self, tokens: int, path: Path) -> None:
        """Forward and backward on the first piece of the text; gradients by parameter name."""
        self._prepare(tokens)
        self._forward_backward(tokens, 0)
        named = self._model.named_parameters()
        gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
        save_file(gradients, str(path))
        self._optimizer.zero_grad(set_to_none=False)

    @property
    def _num_groups(self) -> int:
        if self._wrapped_tokens is None:
            return 1
        return memo_train.plan(self._model).policy.num_groups

    def _forward_backward(self, tokens: int, index: int) -> float:
        ids = piece_of_text(tokens, index)
        loss: Tensor = self._model(input_ids=ids, labels=ids).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def _make_state(self) -> int:
        """Allocate gradients and AdamW's moments, all zero; weights stay. Their size in bytes."""
        for parameter in self._model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self._optimizer.step()
        sizes: list[int] = [parameter.nbytes for parameter in self._model.parameters()]
        return 4 * sum(sizes)

    def _set_cap(self) -> None:
        gc.collect()
        activation_bytes = self.job.activation_bytes
        # In mode memo `wrap` sets the same caps, and measures the model before it does.
        if activation_bytes is not None and self.job.mode != "memo":
            self._device.set_device_cap(self.state_bytes + activation_bytes)

    def _enter_mode(self) -> None:
        model, job = self._model, self.job
        if job.mode == "memo":
            return
        if job.mode != "plain":
            model.activation_checkpointing_enable({"use_reentrant": False})
        if job.mode == "checkpoint_offload":
            self._offload = OffloadedCheckpoints(self._device, model.model.layers)
        tiled_loss = TiledLoss(model, model.model, model.lm_head)
        tiled_loss.tile_tokens = job.tile_tokens or DEFAULT_LOSS_TILE
        model.forward = tiled_loss.forward

    def _prepare(self, tokens: int) -> None:
        """In mode memo, plan for this length."""
        if self.job.mode != "memo" or self._wrapped_tokens == tokens:
            return
        if self._wrapped_tokens is not None:
            memo_train.unwrap(self._model)
            self._wrapped_tokens = None
            self._set_cap()
        activation_bytes = self.job.activation_bytes
        memo_train.wrap(
            self._model,
            seq_len=tokens,
            device_gib=None
            if activation_bytes is None
            else (self.state_bytes + activation_bytes) / GIB,
            host_gib=None if self.job.host_bytes is None else self.job.host_bytes / GIB,
            alpha=self.job.alpha,
            tile_tokens=self.job.tile_tokens,
        )
        memo_train.use_layouts(self._model, self.job.allocator == "layout")
        if self.job.allocator == "torch":
            use_posix_allocator(self._device)
        self._wrapped_tokens = tokens

    def _recover(self) -> None:
        """Leave nothing of a failed step behind."""
        if self._offload is not None:
            self._offload.reset()
        gc.collect()
        self._optimizer.zero_grad(set_to_none=False)
