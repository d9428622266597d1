"""What a training run is asked to do, and what the trainer refuses."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memo_planner.errors import MemoError


class TrainerError(MemoError):
    """A run that cannot start or go on: bad settings, batches or a loss that is not finite."""


Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Settings of a run, checked on creation.

    Attributes:
        num_steps: optimiser steps.
        learning_rate: the peak rate, reached after ``warmup_steps`` steps of a linear rise.
        schedule: after the rise, "constant", or "cosine" down to 0 at the last step.
        weight_decay: of AdamW, on weights with two dimensions or more.
        betas: of AdamW.
        accumulation_steps: batches that make up one optimiser step.
        max_grad_norm: the gradient's norm is clipped to this; None does not clip.
        bf16: compute under bf16 autocast; weights stay as they are.
        seed: of dropout and other random choices; each rank adds its number.
        out_dir: where metrics.jsonl, plan.json and model.safetensors go; None writes nothing.
        progress: show a progress bar.

    Raises:
        TrainerError: a value outside its range.
    """

    num_steps: int
    # Llama 7B's AdamW, rate and clipping (arXiv 2302.13971, section 2.3).
    learning_rate: float = 3e-4
    warmup_steps: int = 0
    schedule: Schedule = "cosine"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    accumulation_steps: int = 1
    max_grad_norm: float | None = 1.0
    bf16: bool = False
    seed: int = 0
    out_dir: Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        _at_least("num_steps", self.num_steps, 1)
        _at_least("accumulation_steps", self.accumulation_steps, 1)
        _at_least("warmup_steps", self.warmup_steps, 0)
        _at_least("weight_decay", self.weight_decay, 0)
        _above_zero("learning_rate", self.learning_rate)
        if self.max_grad_norm is not None:
            _above_zero("max_grad_norm", self.max_grad_norm)
        if self.schedule not in ("constant", "cosine"):
            raise TrainerError(f"schedule is {self.schedule!r}, must be 'constant' or 'cosine'")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise TrainerError(f"betas are {self.betas}, each must be in [0, 1)")

    def rate_factor(self, step: int) -> float:
        """The learning rate of a step (counted from 0) as a fraction of ``learning_rate``."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        num_falling = max(1, self.num_steps - self.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * (step - self.warmup_steps) / num_falling))


def _at_least(name: str, value: float, lowest: float) -> None:
    if not (math.isfinite(value) and value >= lowest):
        raise TrainerError(f"{name} is {value}, must be at least {lowest}")


def _above_zero(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise TrainerError(f"{name} is {value}, must be above 0 (None turns an option off)")
