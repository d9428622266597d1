"""A toy causal LM around blocks of any kind, and a zoo of blocks that are hard to cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from memo_train import attention
from memo_train.model._llama import LlamaOutput
from tests.runtime.causal_lms import NUM_BLOCKS, VOCAB_SIZE

HIDDEN = 32
HEADS = 4


class ToyDecoder(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB_SIZE, HIDDEN)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(HIDDEN)

    def call(self, block: nn.Module, x: Tensor, embedded: Tensor) -> Tensor:
        output: Tensor = block(x)
        return output

    def forward(self, input_ids: Tensor) -> Tensor:
        embedded = x = self.embed(input_ids)
        for block in self.blocks:
            x = self.call(block, x, embedded)
        output: Tensor = self.norm(x)
        return output


class ToyLM(nn.Module):
    decoder_class: type[ToyDecoder] = ToyDecoder

    def __init__(self, make_block: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.base_model = self.decoder_class([make_block() for _ in range(NUM_BLOCKS)])
        self.head = nn.Linear(HIDDEN, VOCAB_SIZE, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> LlamaOutput:
        logits = self.head(self.base_model(input_ids))
        if shift_labels is None and labels is not None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        if shift_labels is None:
            return LlamaOutput(None, logits)
        items = (shift_labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
        total = F.cross_entropy(logits.flatten(0, 1), shift_labels.flatten(), reduction="sum")
        return LlamaOutput(total / items, logits)


class ToyBlock(nn.Module):
    """x + attention + MLP; subclasses change one thing each."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.out = nn.Linear(HIDDEN, HIDDEN)
        self.mlp = nn.Sequential(
            nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 48), nn.GELU(), nn.Linear(48, HIDDEN)
        )

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """[batch, tokens, hidden] -> q, k, v [batch, heads, tokens, head_dim]."""
        parts = self.qkv(self.norm(x)).chunk(3, dim=-1)
        return tuple(p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in parts)

    def attend(self, x: Tensor) -> Tensor:
        o = attention(*self.heads(x))
        output: Tensor = self.out(o.transpose(1, 2).flatten(2))
        return output

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        x = x + self.attend(x)
        output: Tensor = x + self.mlp(x)
        return output


class ParallelBlock(ToyBlock):
    """x + attention(x) + MLP(x)."""

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        output: Tensor = x + self.attend(x) + self.mlp(x)
        return output


class QueryGatedBlock(ToyBlock):
    """Reads q after the cut."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        gated = attention(q, k, v) * torch.sigmoid(q)
        output: Tensor = self.out(gated.transpose(1, 2).flatten(2))
        return output


class FusedGateBlock(ToyBlock):
    """The gate lies in one storage with q, k and v, and is read after the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(HIDDEN, 4 * HIDDEN)

    def attend(self, x: Tensor) -> Tensor:
        *qkv, gate = self.qkv(self.norm(x)).chunk(4, dim=-1)
        o = attention(*(p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in qkv))
        output: Tensor = self.out(o.transpose(1, 2).flatten(2) * torch.sigmoid(gate))
        return output


