"""What is trained, and the profile that follows from its dimensions and a machine's figures."""

from memo_planner.workload.analytic import analytic_profile, rank_limits
from memo_planner.workload.hf_config import model_of_config
from memo_planner.workload.lengths import format_tokens, parse_tokens
from memo_planner.workload.model import ModelDims
from memo_planner.workload.named import MODELS, PAPER_GPUS, model_named
from memo_planner.workload.parallel import Parallel
from memo_planner.workload.volumes import Way
from memo_planner.workload.workload import Workload

__all__ = [
    "MODELS",
    "PAPER_GPUS",
    "ModelDims",
    "Parallel",
    "Way",
    "Workload",
    "analytic_profile",
    "format_tokens",
    "model_named",
    "model_of_config",
    "parse_tokens",
    "rank_limits",
]
