"""The `memo-plan` command: one module a command."""

from memo_planner.cli import check as _check  # noqa: F401
from memo_planner.cli import compare as _compare  # noqa: F401
from memo_planner.cli import export as _export  # noqa: F401
from memo_planner.cli import fragmentation as _fragmentation  # noqa: F401
from memo_planner.cli import hardware as _hardware  # noqa: F401
from memo_planner.cli import make as _make  # noqa: F401
from memo_planner.cli import max_seq as _max_seq  # noqa: F401
from memo_planner.cli import pack as _pack  # noqa: F401
from memo_planner.cli import show as _show  # noqa: F401
from memo_planner.cli import simulate as _simulate  # noqa: F401
from memo_planner.cli.app import app


def main() -> None:
    """Entry of the console script."""
    app()
