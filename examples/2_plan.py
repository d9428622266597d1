"""What a step will do before it runs: the same sequence under less and less device memory.

A limit that no plan holds is refused with the point that needs most and the longest sequence that
fits. usage: python examples/2_plan.py [OUT.json], which prints

    32,768 tokens under 2048 MiB: kept ... %, swapped ... %, recomputed ... %, peak ... MiB
    32,768 tokens under  128 MiB: kept ... %, swapped ... %, recomputed ... %, peak ... MiB
    32,768 tokens under    8 MiB: refused: ... longest sequence that fits: ... tokens
    look at it: memo-plan show ...
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import memo_train
from examples.small import small_llama
from memo_train.errors import PlanInfeasible

TOKENS = 32_768


def main() -> None:
    """Plan under three limits, and write the last plan that holds."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()) / "plan.json"
    for mib in (2048, 128, 8):
        try:
            model = memo_train.wrap(small_llama(), seq_len=TOKENS, device_gib=mib / 1024)
        except PlanInfeasible as error:
            print(f"{TOKENS:,} tokens under {mib:4} MiB: refused: {error}")
            continue
        memo_train.save_plan(model, out)
        plan = memo_train.plan(model)
        blocks = plan.policy.blocks
        every = plan.policy.num_tiles * len(blocks)
        kept = 100 * sum(b.keep_tiles for b in blocks) / every
        swapped = 100 * sum(b.swap_tiles for b in blocks) / every
        print(
            f"{TOKENS:,} tokens under {mib:4} MiB: kept {kept:.0f} %, swapped {swapped:.0f} %, "
            f"recomputed {100 - kept - swapped:.0f} %, "
            f"peak {plan.prediction.device_peak_bytes / 2**20:.1f} MiB"
        )
        memo_train.unwrap(model)
    print(f"look at it: memo-plan show {out}")


if __name__ == "__main__":
    main()
