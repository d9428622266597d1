"""What a checkpoint of Transformers gets beside its own files, and which checkpoints are whole.

memo_train.json has the figures that steps are planned from: a run that resumes plans from the same
ones, so its steps go in the same tiles and compute the same bits. memo_plan.json and its layout are
those of the last step: they save the resumed run the search and the recording.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from memo_planner.codec import read_document, write_document
from memo_train.errors import MemoError
from memo_train.memory import load_plan, save_plan
from memo_train.planning import StepPlanner

FORMAT = "memo-train-checkpoint"
VERSION = 1
_NAME = "memo_train.json"
_PLAN = "memo_plan.json"
_STATE = "trainer_state.json"
_log = logging.getLogger("memo_train")


def save_plans(planner: StepPlanner, directory: Path) -> None:
    """Write what a resumed run plans from; nothing before the first step. Raises: OSError."""
    measured = planner.measured()
    if measured is None or planner.last is None:
        return
    save_plan(planner.wrapped.parts.causal_lm, directory / _PLAN, wait=False)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "masked": planner.wrapped.masked,
        "measured": measured,
    }
    write_document(directory / _NAME, document)


def load_plans(planner: StepPlanner, directory: Path) -> None:
    """Plan as the run did that wrote the checkpoint. One line says so where that cannot be."""
    path = directory / _NAME
    if not path.is_file():
        return
    try:
        document: dict[str, Any] = read_document(path, format=FORMAT, version=VERSION)
        if not planner.adopt_measured(document.get("measured") or {}):
            _log.warning(
                "%s was measured on another machine or model: steps are planned anew, and may go "
                "in other tiles, whose sums round otherwise",
                path,
            )
            return
        # Plans of masked steps are kept apart.
        planner.wrapped.masked = bool(document.get("masked"))
        load_plan(planner.wrapped.parts.causal_lm, directory / _PLAN)
    except (MemoError, OSError) as error:
        _log.warning("steps are planned anew: %s", error)


def last_complete(output_dir: Path, num_ranks: int) -> Path | None:
    """The last checkpoint that was written to its end; None if there is none.

    A process that is killed while it saves leaves a part of one, which Transformers would take.
    """
    numbered = sorted(
        (int(path.name.rpartition("-")[2]), path)
        for path in output_dir.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit()
    )
    for _, path in reversed(numbered):
        if _is_complete(path, num_ranks):
            return path
        _log.warning("%s is not complete, and is passed over", path)
    return None


def _is_complete(path: Path, num_ranks: int) -> bool:
    try:
        # Written last, and not all at once.
        json.loads((path / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return num_ranks == 1 or all((path / f"rng_state_{r}.pth").is_file() for r in range(num_ranks))
