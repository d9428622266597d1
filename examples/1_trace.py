"""What a plan is made of: one block of the model, measured on this machine.

`wrap` runs a block on a few tokens, proves that tiles give its gradients, and measures what a token
of each tensor weighs and how long it takes. usage: python examples/1_trace.py, which prints

    4 blocks, 898.2 KiB of parameters in fp32
    a token's input of a block                 256 bytes
    q, k and v                                 512 bytes
    attention's output                         256 bytes
    what else pre and post save, kept only    ... bytes
    forward of a token, tile by tile         ... us
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import memo_train
from examples.small import small_llama


def main() -> None:
    """Measure and print."""
    model = memo_train.wrap(small_llama(), seq_len=1024)
    profile = memo_train.plan(model).profile
    kib = sum(p.nbytes for p in model.parameters()) / 2**10
    print(f"{profile.num_blocks} blocks, {kib:.1f} KiB of parameters in fp32")
    rest = profile.pre_bytes_per_token + profile.post_bytes_per_token
    for name, value in (
        ("a token's input of a block", profile.x_bytes_per_token),
        ("q, k and v", profile.qkv_bytes_per_token),
        ("attention's output", profile.o_bytes_per_token),
        ("what else pre and post save, kept only", rest),
    ):
        print(f"{name:40} {value:5.0f} bytes")
    print(
        f"{'forward of a token, tile by tile':40} {profile.times.tilewise_s_per_token * 1e6:.2f} us"
    )


if __name__ == "__main__":
    main()
