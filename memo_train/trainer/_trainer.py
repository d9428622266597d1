"""The training loop around a model, wrapped by memo_train or not.

    One process:      python train.py
    Two processes:    torchrun --nproc-per-node 2 train.py      (data parallel over gloo)

Each batch is the global one: every rank takes its rows, and the loss is the mean over all predicted
tokens of the step, so the number of ranks does not change what is computed.
"""

import atexit
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice

import torch
import torch.distributed as dist
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import memo_train
from memo_train.errors import UnsupportedModel
from memo_train.trainer._config import TrainerConfig, TrainerError
from memo_train.trainer._metrics import MetricsLog, StepMetrics

IGNORE_INDEX = -100
Batch = Mapping[str, Tensor]


def take_step(batches: Iterator[Batch], num_batches: int, step: int) -> list[dict[str, Tensor]]:
    """The next num_batches batches, each with labels (input_ids where none are given).

    Raises:
        TrainerError: the batches ended, or one has no input_ids or labels of another shape.
    """
    taken = [_with_labels(batch, step) for batch in islice(batches, num_batches)]
    if len(taken) < num_batches:
        raise TrainerError(
            f"step {step} needs {num_batches} batches, {len(taken)} were left; "
            "give more batches or ask for fewer steps"
        )
    return taken


def count_predictions(batch: Batch) -> int:
    """How many tokens a batch predicts: labels that count, but for each row's first."""
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())


