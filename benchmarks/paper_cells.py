"""What the paper prints, as data. Source: MEMO (SIGMOD 2025), its tables of results."""

K = 1024

OUT_OF_DEVICE = "device"
OUT_OF_HOST = "host"

Cell = float | str | None
"""MFU in %, or which memory ran out, or not printed."""

ABLATION: dict[str, dict[int, Cell]] = {
    "checkpoint": {
        64: 42.91, 128: 43.17, 256: 42.05, 384: 42.49, 512: 41.90, 640: 42.15, 768: OUT_OF_DEVICE,
    },
    "swap-all": {
        64: 37.40, 128: 46.33, 256: 53.62, 384: OUT_OF_HOST, 512: OUT_OF_HOST, 640: OUT_OF_HOST,
        768: OUT_OF_HOST, 896: OUT_OF_HOST,
    },
    "memo-paper": {
        64: 47.99, 128: 50.96, 256: 53.62, 384: 53.04, 512: 51.84, 640: 52.59, 768: 51.89,
        896: 52.71,
    },
}  # fmt: skip
"""The planned rows of the 7B ablation (TP 4, CP 2), by thousands (1,024) of tokens."""

MAIN: dict[int, Cell] = {
    64: 52.34, 128: 50.96, 256: 53.62, 384: 53.04, 512: 51.84, 640: 52.59, 768: 51.89, 896: 52.71,
    1024: 52.30, 1152: OUT_OF_DEVICE,
}  # fmt: skip
"""MEMO's 7B row of the main table, parallel degrees chosen for each cell."""

ALPHA: dict[int, tuple[Cell, ...]] = {
    192: (51.04, 51.86, 52.14, 52.30, 52.72, 52.78, 53.11, 51.74, 49.69),
    256: (52.03, 52.05, 52.19, 52.45, 52.70, 52.96, 53.21, 53.29, 53.62),
    320: (52.15, 52.36, 52.52, 52.66, 52.92, 53.10, 53.35, OUT_OF_HOST, OUT_OF_HOST),
    384: (
        52.09, 52.31, 52.45, 52.58, 53.04, OUT_OF_HOST, OUT_OF_HOST, OUT_OF_HOST, OUT_OF_HOST,
    ),
}  # fmt: skip
"""MFU of alpha 0, 1/8, ..., 1 (7B, TP 4, CP 2)."""

LENGTHS = (64, 128, 256, 384, 512, 640, 768, 896, 1024, 1152, 1280, 1408)
"""Thousands of tokens at which every model is predicted."""