class ConvolutionBlock(ToyBlock):
    """A causal convolution over tokens beside attention, behind a gate."""

    gate_at_start = 0.0
    dilation = 1

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(
            HIDDEN, HIDDEN, 2, padding=self.dilation, dilation=self.dilation
        )
        self.gate = nn.Parameter(torch.tensor(self.gate_at_start))

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        mixed = self.convolution(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        output: Tensor = super().forward(x + self.gate * mixed)
        return output


class OpenConvolutionBlock(ConvolutionBlock):
    gate_at_start = 1.0


class FarConvolutionBlock(ConvolutionBlock):
    """Mixes tokens that are 29 apart."""

    gate_at_start = 1.0
    dilation = 29


class BatchNormBlock(ToyBlock):
    """Mixes tokens in training mode only, and has running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(HIDDEN)

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        output: Tensor = super().forward(self.batch_norm(x.transpose(1, 2)).transpose(1, 2))
        return output


class NoAttentionBlock(ToyBlock):
    def attend(self, x: Tensor) -> Tensor:
        output: Tensor = self.out(self.norm(x))
        return output


class TwoAttentionsBlock(ToyBlock):
    def forward(self, x: Tensor, *args: Any) -> Tensor:
        x = x + self.attend(x)
        output: Tensor = x + self.attend(x)
        return output


class OwnMaskBlock(ToyBlock):
    """Builds its causal mask from the length it is given."""

    def attend(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        o = attention(*self.heads(x), mask=torch.ones(tokens, tokens, dtype=torch.bool).tril())
        output: Tensor = self.out(o.transpose(1, 2).flatten(2))
        return output


class InPlaceBlock(ToyBlock):
    """Writes to its input, as autograd allows."""

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return super().forward(x.mul_(0.7).add_(0.1))


class TwoOutputsBlock(ToyBlock):
    def forward(self, x: Tensor, *args: Any) -> Any:
        y = super().forward(x)
        return y, y.pow(2).mean(-1)


class TwoOutputsDecoder(ToyDecoder):
    """Differentiates the second output of its blocks, too."""

    def forward(self, input_ids: Tensor) -> Tensor:
        x, total = self.embed(input_ids), torch.zeros(())
        for block in self.blocks:
            x, extra = block(x)
            total = total + extra.mean(-1)
        output: Tensor = self.norm(x) * (1 + total[:, None, None])
        return output


class FromEmbeddingBlock(ToyBlock):
    """Takes the embedded tokens as a second, differentiable input."""

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:  # type: ignore[override]
        output: Tensor = super().forward(x + 0.5 * embedded)
        return output


class FromEmbeddingDecoder(ToyDecoder):
    def call(self, block: nn.Module, x: Tensor, embedded: Tensor) -> Tensor:
        output: Tensor = block(x, embedded)
        return output


class ConditionedBlock(ToyBlock):
    """Takes one vector for all tokens, [batch, hidden]."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        output: Tensor = super().forward(x * condition[:, None])
        return output


class ConditionedDecoder(ToyDecoder):
    def call(self, block: nn.Module, x: Tensor, embedded: Tensor) -> Tensor:
        condition = torch.linspace(0.5, 1.5, HIDDEN).repeat(x.shape[0], 1)
        output: Tensor = block(x, condition)
        return output


class BorrowingBlock(ToyBlock):
    """Uses a module that is registered elsewhere."""

    lender: tuple[nn.Module, ...] = ()

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        output: Tensor = super().forward(x + self.lender[0](x))
        return output


class Float32AttentionBlock(ToyBlock):
    """Attends and projects with autocast off."""

    def attend(self, x: Tensor) -> Tensor:
        qkv = self.heads(x)
        with torch.autocast("cpu", enabled=False):
            o = attention(*(t.float() for t in qkv))
            output: Tensor = self.out(o.transpose(1, 2).flatten(2))
        assert (o.dtype, output.dtype) == (torch.float32, torch.float32)
        return output


class ChosenKernelBlock(ToyBlock):
    """Attends with one kernel allowed, for the length of the call."""

    def attend(self, x: Tensor) -> Tensor:
        qkv = self.heads(x)
        with sdpa_kernel([SDPBackend.MATH]):
            o = attention(*qkv)
        output: Tensor = self.out(o.transpose(1, 2).flatten(2))
        return output


def toy(make_block: Callable[[], nn.Module], decoder_class: type[ToyDecoder] = ToyDecoder) -> ToyLM:
    """A toy causal LM of such blocks, the same each time."""
    return type("Toy", (ToyLM,), {"decoder_class": decoder_class})(make_block)


def borrowing() -> ToyLM:
    """Blocks that share a linear layer of their parent's."""
    model = toy(BorrowingBlock)
    model.shared = nn.Linear(HIDDEN, HIDDEN)
    for block in model.base_model.blocks:
        block.lender = (model.shared,)
    return model


def repeated() -> ToyLM:
    """One block three times in the list."""
    model = toy(ToyBlock)
    block = model.base_model.blocks[0]
    model.base_model.blocks = nn.ModuleList([block] * NUM_BLOCKS)
    return model
