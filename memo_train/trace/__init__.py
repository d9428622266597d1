"""Measures one block of a model, so that a step can be planned before it runs."""

from memo_train.trace._cache import (
    KeptProfile,
    model_key,
)
from memo_train.trace._config_model import (
    model_of_config,
)
from memo_train.trace._link import (
    CopyBuffers,
    measure_link,
    measure_link_rates,
)
from memo_train.trace._places import (
    Place,
    PlaceMarks,
    PlaceRecorder,
    requests_at,
)
from memo_train.trace._profile import (
    LONGEST_PROFILED_TOKENS,
    OPTIMIZER_STATES,
    Effort,
    PlainSteps,
    for_two_sequences,
    kinds_of,
    measure_profile,
    model_hash,
)
from memo_train.trace._steps import REPEATS, Way

__all__ = [
    "LONGEST_PROFILED_TOKENS",
    "OPTIMIZER_STATES",
    "REPEATS",
    "CopyBuffers",
    "Effort",
    "KeptProfile",
    "Place",
    "PlaceMarks",
    "PlaceRecorder",
    "PlainSteps",
    "Way",
    "for_two_sequences",
    "kinds_of",
    "measure_link",
    "measure_link_rates",
    "measure_profile",
    "model_hash",
    "model_key",
    "model_of_config",
    "requests_at",
]
