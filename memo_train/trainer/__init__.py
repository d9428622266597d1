"""Transformers' Trainer and TRL's, with every step under memo-train; see `memo_train.Trainer`."""

from typing import TYPE_CHECKING, Any

from memo_train.trainer._config import MemoConfig

if TYPE_CHECKING:
    from memo_train.trainer._trainer import Trainer, with_memo

__all__ = [
    "MemoConfig",
    "Trainer",
    "with_memo",
]


def __getattr__(name: str) -> Any:
    """What needs Transformers is imported when first asked for."""
    if name in ("Trainer", "with_memo"):
        try:
            from memo_train.trainer import _trainer
        except ModuleNotFoundError as error:
            if error.name not in ("transformers", "accelerate"):
                raise
            raise ImportError(
                f"memo_train.{name} needs {error.name}: pip install 'memo-train[hf]'"
            ) from error

        return getattr(_trainer, name)
    raise AttributeError(f"module 'memo_train.trainer' has no attribute {name!r}")
