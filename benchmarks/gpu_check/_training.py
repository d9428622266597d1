"""One model and every way to train it that is compared: the peers', and memo-train's.

All compute the loss by the same tiles: whole logits of long sequences fit nowhere. AdamW's rate is
0, so that weights stay and every way and step has the same loss.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

import memo_train
from benchmarks.gpu_check._parts import Geometry
from benchmarks.offloaded_checkpoints import OffloadedCheckpoints
from memo_planner.hardware import NAMED
from memo_train.device import get_cpu_device, get_cuda_device
from memo_train.planning import StepPlanner
from memo_train.runtime import ignore
from memo_train.runtime._loss import TiledLoss
from memo_train.trace._timing import StageClock
from memo_train.wrap import planner_of

GIB = 2**30
ALPHAS = {"memo": None, "memo_recompute": 0.0, "memo_swap": 1.0}
_LOSS_TILE = 4096
_CHUNK_TOKENS = 4096
_OUTSIDE_BLOCKS = ("loss", "between")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a way may use. device_bytes: None for all there is. host_bytes: of pinned memory."""

    host_bytes: int
    device_bytes: int | None = None
    tile_tokens: int | None = None


class Training:
    """A Llama with random weights and its optimiser on the device of this process."""

    def __init__(self, geometry: Geometry, *, on_gpu: bool) -> None:
        self.geometry = geometry
        self.on_gpu = on_gpu
        self.device: Any = get_cuda_device() if on_gpu else get_cpu_device()
        self.where = self.device.torch_device
        self.model = self._build()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=True)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        state = sum(4 * p.nbytes if p.requires_grad else p.nbytes for p in self.model.parameters())
        self.state_bytes = int(state)
        self._around: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.finish()

    @contextmanager
    def trained_by(self, mode: str, tokens: int, limits: Limits) -> Iterator[StepPlanner | None]:
        """While active, the model is trained that way; what plans its steps, where something does.

        Raises: ImportError, where a peer is not installed; PlanInfeasible.
        """
        undo: list[Callable[[], Any]] = []
        try:
            if mode in ALPHAS:
                yield self._wrap(mode, tokens, limits, undo)
            else:
                self._enter_peer(mode, limits, undo)
                yield None
        finally:
            while undo:
                undo.pop()()
            self._around = nullcontext
            self._optimizer.zero_grad(set_to_none=False)
            self.clean()

    def ids(self, tokens: int) -> torch.Tensor:
        """Random tokens [1, tokens], the same each time."""
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(0, self.geometry.vocab, (1, tokens), generator=generator)
        return ids.to(self.where)

    def step(self, ids: torch.Tensor) -> tuple[float, float]:
        """Forward, backward and AdamW: seconds, and the loss."""
        self.finish()
        start_s = time.perf_counter()
        with self._around():
            loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        self.finish()
        return time.perf_counter() - start_s, float(loss.detach())

    def gradients(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of every trained parameter, on the device; none is left at the parameters."""
        self._optimizer.zero_grad(set_to_none=False)
        self.model(input_ids=ids, labels=ids).loss.backward()
        named = self.model.named_parameters()
        found = {name: p.grad.clone() for name, p in named if p.grad is not None}
        self._optimizer.zero_grad(set_to_none=False)
        return found

    def finish(self) -> None:
        """Wait for all work and all copies."""
        if self.on_gpu:
            torch.cuda.synchronize()
        self.device.synchronize()

    def clean(self) -> None:
        """Give back what nobody uses."""
        gc.collect()
        self.finish()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def step_flops(self, tokens: int) -> float:
        """FLOPs of a step that computes nothing twice; frozen weights get no gradients.

        Attention is causal, and its backward is two forwards.
        """
        geometry = self.geometry
        every: list[int] = [p.numel() for p in self.model.parameters()]
        weights = sum(every) - geometry.vocab * geometry.hidden
        passes = 2 if geometry.lora_rank else 3
        attention = 2.0 * geometry.layers * geometry.hidden * float(tokens) ** 2
        return 2.0 * weights * tokens * passes + 3 * attention

    @property
    def peak_flops(self) -> float:
        """FLOP/s of the device by its data sheet; of an unknown one, an H100's."""
        if not self.on_gpu:
            return NAMED["cpu"].peak_flops
        name = torch.cuda.get_device_name(self.where).lower()
        known = (machine for key, machine in NAMED.items() if key.split("-")[0] in name)
        return next(known, NAMED["h100-80g-x8"]).peak_flops

    def _build(self) -> Any:
        import transformers

        geometry = self.geometry
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=geometry.vocab,
            hidden_size=geometry.hidden,
            intermediate_size=geometry.ffn,
            num_hidden_layers=geometry.layers,
            num_attention_heads=geometry.heads,
            num_key_value_heads=geometry.kv_heads,
            max_position_embeddings=2**20,
            tie_word_embeddings=False,
            use_cache=False,
        )
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, geometry.dtype))
        try:
            with self.where:
                model = transformers.LlamaForCausalLM(config)
                if geometry.lora_rank:
                    _adapt(model, geometry.lora_rank)
        finally:
            torch.set_default_dtype(before)
        model.set_attn_implementation("sdpa")
        return model.train()

    def _wrap(
        self, mode: str, tokens: int, limits: Limits, undo: list[Callable[[], Any]]
    ) -> StepPlanner:
        device_bytes = limits.device_bytes
        memo_train.wrap(
            self.model,
            seq_len=tokens,
            device_gib=None if device_bytes is None else device_bytes / GIB,
            host_gib=limits.host_bytes / GIB,
            alpha=ALPHAS[mode],
            tile_tokens=limits.tile_tokens,
        )
        undo.append(lambda: memo_train.unwrap(self.model))
        return planner_of(self.model)

    def _enter_peer(self, mode: str, limits: Limits, undo: list[Callable[[], Any]]) -> None:
        if limits.device_bytes is not None:
            self.device.set_device_cap(limits.device_bytes)
            undo.append(lambda: self.device.set_device_cap(None))
        if mode == "streambp":
            self._enter_streambp(undo)
            return
        if mode != "plain":
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            undo.append(self.model.gradient_checkpointing_disable)
        if mode == "hf_offload":
            offload = OffloadedCheckpoints(self.device, self.model.model.layers)
            undo.append(offload.reset)
        if mode == "trl_offload":
            from trl.models.activation_offloading import OffloadActivations

            if not self.on_gpu:
                raise ImportError("TRL's OffloadActivations offloads from accelerators only")
            self._around = lambda: OffloadActivations(use_pin_memory=True, use_streams=True)
        loss = TiledLoss(self.model, self.model.model, self.model.lm_head)
        loss.tile_tokens = _LOSS_TILE
        self.model.forward = loss.forward
        undo.append(lambda: self.model.__dict__.pop("forward", None))

    def _enter_streambp(self, undo: list[Callable[[], Any]]) -> None:
        """StreamBP cuts the loss and each checkpointed block by tokens itself."""
        from streambp.stream_model import StreamModel  # type: ignore[import-not-found]

        plain = self.model
        undo.append(lambda: setattr(self, "model", plain))
        self.model = StreamModel(
            plain,
            gradient_accumulation_steps=1,
            logits_chunk_size=_CHUNK_TOKENS,
            stream_checkpoint=True,
            checkpoint_chunk_size=_CHUNK_TOKENS,
        )
        self.model.gradient_checkpointing_enable()
        undo.append(plain.gradient_checkpointing_disable)


