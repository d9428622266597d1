"""A plain training loop around a wrapped model."""

from memo_train.trainer.config import TrainerConfig
from memo_train.trainer.errors import TrainerError
from memo_train.trainer.metrics import StepMetrics
from memo_train.trainer.trainer import Trainer

__all__ = ["StepMetrics", "Trainer", "TrainerConfig", "TrainerError"]
