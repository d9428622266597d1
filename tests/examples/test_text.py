"""The example text is real, the same each time, and cut without gaps."""

import pytest
import torch

from examples.text import VOCAB_SIZE, byte_tokens, source_files, text_batches


def test_files_are_sorted_sources_of_the_standard_library() -> None:
    files = source_files()
    names = [path.name for path in files]
    assert "dataclasses.py" in names
    assert "heapq.py" in names
    assert len(files) > 300
    assert not any("site-packages" in path.parts or "test" in path.parts for path in files)
    assert files == source_files()


def test_tokens_are_the_bytes_of_the_files_in_order() -> None:
    first, second = (path.read_bytes() for path in source_files()[:2])
    tokens = byte_tokens(len(first) + 1 + len(second))
    assert tokens.dtype == torch.int64
    assert bytes(tokens.tolist()) == first + b"\0" + second


def test_batches_follow_each_other_without_gap() -> None:
    batches = list(text_batches(num_batches=3, rows=2, tokens=64))
    assert [tuple(batch.shape) for batch in batches] == [(2, 64)] * 3
    assert torch.equal(torch.cat(batches).flatten(), byte_tokens(3 * 2 * 64))
    assert 0 <= torch.cat(batches).min() <= torch.cat(batches).max() < VOCAB_SIZE


def test_more_text_than_there_is_is_refused_with_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"have [\d,]+ bytes, 1,000,000,000,000 asked"):
        byte_tokens(10**12)
