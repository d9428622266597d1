"""The `memo-plan` command: plans in one module, steps and their memory in the other."""

from memo_planner.cli import _plans, _steps  # noqa: F401  (each adds its commands to the app)
from memo_planner.cli._app import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry of the console script."""
    app()
