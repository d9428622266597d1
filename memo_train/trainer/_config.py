"""What a run asks of memo-train: one argument of a trainer, also of a command line or YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class MemoConfig:
    """The options of `memo_train.wrap` for a trainer. Raises nothing itself: `wrap` checks them.

    Transformers' HfArgumentParser and TRL's TrlParser take it beside their own classes, so that
    every field is an argument of the command line and a line of a YAML file.

    Attributes:
        device_gib, host_gib, alpha, tile_tokens: as in `memo_train.wrap`.
        sp: ranks that share every sequence, each with a range of its tokens, as `memo_train.wrap`
            does with a mesh; the others are data parallel. For `memo_train.Trainer` and
            `memo_train.trl.SFTTrainer`, with torchrun.
        verify: run `memo_train.verify` on the first batch, and print its table. The machine must
            hold a step of the plain model.
    """

    device_gib: float | None = _option(
        None,
        "GiB of this process's device memory, for everything; none: half of this process's share "
        "of the memory, on a GPU nine tenths of the GPU's",
    )
    host_gib: float | None = _option(
        None, "GiB of the host pool; none: half of this process's share of the memory"
    )
    alpha: float | None = _option(
        None, "share of each block's tiles to swap, in [0, 1]; none: the planner chooses"
    )
    tile_tokens: int | None = _option(None, "tokens per tile; none: the planner chooses")
    sp: int = _option(1, "ranks that share every sequence, each with a range of its tokens")
    verify: bool = _option(
        False, "compare a step with the plain model's on the first batch, and print the table"
    )

    def wrap_options(self) -> dict[str, Any]:
        """The arguments of `memo_train.wrap`."""
        names = ("device_gib", "host_gib", "alpha", "tile_tokens")
        return {name: getattr(self, name) for name in names}
