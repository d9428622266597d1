"""A plain training loop around a wrapped model."""

from memo_train.trainer._config import TrainerConfig, TrainerError
from memo_train.trainer._metrics import StepMetrics
from memo_train.trainer._trainer import Trainer

__all__ = [
    "StepMetrics",
    "Trainer",
    "TrainerConfig",
    "TrainerError",
]