def _adapt(model: Any, rank: int) -> None:
    """LoRA on every projection of the blocks; nothing else is trained. Raises: ImportError."""
    from peft import LoraConfig, inject_adapter_in_model

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, init_lora_weights=False)
    inject_adapter_in_model(config, model)


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How often a step is timed: `most` times after the first, before `deadline_s` of the epoch.

    most: 0 for long steps, of which the first counts.
    """

    most: int
    deadline_s: float

    def allow(self, done: int, last_s: float) -> bool:
        """Whether one more step is wanted, and likely over in time."""
        return done < self.most and time.time() + 1.2 * last_s + 2 < self.deadline_s


def figures_of_steps(
    training: Training, tokens: int, planner: StepPlanner | None, repeats: Repeats
) -> dict[str, Any]:
    """Seconds, peaks, copies and stalls of whole steps.

    The first warms up and counts only where there is time for no other. A short step before it has
    loaded the kernels.
    """
    training.step(training.ids(min(tokens, 2048)))
    ids, seconds, first_s, loss = training.ids(tokens), list[float](), 0.0, 0.0
    clock = StageClock(training.device)
    while not first_s or repeats.allow(len(seconds), seconds[-1] if seconds else first_s):
        training.finish()
        training.device.reset_peak()
        training.device.reset_counters()
        clock = StageClock(training.device)
        if planner is not None:
            planner.wrapped.observer = clock
        took_s, loss = training.step(ids)
        if first_s:
            seconds.append(took_s)
        first_s = first_s or took_s
    seconds = seconds or [first_s]
    found = _figures(training, tokens, seconds)
    found |= {"first_s": first_s, "loss": loss}
    if planner is not None:
        planner.wrapped.observer = ignore
        found |= _planned(planner, clock)
    return found


def _figures(training: Training, tokens: int, seconds: list[float]) -> dict[str, Any]:
    """Of the last step by the device's counters, and of all by their seconds."""
    counters = training.device.counters()
    middle_s = statistics.median(seconds)
    found: dict[str, Any] = {
        "seconds": seconds,
        "tokens_per_s": tokens / middle_s,
        "mfu": training.step_flops(tokens) / middle_s / training.peak_flops,
        "device_peak_bytes": counters.device_peak_bytes,
        "device_reserved_bytes": counters.device_high_water_bytes,
        "state_bytes": training.state_bytes,
        "host_peak_bytes": counters.host_peak_bytes,
        "stall_share": counters.stall_s / max(seconds[-1], 1e-9),
    }
    for way in ("d2h", "h2d"):
        num_bytes, busy_s = (getattr(counters, f"{way}_{name}") for name in ("bytes", "busy_s"))
        found[f"{way}_bytes"] = num_bytes
        if busy_s > 0:
            found[f"{way}_bytes_per_s"] = num_bytes / busy_s
    return found


def _planned(planner: StepPlanner, clock: StageClock) -> dict[str, Any]:
    """What the plan said, and the seconds of the blocks, which is what it speaks of."""
    assert planner.last is not None
    told = planner.last.plan.prediction
    stages = clock.seconds()
    return {
        "predicted_s": told.step_forward_s + told.step_backward_s,
        "predicted_peak_bytes": told.device_peak_bytes,
        "predicted_host_bytes": told.host_peak_bytes,
        "predicted_stall_s": told.stall_s,
        "blocks_s": sum(s for stage, s in stages.items() if stage not in _OUTSIDE_BLOCKS),
        **{f"{stage}_s": seconds for stage, seconds in stages.items()},
    }
