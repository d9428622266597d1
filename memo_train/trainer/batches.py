"""Batches as the trainer takes them: mappings of [rows, tokens] tensors."""

from collections.abc import Iterator, Mapping
from itertools import islice

from torch import Tensor

from memo_train.trainer.errors import TrainerError

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
