"""Carries a plan out: token tiles, swaps and recomputation of a training step."""

from memo_train.runtime._ambient import precision, preserved_rng
from memo_train.runtime._block import BlockPass
from memo_train.runtime._block_state import AtCut, BlockSpec, SavedBytes
from memo_train.runtime._cut import attention
from memo_train.runtime._deepspeed import deepspeed_ulysses_of
from memo_train.runtime._hooks import without_user_hooks
from memo_train.runtime._loss import TiledLoss, assumed_loss
from memo_train.runtime._module_state import kept_gradients, kept_model
from memo_train.runtime._observe import NOWHERE, Observer, StepMemory, ignore
from memo_train.runtime._parts import (
    ModelParts,
    causal_lm_of,
    configs_of,
    find_parts,
    runnable,
    without_caches,
)
from memo_train.runtime._probe import (
    BlockVerdict,
    HowToRun,
    judge_plain_run,
    probe_model,
)
from memo_train.runtime._probe_calls import BlockCall, evaluating, record_calls, split_input
from memo_train.runtime._probe_gradients import NOT_RUNNABLE
from memo_train.runtime._ranks import (
    Call,
    Ranks,
    SharedAttention,
    SharedStep,
    attention_shared_by,
)
from memo_train.runtime._saved import storage_key
from memo_train.runtime._shadow import installed, shadows_of, trainable_parameters
from memo_train.runtime._sharded import held_here, is_fully_sharded, settled
from memo_train.runtime._swap import CopiesInFlight
from memo_train.runtime._tile import TokenDims, learn_token_dims, split_output
from memo_train.runtime._wrapped import (
    ChoosePolicy,
    StepPolicy,
    WrappedModel,
    check_shareable,
    report,
)

__all__ = [
    "NOT_RUNNABLE",
    "NOWHERE",
    "AtCut",
    "BlockCall",
    "BlockPass",
    "BlockSpec",
    "BlockVerdict",
    "Call",
    "ChoosePolicy",
    "CopiesInFlight",
    "HowToRun",
    "ModelParts",
    "Observer",
    "Ranks",
    "SavedBytes",
    "SharedAttention",
    "SharedStep",
    "StepMemory",
    "StepPolicy",
    "TiledLoss",
    "TokenDims",
    "WrappedModel",
    "assumed_loss",
    "attention",
    "attention_shared_by",
    "causal_lm_of",
    "check_shareable",
    "configs_of",
    "deepspeed_ulysses_of",
    "evaluating",
    "find_parts",
    "held_here",
    "ignore",
    "installed",
    "is_fully_sharded",
    "judge_plain_run",
    "kept_gradients",
    "kept_model",
    "learn_token_dims",
    "precision",
    "preserved_rng",
    "probe_model",
    "record_calls",
    "report",
    "runnable",
    "settled",
    "shadows_of",
    "split_input",
    "split_output",
    "storage_key",
    "trainable_parameters",
    "without_caches",
    "without_user_hooks",
]
