"""A small Llama of the project's own, for examples, tests and readers."""

from memo_train.model._llama import Llama, LlamaConfig

__all__ = [
    "Llama",
    "LlamaConfig",
]
