"""What is trained, and the profile that follows from its dimensions and a machine's figures."""

from memo_planner.workload._analytic import Way, analytic_profile, outside_s, rank_limits
from memo_planner.workload._config import model_named, model_of_config
from memo_planner.workload._model import (
    MODELS,
    PAPER_GPUS,
    BlockKind,
    ModelDims,
)
from memo_planner.workload._workload import Parallel, Workload, format_tokens, parse_tokens

__all__ = [
    "MODELS",
    "PAPER_GPUS",
    "BlockKind",
    "ModelDims",
    "Parallel",
    "Way",
    "Workload",
    "analytic_profile",
    "format_tokens",
    "model_named",
    "model_of_config",
    "outside_s",
    "parse_tokens",
    "rank_limits",
]
