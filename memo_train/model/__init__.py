"""A small Llama of the project's own, for examples, tests and readers."""

from memo_train.model.config import LlamaConfig
from memo_train.model.llama import Llama, LlamaOutput

__all__ = ["Llama", "LlamaConfig", "LlamaOutput"]
