"""Real text without a download: the Python standard library's own sources, one token per byte.

The order of the files is fixed, so the same Python gives the same tokens on every run.
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

VOCAB_SIZE = 256
# No source file contains a zero byte, so it can stand between two of them.
FILE_SEPARATOR = 0


def source_files() -> list[Path]:
    """The standard library's .py files in sorted order, without tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    files = (path.relative_to(root) for path in root.rglob("*.py"))
    kept = (path for path in files if skipped.isdisjoint(path.parts))
    return [root / path for path in sorted(kept, key=lambda path: path.as_posix())]


def byte_tokens(num_tokens: int) -> Tensor:
    """The first num_tokens bytes of the sources, [num_tokens] int64.

    Raises:
        ValueError: the sources are shorter than that.
    """
    text = bytearray()
    for path in source_files():
        text += path.read_bytes()
        text.append(FILE_SEPARATOR)
        if len(text) >= num_tokens:
            return torch.frombuffer(text, dtype=torch.uint8)[:num_tokens].long()
    raise ValueError(
        f"the standard library's sources have {len(text):,} bytes, {num_tokens:,} asked; "
        "ask for fewer or shorter batches"
    )


def text_batches(num_batches: int, rows: int, tokens: int) -> Iterator[Tensor]:
    """Consecutive pieces of the text, num_batches times input_ids [rows, tokens] int64."""
    text = byte_tokens(num_batches * rows * tokens)
    yield from text.view(num_batches, rows, tokens)
