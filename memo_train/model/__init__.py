"""A small Llama of the project's own, for examples, tests and readers."""

from memo_train.model._llama import Llama, LlamaConfig, LlamaOutput

__all__ = [
    "Llama",
    "LlamaConfig",
    "LlamaOutput",
]
