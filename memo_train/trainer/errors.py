"""What the trainer refuses."""

from memo_planner.errors import MemoError


class TrainerError(MemoError):
    """A run that cannot start or go on: bad settings, batches or a loss that is not finite."""
