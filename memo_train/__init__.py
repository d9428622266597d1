"""memo-train: long-context training by token tiles, under a plan made before the step runs.

Source: MEMO (SIGMOD 2025, arXiv 2407.12117).
"""

from typing import TYPE_CHECKING, Any

from memo_train.errors import MemoError
from memo_train.memory import MemoryReport, load_plan, memory_report, save_plan, use_layouts
from memo_train.parallel import ModelState, shard_batch
from memo_train.runtime import attention
from memo_train.stats import Stats, reset_stats, stats
from memo_train.verify import Verification, verify
from memo_train.wrap import plan, unwrap, wrap

if TYPE_CHECKING:
    from memo_train.trainer import MemoConfig, Trainer

__all__ = [
    "MemoConfig",
    "MemoError",
    "MemoryReport",
    "ModelState",
    "Stats",
    "Trainer",
    "Verification",
    "attention",
    "load_plan",
    "memory_report",
    "plan",
    "reset_stats",
    "save_plan",
    "shard_batch",
    "stats",
    "unwrap",
    "use_layouts",
    "verify",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """The trainer is imported when first asked for: wrapping a model does not need it."""
    if name in ("MemoConfig", "Trainer"):
        from memo_train import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module 'memo_train' has no attribute {name!r}")
