"""A model of your own: blocks in a ModuleList, attention by `memo_train.attention`, labels in.

usage: python examples/own_model.py, which prints

    plain   loss 5.5...
    wrapped loss 5.5...
    gradients differ by at most ...e-0... of the largest; verify says
    ...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import memo_train
from examples.text import VOCAB_SIZE, text_batches
from memo_train.model import Llama, LlamaConfig  # one page: memo_train/model/_llama.py


def own_model() -> Llama:
    """`wrap` asks for `base_model`, `get_output_embeddings()`, and labels in, `.loss` out."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        ffn_size=192,
        num_blocks=3,
        num_heads=4,
        num_kv_heads=2,
    )
    return Llama(config)


def step(model: torch.nn.Module, ids: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    """The loss and every gradient."""
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def main() -> None:
    """The same step plain and wrapped."""
    (ids,) = text_batches(1, rows=1, tokens=2048)
    plain, expected = step(own_model(), ids)
    model = memo_train.wrap(own_model(), alpha=0.5, tile_tokens=256)
    wrapped, found = step(model, ids)
    print(f"plain   loss {plain:.4f}\nwrapped loss {wrapped:.4f}")
    largest = max(float(g.abs().max()) for g in expected)
    off = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
    print(f"gradients differ by at most {off / largest:.1e} of the largest; verify says")
    print(memo_train.verify(model, {"input_ids": ids, "labels": ids}))


if __name__ == "__main__":
    main()