def _with_labels(batch: Batch, step: int) -> dict[str, Tensor]:
    if "input_ids" not in batch:
        raise TrainerError(f"step {step}: the batch has {sorted(batch)} but no input_ids")
    filled = {"labels": batch["input_ids"], **batch}
    ids, labels = tuple(filled["input_ids"].shape), tuple(filled["labels"].shape)
    if len(ids) != 2 or ids != labels:
        raise TrainerError(
            f"step {step}: input_ids are {list(ids)} and labels {list(labels)}; "
            "both must be [rows, tokens]"
        )
    return filled


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's number among how many; a run without torchrun is rank 0 of 1."""

    rank: int
    world_size: int

    @staticmethod
    def join() -> "Ranks":
        """Join torchrun's run, over gloo unless the caller has made a process group."""
        if not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) == 1:
                return Ranks(rank=0, world_size=1)
            dist.init_process_group("gloo")
            atexit.register(_leave)
        return Ranks(rank=dist.get_rank(), world_size=dist.get_world_size())

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward averages gradients over all ranks; itself if there is one."""
        if self.world_size == 1:
            return model
        # Gradients live in the buckets: else there would be two copies of each.
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def part_of(self, rows: Tensor) -> Tensor:
        """This rank's contiguous rows of a global batch [rows, tokens]; sizes differ by 1 at most.

        Raises:
            TrainerError: there are fewer rows than ranks.
        """
        if rows.shape[0] < self.world_size:
            raise TrainerError(
                f"the batch has {rows.shape[0]} rows for {self.world_size} ranks; "
                "give at least one row a rank or start fewer ranks"
            )
        return rows.tensor_split(self.world_size)[self.rank]

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        total = value.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def sum_count(self, count: int) -> int:
        """The sum of an integer over all ranks."""
        return int(self.sum(torch.tensor(count, dtype=torch.int64)))


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class Trainer:
    """Trains a causal LM that gives ``.loss`` for input_ids, labels and num_items_in_batch.

    Args:
        model: Llama, or a Hugging Face causal LM; wrap it with :func:`memo_train.wrap` first.
        batches: global batches, mappings with "input_ids" [rows, tokens] int64 and, if they are to
            differ, "labels"; further tensors [rows, ...] go to the model as they are. All ranks
            must be given the same ones.
        config: what to do.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Batch], config: TrainerConfig) -> None:
        self.model = model
        self.config = config
        self.ranks = Ranks.join()
        self._batches = iter(batches)
        self._parallel = self.ranks.wrap(model)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._device = self._parameters[0].device
        self._optimizer = torch.optim.AdamW(
            _decay_groups(self._parameters, config.weight_decay),
            lr=config.learning_rate,
            betas=config.betas,
            # Without temporaries of the parameters' size, which a step over lists of them makes.
            fused=True,
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, config.rate_factor)

    def train(self) -> list[StepMetrics]:
        """Run all steps and write what ``out_dir`` asks for; gives every step's metrics.

        Raises:
            TrainerError: the batches end early, or a loss or gradient is not finite.
        """
        torch.manual_seed(self.config.seed + self.ranks.rank)
        self.model.train()
        history = []
        with self._open_log() as log:
            for step in range(1, self.config.num_steps + 1):
                history.append(self._step(step))
                log.write(history[-1])
        self._save()
        return history

    def _step(self, step: int) -> StepMetrics:
        started_s = time.perf_counter()
        memo_train.reset_stats()
        batches = take_step(self._batches, self.config.accumulation_steps, step)
        learning_rate = float(self._schedule.get_last_lr()[0])
        loss = self._accumulate(batches)
        grad_norm = self._update(step, loss)
        stats = memo_train.stats()
        return StepMetrics(
            step=step,
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            num_tokens=sum(batch["input_ids"].numel() for batch in batches),
            seconds=time.perf_counter() - started_s,
            device_peak_bytes=stats.device_peak_bytes,
            host_peak_bytes=stats.host_peak_bytes,
            d2h_copies=stats.d2h_copies,
            h2d_copies=stats.h2d_copies,
            stalls=stats.stalls,
            stall_s=stats.stall_s,
        )

    def _accumulate(self, batches: list[dict[str, Tensor]]) -> float:
        """Forward and backward of all batches; the mean loss over all ranks' predictions."""
        num_predictions = sum(count_predictions(batch) for batch in batches)
        if num_predictions == 0:
            raise TrainerError("no label of the step counts; every one is -100 or first in its row")
        total = torch.zeros((), device=self._device)
        for batch in batches:
            with self._gradient_exchange(last=batch is batches[-1]):
                total += self._backward(batch, num_predictions)
        return self.ranks.sum(total).item()

    def _backward(self, batch: dict[str, Tensor], num_predictions: int) -> Tensor:
        part = {name: self.ranks.part_of(rows).to(self._device) for name, rows in batch.items()}
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.bf16):
            loss: Tensor = self._parallel(**part, num_items_in_batch=num_predictions).loss
        # The parallel wrapper averages gradients over ranks; the loss asks for their sum.
        (loss * self.ranks.world_size).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _gradient_exchange(self, *, last: bool) -> AbstractContextManager[None]:
        # Gradients are exchanged once a step, with the last batch's backward.
        if last or not isinstance(self._parallel, DistributedDataParallel):
            return nullcontext()
        no_exchange: AbstractContextManager[None] = self._parallel.no_sync()
        return no_exchange

    def _update(self, step: int, loss: float) -> float:
        """Clip, step and clear the gradients; the norm before clipping."""
        limit = self.config.max_grad_norm
        # An infinite limit clips nothing and still gives the norm.
        norm = nn.utils.clip_grad_norm_(self._parameters, math.inf if limit is None else limit)
        if not (math.isfinite(loss) and torch.isfinite(norm)):
            raise TrainerError(
                f"step {step}: loss is {loss}, gradient norm {norm.item()}; the weights are those "
                f"before this step; lower learning_rate ({self.config.learning_rate})"
            )
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def _open_log(self) -> MetricsLog:
        is_first = self.ranks.rank == 0
        out_dir = self.config.out_dir if is_first else None
        if out_dir is not None:
            out_dir.mkdir(parents=True, exist_ok=True)
        return MetricsLog(
            None if out_dir is None else out_dir / "metrics.jsonl",
            self.config.num_steps,
            progress=self.config.progress and is_first,
        )

    def _save(self) -> None:
        out_dir = self.config.out_dir
        if out_dir is None or self.ranks.rank != 0:
            return
        # Not save_file: tied embeddings share memory.
        save_model(self.model, str(out_dir / "model.safetensors"))
        with suppress(UnsupportedModel):  # a model that is not wrapped has no plan
            memo_train.save_plan(self.model, out_dir / "plan.json")


def _decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; norms and biases do not."""
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
