"""TRL's trainers with every step under memo-train: `from memo_train.trl import SFTTrainer`.

Whatever trainer `trl` has by that name: SFTTrainer, DPOTrainer, GRPOTrainer, RewardTrainer,
KTOTrainer, RLOOTrainer, DistillationTrainer. Each takes `memo=MemoConfig(...)` beside its own
arguments. One of `trl.experimental`, or of your own: `memo_train.trainer.with_memo(thatTrainer)`.
"""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """TRL is imported when one of its trainers is first asked for. Raises: ImportError."""
    if not name.endswith("Trainer"):
        raise AttributeError(f"module 'memo_train.trl' has no attribute {name!r}")
    try:
        trl = import_module("trl")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"memo_train.trl.{name} needs {error.name}: pip install 'memo-train[trl]'"
        ) from error
    kind = getattr(trl, name, None)
    if kind is None:
        raise AttributeError(f"trl {trl.__version__} has no {name}, so memo_train.trl has none")
    from memo_train.trainer import with_memo

    # Once: the next look finds it in the module itself.
    made = globals()[name] = with_memo(kind, module=__name__)
    return made
